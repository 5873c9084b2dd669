"""Every prologue and epilogue of the Triton kernels against float64, on odd shapes: on the GPU, or interpreted without one."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rdk.backends.layout import empty_maps
from rdk.backends.triton import configurations, launch
from rdk.backends.triton.configurations import ConvTile, WeightGradientTile
from rdk.backends.triton.launch import NormGradient, Operand, Series, Sums
from rdk.backends.triton.setting import Setting, make_setting
from rdk.testing import UNIT, relative

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHANNELS, MAPS, DILATIONS = (1, 3, 16, 17, 40), ((1, 1), (1, 7), (5, 3), (9, 13)), (1, 2, 3)
# a batch only adds pixels: one of three with each of the rest, every pair of values among them
FULL = [
    (1 + (number + number // 3) % 3, channels, height, width, dilation)
    for number, (channels, (height, width), dilation) in enumerate(product(CHANNELS, MAPS, DILATIONS))
]
# every batch, channel count, map and dilation of the full matrix
SAMPLE = [(1, 1, 1, 1, 1), (3, 40, 1, 1, 2), (2, 3, 1, 7, 3), (1, 17, 5, 3, 2), (3, 16, 9, 13, 1), (1, 3, 9, 13, 3)]
SHAPES = [pytest.param(*shape, marks=() if shape in SAMPLE else pytest.mark.slow) for shape in FULL]
EPS = 1e-5


class Problem(NamedTuple):
    """A problem's tensors in float64, and its setting."""

    setting: Setting
    dilation: int
    dtype: torch.dtype
    x: Tensor
    weight: Tensor  # (C, C, 3, 3), or (C, C) for a state of two dimensions

    def map(self, seed: int, mean: float = 0.0) -> Tensor:
        """A map of values that the dtype holds exactly."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(self.x.shape, generator=generator, dtype=torch.float64) + mean).to(self.dtype).double()

    def vector(self, seed: int, rows: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = (
            torch.randn(rows, self.setting.channels, generator=generator, dtype=torch.float64).to(self.dtype).double()
        )
        return values[0] if rows == 1 else values

    def put(self, tensor: Tensor) -> Tensor:
        """A map as the kernels take it: in the problem's dtype, channels innermost."""
        out = empty_maps(1, tensor.to(DEVICE, self.dtype))[0]
        return out.copy_(tensor)

    def new(self) -> Tensor:
        return empty_maps(1, self.x.to(DEVICE, self.dtype))[0]

    def single(self, tensor: Tensor) -> Tensor:
        return tensor.to(DEVICE, torch.float32)

    def conv(self, h: Tensor, weight: Tensor | None = None) -> Tensor:
        weight = self.weight if weight is None else weight
        return (
            F.linear(h, weight) if h.dim() == 2 else F.conv2d(h, weight, padding=self.dilation, dilation=self.dilation)
        )

    def packed(self, transposed: bool = False) -> Tensor:
        weight = (self.weight.transpose(0, 1) if transposed else self.weight).to(DEVICE, self.dtype)
        return weight.contiguous() if weight.dim() == 2 else weight.contiguous(memory_format=torch.channels_last)

    def rows(self, tensor: Tensor) -> Tensor:
        """(P, C)."""
        return tensor if tensor.dim() == 2 else tensor.permute(0, 2, 3, 1).reshape(-1, tensor.shape[1])

    def by_channel(self, vector: Tensor) -> Tensor:
        return vector if self.x.dim() == 2 else vector[None, :, None, None]

    def new_tiles(self, rows: int) -> Tensor:
        return torch.empty(self.setting.tiles, rows, self.setting.channels, device=DEVICE)

    def tile_sums(self, tensor: Tensor) -> Tensor:
        """(tiles, C) sums over the pixels of each tile."""
        return torch.stack([part.sum(0) for part in self.rows(tensor).split(self.setting.conv.block_pixels)])


def problem(
    shape: tuple[int, ...],
    dilation: int = 1,
    dtype: torch.dtype = torch.float32,
    conv: ConvTile | None = None,
    weight_gradient: WeightGradientTile | None = None,
    precision: str = "ieee",
) -> Problem:
    generator = torch.Generator().manual_seed(1)
    channels = shape[1]
    own = configurations.device_named("interpreter", (0, 0))
    conv = conv or ConvTile(64, 32, 32, 4, 2)
    weight_gradient = weight_gradient or WeightGradientTile(32, 64, 32, 4, 2)
    setting = make_setting(own, shape, dtype, precision, 2, DEVICE.type == "cpu", conv, weight_gradient)
    size = (channels, channels, 3, 3) if len(shape) == 4 else (channels, channels)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).double()
    weight = torch.randn(size, generator=generator, dtype=torch.float64) / (setting.taps * channels) ** 0.5
    return Problem(setting, dilation, dtype, x, weight.to(dtype).double())


def tolerance(p: Problem) -> float:
    # triton's interpreter cuts float32 to bfloat16 instead of rounding
    return {torch.float32: 1e-6, torch.float16: 2 * UNIT[torch.float16]}.get(p.dtype, 4 * UNIT[torch.bfloat16])


def close(p: Problem, got: Tensor, expected: Tensor) -> None:
    assert relative(got.cpu(), expected) <= tolerance(p)


def affine_of(p: Problem, seed: int) -> Tensor:
    """(3, C): mean, scale, beta."""
    vectors = p.vector(seed, 3)
    vectors[1] = vectors[1].abs() + 0.5
    return vectors


def normalised(p: Problem, z: Tensor, affine: Tensor) -> Tensor:
    mean, scale, beta = (p.by_channel(vector) for vector in affine)
    return (z - mean) * scale + beta


def rounded(p: Problem, value: Tensor) -> Tensor:
    return value.to(p.dtype).double()


@pytest.mark.parametrize("batch,channels,height,width,dilation", SHAPES)
def test_forward_with_bias_inject_skip_and_relu(
    batch: int, channels: int, height: int, width: int, dilation: int
) -> None:
    p = problem((batch, channels, height, width), dilation)
    bias, inject, skip, out = p.vector(2), p.map(3), p.map(4), p.new()
    launch.conv3x3(
        p.setting, dilation, Operand(p.put(p.x)), p.packed(), out, bias=bias.to(DEVICE, p.dtype), add_a=p.put(inject),
        add_b=p.put(skip), relu=True,
    ).run()  # fmt: skip
    close(p, out, torch.relu(p.conv(p.x) + p.by_channel(bias) + inject + skip))


@pytest.mark.parametrize("batch,channels,height,width,dilation", SHAPES)
def test_normalised_on_load_with_statistics(batch: int, channels: int, height: int, width: int, dilation: int) -> None:
    relu = batch != 2
    p = problem((batch, channels, height, width), dilation)
    z, affine = p.map(2), affine_of(p, 3)
    statistics, out = p.new_tiles(2), p.new()
    launch.conv3x3(
        p.setting, dilation, Operand(p.put(z), p.single(affine), relu), p.packed(), out, statistics=statistics
    ).run()
    h = normalised(p, z, affine)
    expected = p.conv(torch.relu(h) if relu else h)  # conv2d pads the normalised map with zeros
    close(p, out, expected)
    parts = p.rows(out.cpu().double()).split(p.setting.conv.block_pixels)
    mean = torch.stack([part.mean(0) for part in parts])
    squares = torch.stack([(part - part.mean(0)).square().sum(0) for part in parts])
    assert relative(statistics[:, 0].cpu(), mean) < 1e-6
    assert relative(statistics[:, 1].cpu(), squares) < 1e-5


@pytest.mark.parametrize("batch,channels,height,width,dilation", SHAPES)
def test_known_norm_in_the_epilogue(batch: int, channels: int, height: int, width: int, dilation: int) -> None:
    p = problem((batch, channels, height, width), dilation)
    affine, skip, pre_norm, out = affine_of(p, 3), p.map(4), p.new(), p.new()
    launch.conv3x3(
        p.setting, dilation, Operand(p.put(p.x)), p.packed(), out, pre_norm=pre_norm, out_affine=p.single(affine),
        add_b=p.put(skip), relu=True,
    ).run()  # fmt: skip
    close(p, pre_norm, p.conv(p.x))
    close(p, out, torch.relu(normalised(p, rounded(p, p.conv(p.x)), affine) + skip))


def input_gradient(p: Problem, grad: Tensor) -> Tensor:
    if grad.dim() == 2:
        return grad @ p.weight
    return torch.ops.aten.convolution_backward(
        grad, p.x, p.weight, None, [1, 1], [p.dilation] * 2, [p.dilation] * 2, False, [0, 0], 1, [True, False, False]
    )[0]


@pytest.mark.parametrize("batch,channels,height,width,dilation", SHAPES)
def test_input_gradient_with_mask_and_sums(batch: int, channels: int, height: int, width: int, dilation: int) -> None:
    p = problem((batch, channels, height, width), dilation)
    grad, skip_grad, state, out = p.map(2), p.map(3), torch.relu(p.map(4)), p.new()
    sums = p.new_tiles(1).fill_(3.0)
    launch.conv3x3(
        p.setting, dilation, Operand(p.put(grad)), p.packed(transposed=True), out, flip=True, add_a=p.put(skip_grad),
        mask=Operand(p.put(state)), sums=Sums(sums, accumulate=True),
    ).run()  # fmt: skip
    expected = torch.where(state > 0, input_gradient(p, grad) + skip_grad, 0.0)
    close(p, out, expected)
    assert relative(sums[:, 0].cpu(), 3.0 + p.tile_sums(expected)) < 1e-5


@pytest.mark.parametrize("batch,channels,height,width,dilation", SHAPES)
def test_input_gradient_through_a_norm_on_load(
    batch: int, channels: int, height: int, width: int, dilation: int
) -> None:
    p = problem((batch, channels, height, width), dilation)
    grad, z, before, coefficients = p.map(2), p.map(3), p.map(4), p.vector(5, 4)
    affine, sums, dz, out = affine_of(p, 6), p.new_tiles(2), p.new(), p.new()
    through = NormGradient(p.put(z), p.single(coefficients), dz)
    launch.conv3x3(
        p.setting, dilation, Operand(p.put(grad)), p.packed(transposed=True), out, flip=True, through_norm=through,
        mask=Operand(p.put(before), p.single(affine), True), sums=Sums(sums, p.put(before), p.single(affine)),
    ).run()  # fmt: skip
    a, b, d, mean = (p.by_channel(vector) for vector in coefficients)
    expected_dz = a * grad + b * (z - mean) + d
    expected = torch.where(normalised(p, before, affine) > 0, input_gradient(p, expected_dz), 0.0)
    close(p, dz, expected_dz)
    close(p, out, expected)
    centred = expected * (before - p.by_channel(affine[0]))
    assert relative(sums[:, 0].cpu(), p.tile_sums(expected)) < 1e-5
    assert relative(sums[:, 1].cpu(), p.tile_sums(centred)) < 1e-5


def weight_gradient_of(p: Problem, grad: Tensor, h: Tensor) -> Tensor:
    if grad.dim() == 2:
        return grad.t() @ h
    return torch.ops.aten.convolution_backward(
        grad, h, p.weight, None, [1, 1], [p.dilation] * 2, [p.dilation] * 2, False, [0, 0], 1, [False, True, False]
    )[1]


def stacked(p: Problem, maps: list[Tensor]) -> Tensor:
    out = empty_maps(len(maps), p.new())
    for slot, tensor in zip(out, maps, strict=True):
        slot.copy_(tensor)
    return out


def weight_gradient(p: Problem, runs: list[tuple[Series, Series, int]]) -> Tensor:
    """The reduced gradient of several runs, carried from one to the next, and no partial sum left unwritten."""
    partial = torch.full((p.setting.splits, p.setting.channels, p.setting.columns), torch.nan, device=DEVICE)
    for number, (grads, inputs, count) in enumerate(runs):
        launch.weight_gradient(p.setting, p.dilation, grads, inputs, partial, count, carry=number > 0).run()
    out = torch.empty_like(p.weight.to(DEVICE, p.dtype))
    launch.weight_gradient_reduce(p.setting, partial, out).run()
    return out


@pytest.mark.parametrize("batch,channels,height,width,dilation", SHAPES)
def test_weight_gradient_over_iterations(batch: int, channels: int, height: int, width: int, dilation: int) -> None:
    p = problem((batch, channels, height, width), dilation)
    grads, inputs = [p.map(seed) for seed in (2, 3, 4)], [p.map(seed) for seed in (5, 6, 7)]
    # iterations 1 and 2 first, with a last gradient and a first input that lie elsewhere; then iteration 0
    late = Series(stacked(p, [grads[1], torch.full_like(p.x, torch.nan)]), last=p.put(grads[2]))
    runs = [
        (late, Series(stacked(p, [inputs[2]]), first=p.put(inputs[1])), 2),
        (Series(stacked(p, [grads[0]])), Series(stacked(p, [inputs[0]])), 1),
    ]
    expected = sum(weight_gradient_of(p, g, h) for g, h in zip(grads, inputs, strict=True))
    assert isinstance(expected, Tensor)
    close(p, weight_gradient(p, runs), expected)


@pytest.mark.parametrize("batch,channels,height,width,dilation", SHAPES)
def test_weight_gradient_of_inputs_normalised_on_load(
    batch: int, channels: int, height: int, width: int, dilation: int
) -> None:
    p = problem((batch, channels, height, width), dilation)
    grads, zs, affines = [p.map(2), p.map(3)], [p.map(4), p.map(5)], [affine_of(p, 6), affine_of(p, 7)]
    inputs = Series(stacked(p, zs), affines=p.single(torch.stack(affines)), relu=True)
    got = weight_gradient(p, [(Series(stacked(p, grads)), inputs, 2)])
    hs = [torch.relu(normalised(p, z, affine)) for z, affine in zip(zs, affines, strict=True)]
    close(p, got, weight_gradient_of(p, grads[0], hs[0]) + weight_gradient_of(p, grads[1], hs[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    p = problem((2, 17, 5, 3), 2, dtype)
    out, skip = p.new(), p.map(4)
    launch.conv3x3(p.setting, 2, Operand(p.put(p.x)), p.packed(), out, add_b=p.put(skip), relu=True).run()
    close(p, out, torch.relu(p.conv(p.x) + skip))
    close(
        p,
        weight_gradient(p, [(Series(p.put(skip)[None]), Series(p.put(p.x)[None]), 1)]),
        weight_gradient_of(p, skip, p.x),
    )


@pytest.mark.parametrize(
    "conv,wgrad,parts",
    [((16, 16, 16), (16, 16, 16), 1), ((32, 32, 64), (64, 32, 16), 2), ((128, 64, 16), (16, 256, 64), 2)],
)
def test_any_tile_gives_the_same(conv: tuple[int, int, int], wgrad: tuple[int, int, int], parts: int) -> None:
    p = problem((2, 24, 5, 3), 1, conv=ConvTile(*conv, 4, 2, parts), weight_gradient=WeightGradientTile(*wgrad, 4, 2))
    grad, skip, out, statistics = p.map(2), p.map(3), p.new(), p.new_tiles(2)
    launch.conv3x3(
        p.setting, 1, Operand(p.put(p.x)), p.packed(), out, statistics=statistics, add_a=p.put(skip), relu=True
    ).run()
    close(p, out, torch.relu(p.conv(p.x) + skip))
    parts_of_z = p.rows(p.conv(p.x)).split(p.setting.conv.block_pixels)
    assert relative(statistics[:, 0].cpu(), torch.stack([part.mean(0) for part in parts_of_z])) < 1e-5
    close(
        p,
        weight_gradient(p, [(Series(p.put(grad)[None]), Series(p.put(p.x)[None]), 1)]),
        weight_gradient_of(p, grad, p.x),
    )


@pytest.mark.parametrize("rows,features", [(1, 1), (5, 17), (70, 40)])
def test_linear_layers_are_one_tap(rows: int, features: int) -> None:
    p = problem((rows, features))
    out, grad, back = p.new(), p.map(2), p.new()
    launch.conv3x3(p.setting, 1, Operand(p.put(p.x)), p.packed(), out, relu=True).run()
    close(p, out, torch.relu(p.conv(p.x)))
    launch.conv3x3(p.setting, 1, Operand(p.put(grad)), p.packed(transposed=True), back, flip=True).run()
    close(p, back, input_gradient(p, grad))
    close(
        p,
        weight_gradient(p, [(Series(p.put(grad)[None]), Series(p.put(p.x)[None]), 1)]),
        weight_gradient_of(p, grad, p.x),
    )


def merged(p: Problem, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and (3, C) of the norm after an identity convolution that yields z."""
    channels = p.setting.channels
    identity = torch.zeros(channels, channels, 3, 3, dtype=torch.float64)
    identity[range(channels), range(channels), 1, 1] = 1.0
    weight = identity.to(DEVICE, p.dtype).contiguous(memory_format=torch.channels_last)
    statistics, out = p.new_tiles(2), p.new()
    launch.conv3x3(p.setting, 1, Operand(p.put(z)), weight, out, statistics=statistics).run()
    mean, variance, affine = (torch.empty(1, *size, device=DEVICE) for size in ([channels], [channels], [3, channels]))
    scale, beta = p.single(torch.full((channels,), 2.0)), p.single(torch.full((channels,), 0.5))
    launch.norm_statistics(p.setting, statistics, mean, variance, scale, beta, affine, EPS).run()
    return mean[0].cpu().double(), variance[0].cpu().double(), affine[0].cpu().double()


@pytest.mark.parametrize("mean", [0.0, 1e3, -1e3])
@pytest.mark.parametrize("shape", [(1, 3, 1, 7), (3, 17, 9, 13)])
def test_statistics_survive_a_mean_of_a_thousand_deviations(shape: tuple[int, ...], mean: float) -> None:
    p = problem(shape, conv=ConvTile(16, 32, 32, 4, 2))
    z = p.map(2, mean)
    got_mean, got_variance, affine = merged(p, z)
    variance, expected_mean = torch.var_mean(p.rows(z), 0, correction=0)
    assert float((got_mean - expected_mean).abs().max()) < 1e-7 * (1.0 + abs(mean))
    assert relative(got_variance, variance) < 1e-5
    assert relative(affine[1], 2.0 / (variance + EPS).sqrt()) < 1e-5
    # and the normalised map, where a large mean would cancel
    out = p.new()
    launch.finish_stage(p.setting, p.put(z), p.single(affine), out).run()
    assert relative(out.cpu(), normalised(p, z, affine)) < 1e-6
    exact = (z - p.by_channel(expected_mean)) * 2.0 / p.by_channel((variance + EPS).sqrt()) + 0.5
    assert relative(out.cpu(), exact) < (1e-6 if mean == 0.0 else 1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_norm_gradient_from_sums(training: bool) -> None:
    p = problem((2, 17, 5, 3), conv=ConvTile(16, 32, 32, 4, 2))
    z, grad, gamma = p.map(2, 0.3), p.map(3), p.vector(4).abs() + 0.5
    variance, mean = torch.var_mean(p.rows(z), 0, correction=0)
    leaf, scale, shift = (t.clone().requires_grad_() for t in (z, gamma, torch.zeros_like(gamma)))
    F.batch_norm(leaf, mean.clone(), variance.clone(), scale, shift, training=training, eps=EPS).backward(grad)
    affine = torch.stack([mean, gamma / (variance + EPS).sqrt(), torch.zeros_like(gamma)])
    channels = p.setting.channels
    sums = Sums(p.new_tiles(2), p.put(z), p.single(affine))
    launch.gradient_sums(p.setting, p.put(grad), sums).run()
    coefficients = torch.empty(4, channels, device=DEVICE)
    to_weight, to_bias, to_conv = (torch.full((channels,), 7.0, device=DEVICE) for _ in range(3))
    launch.merge_gradient_sums(
        p.setting, sums, p.single(variance), coefficients, to_weight, to_bias, to_conv, True, EPS, training
    ).run()
    out = p.new()
    launch.norm_gradient(p.setting, p.put(grad), p.put(z), coefficients, out).run()
    assert leaf.grad is not None and scale.grad is not None and shift.grad is not None
    close(p, out, leaf.grad)
    assert relative(to_weight.cpu(), scale.grad) < 2e-6 and relative(to_bias.cpu(), shift.grad) < 1e-6
    conv_bias = p.rows(leaf.grad).sum(0)
    assert float((to_conv.cpu() - 7.0 - conv_bias).abs().max()) < 1e-4


@pytest.mark.parametrize("relu", [True, False])
def test_finished_stage(relu: bool) -> None:
    p = problem((2, 17, 5, 3))
    z, affine, inject, skip, out = p.map(2), affine_of(p, 3), p.map(4), p.map(5), p.new()
    launch.finish_stage(p.setting, p.put(z), p.single(affine), out, p.put(inject), p.put(skip), relu).run()
    expected = normalised(p, z, affine) + inject + skip
    close(p, out, torch.relu(expected) if relu else expected)


def test_nan_stays_and_padding_holds_none() -> None:
    """A NaN reaches the outputs whose taps read it and no other; ReLU keeps it."""
    p = problem((1, 3, 5, 7), 2)
    x = p.x.clone()
    x[0, 1, 2, 3] = torch.nan
    out = p.new()
    launch.conv3x3(p.setting, 2, Operand(p.put(x)), p.packed(), out, relu=True).run()
    assert torch.equal(out.cpu().isnan(), p.conv(x).isnan())
    # memory around the map is NaN; it must not be read as padding
    room = torch.full((3, *p.x.shape), torch.nan, device=DEVICE).contiguous()
    room = room.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    room[1].copy_(p.x)
    launch.conv3x3(p.setting, 2, Operand(room[1]), p.packed(), out).run()
    close(p, out, p.conv(p.x))


def test_launches_are_repeatable_and_write_only_their_outputs() -> None:
    p = problem((2, 17, 5, 3))
    x, skip, weight = p.put(p.x), p.put(p.map(2)), p.packed()
    before = [tensor.clone() for tensor in (x, skip, weight)]
    results: list[Any] = []
    for _ in range(2):
        out = p.new()
        launch.conv3x3(p.setting, 1, Operand(x), weight, out, add_b=skip, relu=True).run()
        results.append((out, weight_gradient(p, [(Series(skip[None]), Series(x[None]), 1)])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, skip, weight), strict=True))
