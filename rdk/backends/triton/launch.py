"""Launchers: from tensors to a kernel, its grid and arguments; called by forward.py and gradient.py, compiled ahead by build.py.

A Launch can be run or, by build.py, compiled for a device that is not here: what is checked ahead of time is what runs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdk.backends.triton import kernels, norm_kernels, weight_gradient_kernels
from rdk.backends.triton.setting import Setting, ceil_div


class Operand(NamedTuple):
    """A map as it stands or, with `affine` (3, C), as it is once normalised and, with `relu`, rectified."""

    map: Tensor
    affine: Tensor | None = None
    relu: bool = False


class NormGradient(NamedTuple):
    """What takes a gradient through a norm on load."""

    z: Tensor  # the sum before the norm
    coefficients: Tensor  # (4, C)
    into: Tensor | None  # receives the gradient before the norm


class Sums(NamedTuple):
    """Where per-tile sums of a gradient go, and the sum before the norm and its (3, C) where there is one."""

    into: Tensor  # (tiles, 1 or 2, C) float32
    z: Tensor | None = None
    affine: Tensor | None = None
    accumulate: bool = False


class Series(NamedTuple):
    """One map per iteration of a run, at equal distances in memory; the first may lie elsewhere, the last likewise."""

    maps: Tensor  # (count, *shape); the iterations that do not lie elsewhere
    first: Tensor | None = None
    last: Tensor | None = None
    affines: Tensor | None = None  # (count, 3, C)
    relu: bool = False

    def part(self, start: int, end: int, count: int) -> Series:
        """Iterations start … end-1 of a series of `count`."""
        if (start, end) == (0, count):
            return self
        if start == 0 and end == 1 and self.first is not None:
            return Series(self.first[None], relu=self.relu)
        if start == count - 1 and self.last is not None:
            return Series(self.last[None], relu=self.relu)
        shift = 0 if self.first is None else 1  # maps has no place for a first that lies elsewhere, and one for a last
        maps = self.maps[max(start - shift, 0) : end - shift]
        return Series(
            maps,
            self.first if start == 0 else None,
            self.last if end == count else None,
            None if self.affines is None else self.affines[start:end],
            self.relu,
        )


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it is launched with."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int
    device: torch.device

    def run(self) -> None:
        """Launches on the current stream of the tensors' device, whichever device is current."""
        guard = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with guard:
            key = self._key()
            found = _compiled.get(key)
            if found is not None:
                compiled, order = found
                values = (*self.arguments.values(), *self.constants.values())
                compiled[(self.grid, 1, 1)](*[values[place] for place in order])
                return
            compiled = self.kernel[(self.grid,)](
                **self.arguments, **self.constants, num_warps=self.warps, num_stages=self.stages
            )
            if compiled is not None:  # the interpreter compiles nothing
                names = [*self.arguments, *self.constants]
                _compiled[key] = compiled, [names.index(name) for name in self.kernel.arg_names]

    def _key(self) -> tuple[Any, ...]:
        """All that triton compiles a kernel anew for: no number of ours but its width, of a tensor its type and, where a kernel
        says nothing of it, its alignment."""
        specialised = _specialised(self.kernel)
        kinds = [
            (value.dtype, name in specialised and value.data_ptr() % 16 == 0)
            if isinstance(value, Tensor)
            else value if value is None else type(value) is int and not -(2**31) <= value < 2**31
            for name, value in self.arguments.items()
        ]  # fmt: skip
        return (self.kernel.fn, self.device.index, self.warps, self.stages, *self.constants.values(), *kinds)


# by Launch._key, kernels compiled and the places of their arguments among those of a launch: triton examines every argument
# anew to find the kernel, which takes longer than launching it (docs/kernels.md)
_compiled: dict[tuple[Any, ...], tuple[Any, list[int]]] = {}


@lru_cache(maxsize=None)
def _specialised(kernel: Any) -> frozenset[str]:
    """The arguments that triton compiles anew for when their alignment changes."""
    found = getattr(kernel, "params", [])  # an interpreted kernel has none
    return frozenset(p.name for p in found if not (p.do_not_specialize or p.do_not_specialize_on_alignment))


def _aligned(channels: int, *tensors: Tensor | None) -> bool:
    """Whether every row of every map starts at a multiple of 16 bytes."""
    return all(t is None or (t.data_ptr() % 16 == 0 and channels * t.itemsize % 16 == 0) for t in tensors)


def conv3x3(
    setting: Setting,
    dilation: int,
    source: Operand,
    weight: Tensor,
    out: Tensor,
    *,
    flip: bool = False,
    through_norm: NormGradient | None = None,
    bias: Tensor | None = None,
    pre_norm: Tensor | None = None,
    statistics: Tensor | None = None,
    out_affine: Tensor | None = None,
    add_a: Tensor | None = None,
    add_b: Tensor | None = None,
    relu: bool = False,
    mask: Operand | None = None,
    sums: Sums | None = None,
) -> Launch:
    """out = the 3x3 convolution (or matrix product) of `source` with what rides on it, in the order of the arguments.

    weight: (C out, TAPS, C in) dense; flip takes its taps last first, as the input gradient does.
    """
    tile, channels = setting.conv if through_norm is None else setting.conv_on_load, setting.channels
    arguments = {
        "x_ptr": source.map,
        "weight_ptr": weight,
        "out_ptr": out,
        "affine_ptr": source.affine,
        "z_ptr": through_norm.z if through_norm else None,
        "coefficient_ptr": through_norm.coefficients if through_norm else None,
        "dz_ptr": through_norm.into if through_norm else None,
        "bias_ptr": bias,
        "pre_norm_ptr": pre_norm,
        "statistics_ptr": statistics,
        "out_affine_ptr": out_affine,
        "add_a_ptr": add_a,
        "add_b_ptr": add_b,
        "mask_ptr": mask.map if mask else None,
        "mask_affine_ptr": mask.affine if mask else None,
        "sums_ptr": sums.into if sums else None,
        "sums_z_ptr": sums.z if sums else None,
        "sums_affine_ptr": sums.affine if sums else None,
        "accumulate": int(sums.accumulate) if sums else 0,
        **setting.geometry._asdict(),
        "dilation": dilation,
    }
    maps = ("x_ptr", "weight_ptr", "out_ptr", "z_ptr", "dz_ptr", "pre_norm_ptr", "add_a_ptr", "add_b_ptr", "mask_ptr")
    constants = {
        "C": channels,
        "TAPS": setting.taps,
        "FLIP": flip,
        "X_RELU": source.relu,
        "RELU": relu,
        "PRECISION": setting.precision,
        "WIDEN": setting.widen,
        "ALIGNED": _aligned(channels, *(arguments[name] for name in maps), arguments["sums_z_ptr"]),
        "BLOCK_P": tile.block_pixels,
        "BLOCK_K": tile.block_out,
        "BLOCK_C": tile.block_in,
        "PARTS": tile.parts,
    }
    grid = setting.tiles * ceil_div(channels, tile.block_out)
    return Launch(kernels.conv3x3_kernel, grid, arguments, constants, tile.warps, tile.stages, out.device)


def weight_gradient(
    setting: Setting, dilation: int, grads: Series, inputs: Series, partial: Tensor, iterations: int, carry: bool
) -> Launch:
    """partial (splits, C, TAPS * C) [+]= grads of `iterations` iterations times their inputs, by split of the pixels."""
    tile, channels = setting.weight_gradient, setting.channels
    arguments = {
        "grad_ptr": grads.maps,
        "grad_stride": grads.maps.stride(0),
        "grad_last_ptr": grads.last,
        "x_ptr": inputs.maps,
        "x_stride": inputs.maps.stride(0),
        "x_first_ptr": inputs.first,
        "affine_ptr": inputs.affines,
        "affine_stride": 0 if inputs.affines is None else inputs.affines.stride(0),
        "partial_ptr": partial,
        "iterations": iterations,
        "chunk": setting.split_chunk,
        "carry": int(carry),
        **setting.geometry._asdict(),
        "dilation": dilation,
    }
    constants = {
        "C": channels,
        "TAPS": setting.taps,
        "X_RELU": inputs.relu,
        "PRECISION": setting.precision,
        "WIDEN": setting.widen,
        "ALIGNED": _aligned(channels, grads.maps, grads.last, inputs.maps, inputs.first),
        "BLOCK_K": tile.block_out,
        "BLOCK_N": tile.block_columns,
        "BLOCK_P": tile.block_pixels,
    }
    tiles = ceil_div(channels, tile.block_out) * ceil_div(setting.columns, tile.block_columns)
    return Launch(
        weight_gradient_kernels.weight_gradient_kernel, tiles * setting.splits, arguments, constants, tile.warps, tile.stages,
        partial.device,
    )  # fmt: skip


def weight_gradient_reduce(setting: Setting, partial: Tensor, out: Tensor) -> Launch:
    """out, a weight's gradient (C, C, 3, 3) or (C, C) of any strides, = the sum of the splits."""
    strides = out.stride() if out.dim() == 4 else (*out.stride(), 0, 0)
    names = ("stride_k", "stride_c", "stride_y", "stride_x")
    arguments: dict[str, Any] = dict(zip(names, strides, strict=True))
    arguments |= {"partial_ptr": partial, "out_ptr": out, "splits": partial.shape[0]}
    block = setting.numbers.reduce_elements
    constants = {"C": setting.channels, "TAPS": setting.taps, "BLOCK": block}
    grid = ceil_div(setting.channels * setting.columns, block)
    warps = setting.numbers.pointwise_warps
    return Launch(
        weight_gradient_kernels.weight_gradient_reduce_kernel, grid, arguments, constants, warps, 1, partial.device
    )


def norm_statistics(
    setting: Setting,
    statistics: Tensor | None,
    means: Tensor,
    variances: Tensor,
    weights: Tensor,
    biases: Tensor,
    affines: Tensor,
    eps: float,
) -> Launch:
    """Means and variances (rows, C), merged from `statistics` (tiles, 2, C) of one row or given, to affines (rows, 3, C)."""
    numbers, rows = setting.numbers, means.shape[0]
    arguments = {
        "statistics_ptr": statistics,
        "mean_ptr": means,
        "variance_ptr": variances,
        "weight_ptr": weights,
        "bias_ptr": biases,
        "affine_ptr": affines,
        "tiles": setting.tiles,
        "tile_pixels": setting.conv.block_pixels,
        "pixels": setting.pixels,
        "eps": eps,
    }
    constants = {"C": setting.channels, "BLOCK_T": numbers.merge_tiles, "BLOCK_C": numbers.merge_channels}
    grid = rows * ceil_div(setting.channels, numbers.merge_channels)
    return Launch(norm_kernels.norm_statistics_kernel, grid, arguments, constants, numbers.merge_warps, 1, means.device)


def finish_stage(
    setting: Setting,
    z: Tensor,
    affine: Tensor,
    out: Tensor,
    add_a: Tensor | None = None,
    add_b: Tensor | None = None,
    relu: bool = False,
) -> Launch:
    """out = z normalised, plus the maps given, rectified with relu."""
    arguments = {"z_ptr": z, "affine_ptr": affine, "add_a_ptr": add_a, "add_b_ptr": add_b, "out_ptr": out}
    grid, constants = _pointwise(setting, z, add_a, add_b, out)
    arguments_and_pixels: dict[str, Any] = {**arguments, "pixels": setting.pixels}
    return Launch(
        norm_kernels.finish_stage_kernel, grid, arguments_and_pixels, {**constants, "RELU": relu},
        setting.numbers.pointwise_warps, 1, out.device,
    )  # fmt: skip


def norm_gradient(setting: Setting, grad: Tensor, z: Tensor, coefficients: Tensor, out: Tensor) -> Launch:
    """out = the gradient before a norm, from that after it."""
    grid, constants = _pointwise(setting, grad, z, out)
    arguments = {
        "grad_ptr": grad, "z_ptr": z, "coefficient_ptr": coefficients, "out_ptr": out, "pixels": setting.pixels,
    }  # fmt: skip
    return Launch(
        norm_kernels.norm_gradient_kernel, grid, arguments, constants, setting.numbers.pointwise_warps, 1, out.device
    )


def _pointwise(setting: Setting, *maps: Tensor | None) -> tuple[int, dict[str, Any]]:
    """Grid and constants of a kernel that touches every element once."""
    channels = setting.channels
    block_k = min(128, max(16, 1 << (channels - 1).bit_length()))
    block_p = max(1, setting.numbers.pointwise_elements // block_k)
    grid = ceil_div(setting.pixels, block_p) * ceil_div(channels, block_k)
    return grid, {"C": channels, "ALIGNED": _aligned(channels, *maps), "BLOCK_P": block_p, "BLOCK_K": block_k}


def gradient_sums(setting: Setting, grad: Tensor, sums: Sums) -> Launch:
    """Per-tile sums of a gradient, tiles as conv3x3 has them."""
    tile, channels = setting.conv, setting.channels
    block_k = max(16, min(tile.block_out, setting.numbers.pointwise_elements // tile.block_pixels))
    arguments = {
        "grad_ptr": grad,
        "z_ptr": sums.z,
        "affine_ptr": sums.affine,
        "sums_ptr": sums.into,
        "pixels": setting.pixels,
        "accumulate": int(sums.accumulate),
    }
    constants = {
        "C": channels,
        "ALIGNED": _aligned(channels, grad, sums.z),
        "BLOCK_P": tile.block_pixels,
        "BLOCK_K": block_k,
    }
    grid = setting.tiles * ceil_div(channels, block_k)
    return Launch(
        norm_kernels.gradient_sums_kernel, grid, arguments, constants, setting.numbers.pointwise_warps, 1, grad.device
    )


def merge_gradient_sums(
    setting: Setting,
    sums: Sums,
    variance: Tensor | None,
    coefficients: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    grad_conv_bias: Tensor | None,
    accumulate: bool,
    eps: float,
    training: bool,
) -> Launch:
    """From per-tile sums: a norm's gradients and coefficients (with sums.affine), and the convolution's bias gradient."""
    numbers = setting.numbers
    arguments = {
        "sums_ptr": sums.into,
        "affine_ptr": sums.affine,
        "variance_ptr": variance,
        "coefficient_ptr": coefficients,
        "grad_weight_ptr": grad_weight,
        "grad_bias_ptr": grad_bias,
        "grad_conv_bias_ptr": grad_conv_bias,
        "tiles": setting.tiles,
        "pixels": setting.pixels,
        "eps": eps,
        "accumulate": int(accumulate),
    }
    constants = {
        "C": setting.channels,
        "TRAINING": training,
        "BLOCK_T": numbers.merge_tiles,
        "BLOCK_C": numbers.merge_channels,
    }
    grid = ceil_div(setting.channels, numbers.merge_channels)
    return Launch(
        norm_kernels.merge_gradient_sums_kernel, grid, arguments, constants, numbers.merge_warps, 1, sums.into.device
    )
