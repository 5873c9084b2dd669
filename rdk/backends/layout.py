"""Memory layout of maps: channels_last inside rdk, the caller's own outside; used by functional, ops, recompute, backends, tune."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_maps(count: int | torch.SymInt, like: Tensor) -> Tensor:
    """An uninitialised (count, *like.shape) tensor whose maps are channels_last (plain rows for a 2-d state)."""
    if like.dim() == 2:
        return like.new_empty((count, *like.shape))
    n, c, h, w = like.shape
    return like.new_empty((count, n, h, w, c)).permute(0, 1, 4, 2, 3)


def channels_last(maps: Tensor) -> Tensor:
    """`maps`, (N, C, H, W), (K, N, C, H, W) or (M, F), with channels innermost; a copy only where they are not."""
    if maps.dim() == 4:
        return maps.contiguous(memory_format=torch.channels_last)
    if maps.dim() == 5:
        return maps.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return maps.contiguous()


def aligned(maps: Tensor) -> Tensor:
    """`maps` at an address that is a multiple of 16 bytes, as vector loads ask for; a copy only where it is not."""
    return maps if maps.data_ptr() % 16 == 0 else maps.clone()


def is_channels_last(state: Tensor) -> bool:
    """Whether the output of nn.Conv2d and a ReLU for this input has channels innermost."""
    return has_channels_innermost(state.shape, state.stride())


def has_channels_innermost(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """As is_channels_last, of a tensor of these sizes and strides: strides ascend in the order C, W, H, N, be it dense or a slice.
    A layout that is both counts as contiguous.

    Source: is_channels_last_strides_2d of c10/core/MemoryFormat.h.
    """
    if len(sizes) != 4:
        return False
    if sizes[1] == 1 or (sizes[2] == 1 and sizes[3] == 1) or strides[1] == 0:
        return False
    step = strides[1] * sizes[1]
    for dimension in (3, 2):
        if strides[dimension] < step:
            return False
        step = strides[dimension] * sizes[dimension]
    return bool(strides[0] >= step)


def dense(state: Tensor) -> Tensor:
    """`state` in one of the two layouts, a copy only where it is in neither."""
    return channels_last(state) if is_channels_last(state) else state.contiguous()


def outside_strides(shape: Sequence[int], like: Tensor) -> tuple[int, ...]:
    """Strides of a dense tensor of `shape` (a state or a stack of states) in the layout that the state `like` has."""
    innermost_first = list(range(len(shape) - 1, -1, -1))
    if is_channels_last(like):
        channel = len(shape) - 3
        innermost_first.remove(channel)
        innermost_first.insert(0, channel)
    strides = [0] * len(shape)
    step = 1
    for dimension in innermost_first:
        strides[dimension] = step
        step = step * max(shape[dimension], 1)
    return tuple(strides)


def empty_outside(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor of `shape` in the layout that the state `like` has."""
    if not is_channels_last(like):
        return like.new_empty(tuple(shape))
    return like.new_empty_strided(tuple(shape), outside_strides(shape, like))


def outside(maps: Tensor, like: Tensor) -> Tensor:
    """`maps` in the layout that the state `like` has; a copy only where that differs."""
    result = channels_last(maps) if is_channels_last(like) else maps.contiguous()
    expected = outside_strides(maps.shape, like)
    # a dimension of size 1 may carry any stride: state the expected one, so that fakes and results agree
    return result if result.stride() == expected else result.as_strided(maps.shape, expected)
