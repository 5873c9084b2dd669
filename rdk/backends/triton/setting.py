"""What all launches of one problem share: sizes, tiles, arithmetic; made once per problem, used by forward, gradient and launch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, gcd
from typing import NamedTuple

import torch

from rdk.backends.base import Problem
from rdk.backends.triton import configurations
from rdk.backends.triton.configurations import ConvTile, Numbers, WeightGradientTile


class Geometry(NamedTuple):
    """A map's sizes as the kernels take them, with the constants that divide by height and width."""

    pixels: int
    height: int
    width: int
    height_magic: int
    height_shift: int
    width_magic: int
    width_shift: int


@dataclass(frozen=True)
class Setting:
    """Shared by all launches of a problem."""

    channels: int
    taps: int  # 9, or 1 for a linear layer
    geometry: Geometry
    precision: str  # tl.dot's input_precision
    widen: bool  # the interpreter's matrix product knows float32 only
    conv: ConvTile
    weight_gradient: WeightGradientTile
    numbers: Numbers
    multiprocessors: int

    @property
    def pixels(self) -> int:
        return self.geometry.pixels

    @property
    def conv_on_load(self) -> ConvTile:
        """The tile of a gradient that goes through a norm on load; its pixels are those of the others."""
        return replace(self.conv, block_out=min(self.conv.block_out, self.numbers.norm_gradient_on_load_out))

    @property
    def tiles(self) -> int:
        """Pixel tiles of conv3x3_kernel: rows of statistics and of gradient sums."""
        return ceil_div(self.pixels, self.conv.block_pixels)

    @property
    def columns(self) -> int:
        return self.taps * self.channels

    @cached_property
    def split_chunk(self) -> int:
        """Pixels of one split of a weight gradient, a multiple of its block.

        As many splits as cost least: idle multiprocessors of the last wave against partial sums read and written.
        """
        tile, numbers = self.weight_gradient, self.numbers
        programs = ceil_div(self.channels, tile.block_out) * ceil_div(self.columns, tile.block_columns)
        blocks, slots = ceil_div(self.pixels, tile.block_pixels), numbers.split_programs * self.multiprocessors
        pixels = self.pixels * self.run_length(numbers.run_iterations)

        def cost(splits: int) -> float:
            waves = splits * programs / slots
            return ceil(waves) / waves + numbers.split_cost_pixels * splits / pixels

        splits = min(range(1, min(blocks, 4 * ceil_div(slots, programs)) + 1), key=cost)
        return ceil_div(blocks, splits) * tile.block_pixels

    @property
    def splits(self) -> int:
        return ceil_div(self.pixels, self.split_chunk)

    def run_length(self, iterations: int) -> int:
        """Iterations whose weight gradients are one product."""
        numbers = self.numbers
        return max(1, min(numbers.run_iterations, numbers.run_pixels // self.pixels, iterations))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def divisor(d: int) -> tuple[int, int]:
    """magic and shift with n // d == (2n * magic >> 32) >> shift for every 0 <= n < 2**31.

    Granlund & Montgomery (1994), theorem 4.2 with N = 31.
    """
    shift = (d - 1).bit_length()
    return ceil_div(2 ** (31 + shift), d), shift


def arithmetic_of(dtype: torch.dtype, precision: str) -> str:
    """The key of configurations: "half", "tf32" or "ieee"."""
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    return "tf32" if precision == "tf32" else "ieee"


def built_inputs(problem: Problem) -> list[int]:
    """Stages whose input is built anew in the backward: the result of a norm that adds a map, or is added by a skip later."""
    sources = {stage.skip for stage in problem.stages}
    return [
        number + 1
        for number, stage in enumerate(problem.stages[:-1])
        if stage.norm and (stage.skip is not None or number + 1 in sources or (number == 0 and problem.inject))
    ]


def setting_of(problem: Problem) -> Setting:
    """The setting of a problem."""
    return _setting(problem.shape, problem.dtype, problem.device, problem.precision)


@lru_cache(maxsize=1024)
def _setting(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, precision: str) -> Setting:
    own = configurations.present_device(device)
    multiprocessors = own.numbers.multiprocessors
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return make_setting(own, shape, dtype, precision, multiprocessors, widen=device.type == "cpu")


def make_setting(
    own: configurations.Device,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    precision: str,
    multiprocessors: int,
    widen: bool = False,
    conv: ConvTile | None = None,
    weight_gradient: WeightGradientTile | None = None,
) -> Setting:
    """The setting of a state (N, C, H, W) or (M, F) on a device that need not be here; tiles may be given."""
    batch, channels = shape[:2]
    height, width = shape[2:] if len(shape) == 4 else (1, 1)
    arithmetic = arithmetic_of(dtype, precision)
    pixels = batch * height * width
    if conv is None:
        chosen = configurations.nearest(own.conv, arithmetic, channels, pixels).tile
        assert isinstance(chosen, ConvTile)
        conv = chosen
    if weight_gradient is None:
        found = configurations.nearest(own.weight_gradient, arithmetic, channels, pixels).tile
        assert isinstance(found, WeightGradientTile)
        weight_gradient = found
    taps = 9 if len(shape) == 4 else 1
    widest = max(16, 1 << (channels - 1).bit_length())
    if channels * dtype.itemsize % 16:
        conv, weight_gradient = _for_unaligned_rows(own.numbers, conv, weight_gradient)
    return Setting(
        channels=channels,
        taps=taps,
        geometry=Geometry(pixels, height, width, *divisor(height), *divisor(width)),
        precision="tf32" if arithmetic == "tf32" else "ieee",
        widen=widen,
        conv=_clipped_conv(conv, widest),
        weight_gradient=_clipped_weight_gradient(weight_gradient, channels, taps, widest),
        numbers=own.numbers,
        multiprocessors=multiprocessors,
    )


def _for_unaligned_rows(
    numbers: Numbers, conv: ConvTile, weight_gradient: WeightGradientTile
) -> tuple[ConvTile, WeightGradientTile]:
    """Smaller tiles, and no more stages than two: what comes through registers is not copied ahead."""
    block, step = numbers.unaligned_block, numbers.unaligned_step
    return replace(
        conv,
        block_pixels=min(conv.block_pixels, block),
        block_out=min(conv.block_out, block),
        block_in=min(conv.block_in, step),
        stages=min(conv.stages, 2),
        parts=1,
    ), replace(
        weight_gradient,
        block_out=min(weight_gradient.block_out, block),
        block_columns=min(weight_gradient.block_columns, block),
        block_pixels=min(weight_gradient.block_pixels, step),
        stages=min(weight_gradient.stages, 2),
    )


def _clipped_conv(tile: ConvTile, widest: int) -> ConvTile:
    """No block wider than the channels, rounded up to a power of two (16 at least, which the tensor cores ask for)."""
    return replace(tile, block_out=min(tile.block_out, widest), block_in=min(tile.block_in, widest))


def _clipped_weight_gradient(tile: WeightGradientTile, channels: int, taps: int, widest: int) -> WeightGradientTile:
    """No block wider than there are rows or columns; columns of one tap where 64 of them divide the channels, and no more
    columns than rows for a linear layer: where a map is normalised on load, what exceeds that spills."""
    out = min(tile.block_out, widest)
    columns = min(tile.block_columns, max(16, 1 << (taps * channels - 1).bit_length()))
    within_a_tap = gcd(columns, channels)
    if within_a_tap >= 64:
        columns = within_a_tap
    if taps == 1:
        columns = min(columns, out)
    return replace(tile, block_out=out, block_columns=columns)
