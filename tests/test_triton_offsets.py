"""Weight gradients of iterations that lie more than 2**31 elements apart, in address space that holds nothing else: interpreted."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rdk.backends.triton import configurations, interpreting, launch
from rdk.backends.triton.configurations import ConvTile, WeightGradientTile
from rdk.backends.triton.launch import Series
from rdk.backends.triton.setting import make_setting
from rdk.testing import relative

APART = 2**30 + 16  # elements: three iterations pass 2**31, and no one number does


def maps_far_apart(count: int, *shape: int) -> list[Tensor]:
    """Maps of bfloat16 at APART elements each; pages that nobody touches take no memory."""
    elements = torch.Size(shape).numel()
    size = 2 * (APART * (count - 1) + elements)
    try:
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        pytest.skip(f"no address space of {size} bytes here: {error}")
    # each of a storage of its own: the interpreter copies every storage that it is given
    parts = [torch.frombuffer(room, dtype=torch.bfloat16, count=elements, offset=2 * APART * t) for t in range(count)]
    return [part.view(shape).copy_(torch.randn(shape)) for part in parts]


@pytest.mark.skipif(not interpreting(), reason="gives the interpreter addresses of the CPU")
def test_iterations_more_than_two_to_the_thirty_one_elements_apart() -> None:
    own = configurations.device_named("interpreter", (0, 0))
    tiles = ConvTile(64, 32, 32, 4, 2), WeightGradientTile(16, 32, 16, 4, 2)
    setting = make_setting(own, (6, 3), torch.bfloat16, "exact", 2, True, *tiles)
    grads, inputs = maps_far_apart(3, 6, 3), maps_far_apart(3, 6, 3)
    partial = torch.empty(setting.splits, 3, 3)
    near = launch.weight_gradient(setting, 1, Series(grads[0][None]), Series(inputs[0][None]), partial, 3, False)
    replace(near, arguments=near.arguments | {"grad_stride": APART, "x_stride": APART}).run()
    expected = sum(grad.double().T @ x.double() for grad, x in zip(grads, inputs, strict=True))
    assert relative(partial.sum(0), expected) < 1e-6
