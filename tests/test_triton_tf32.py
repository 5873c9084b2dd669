"""TF32 in the Triton kernels: operands are rounded, not cut off; on the GPU, or without one in the interpreter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rdk.backends.triton import configurations, launch, prepared
from rdk.backends.triton.configurations import ConvTile, WeightGradientTile
from rdk.backends.triton.launch import Operand, Series
from rdk.backends.triton.setting import Setting, make_setting
from rdk.testing import relative

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# float32 sums of rounded operands; operands that are cut off, or left whole, lie a thousand times further away
SUMS = 1e-6
SHAPE = (2, 17, 5, 3)
NAN_OF_ONES = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)


def shortened(tensor: Tensor) -> Tensor:
    """Rounded to eleven significant bits, halves away from zero, in float64."""
    fraction, exponent = torch.frexp(tensor.double())
    return torch.ldexp(torch.sign(fraction) * torch.floor(fraction.abs() * 2**11 + 0.5) / 2**11, exponent)


def setting(shape: tuple[int, ...] = SHAPE) -> Setting:
    own = configurations.device_named("interpreter", (0, 0))
    tiles = ConvTile(64, 32, 32, 4, 2), WeightGradientTile(32, 64, 32, 4, 2)
    return make_setting(own, shape, torch.float32, "tf32", 2, DEVICE.type == "cpu", *tiles)


def a_map(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    random = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    return random.contiguous(memory_format=torch.channels_last)


def test_a_convolution_rounds_its_map_and_takes_weights_that_are_rounded() -> None:
    x, out = a_map(1), a_map(2)
    weight = prepared.rounded_to_tf32(a_map(3, (17, 17, 3, 3)))
    assert torch.equal(weight.cpu().double(), shortened(a_map(3, (17, 17, 3, 3)).cpu()))
    launch.conv3x3(setting(), 1, Operand(x), weight, out).run()
    expected = F.conv2d(shortened(x.cpu()), weight.cpu().double(), padding=1)
    assert relative(out.cpu(), expected) < SUMS
    assert relative(F.conv2d(x.cpu().double(), weight.cpu().double(), padding=1), expected) > 100 * SUMS


def test_what_is_normalised_on_load_is_rounded_afterwards() -> None:
    x, out = a_map(1), a_map(2)
    weight = prepared.rounded_to_tf32(a_map(3, (17, 17, 3, 3)))
    affine = torch.stack([torch.zeros(17), torch.full((17,), 1.7), torch.full((17,), 0.3)]).to(DEVICE)
    launch.conv3x3(setting(), 1, Operand(x, affine, True), weight, out).run()
    h = torch.relu(torch.add(0.3, x.cpu().double(), alpha=float(affine[1, 0])).float())
    assert relative(out.cpu(), F.conv2d(shortened(h), weight.cpu().double(), padding=1)) < 20 * SUMS  # ties fall apart


def test_a_weight_gradient_rounds_both_of_its_maps() -> None:
    x, grad, out, s = a_map(1), a_map(2), a_map(3, (17, 17, 3, 3)), setting()
    partial = torch.empty(s.splits, 17, s.columns, device=DEVICE)
    launch.weight_gradient(s, 1, Series(grad[None]), Series(x[None]), partial, 1, False).run()
    launch.weight_gradient_reduce(s, partial, out).run()
    leaf = torch.zeros(17, 17, 3, 3, dtype=torch.float64, requires_grad=True)
    F.conv2d(shortened(x.cpu()), leaf, padding=1).backward(shortened(grad.cpu()))
    assert leaf.grad is not None and relative(out.cpu(), leaf.grad) < SUMS


def test_nan_and_infinity_stay() -> None:
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3.4028e38])
    values = torch.cat([odd, NAN_OF_ONES, -NAN_OF_ONES])
    got = prepared.rounded_to_tf32(values)
    assert got.isnan().tolist() == [False, False, True, False, False, False, True, True]
    assert got[:2].tolist() == [torch.inf, -torch.inf] and got[3:5].signbit().tolist() == [False, True]
    x, out = torch.zeros(8, 1, device=DEVICE), torch.empty(8, 1, device=DEVICE)
    x[:, 0] = values
    launch.conv3x3(setting((8, 1)), 1, Operand(x), torch.ones(1, 1, device=DEVICE), out).run()
    assert torch.equal(out.isnan(), x.isnan()) and torch.equal(out[:2], x[:2])


@pytest.mark.parametrize("size", [(3, 3, 3, 3), (3, 3)])
def test_weights_are_rounded_once_where_tf32_is_in_force(size: tuple[int, ...]) -> None:
    weight = torch.randn(size)

    def call(precision: str) -> Any:
        return SimpleNamespace(problem=SimpleNamespace(precision=precision, tied=True), weights=[weight], prepared={})

    short = call("tf32")
    for make, expected in ((prepared.weight, weight), (prepared.transposed_weight, weight.transpose(0, 1))):
        assert torch.equal(make(short, 0).double(), shortened(expected)) and make(short, 0) is make(short, 0)
        assert torch.equal(make(call("exact"), 0), expected)
