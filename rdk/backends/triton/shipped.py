"""Every launch that a shipped configuration stands for, on tensors without data; listed by report.py, compiled by the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rdk.backends.triton import configurations, launch
from rdk.backends.triton.configurations import Device, Entry
from rdk.backends.triton.launch import Launch, NormGradient, Operand, Series, Sums
from rdk.backends.triton.setting import Setting, make_setting

# a device's own configurations are compiled for it; the default serves every device from capability 8.0 on
CAPABILITIES = {"default": (80, 90, 100), "NVIDIA H200": (90,)}
FORWARD = ("forward", "measuring", "normalising", "known norm")
BACKWARD = ("input gradient", "input gradient to a norm", "input gradient through a norm")
WEIGHT_GRADIENT = ("weight gradient", "weight gradient, normalising")
AROUND_NORMS = ("finish", "norm gradient", "gradient sums", "statistics", "sums to gradients", "reduction")


# what entries serve that were chosen for something else: channels, whether linear, dtype, and what is said of it after the use
OTHERS = (
    (96, False, torch.bfloat16, ""),
    (192, False, torch.bfloat16, ""),
    (256, True, torch.bfloat16, " of a linear layer"),
    (128, False, torch.float16, " in float16"),
    (300, False, torch.bfloat16, ""),  # rows of 600 bytes, no multiple of 16
)
USES_OF_OTHERS = ("forward", "input gradient through a norm", "weight gradient, normalising")
PIXELS_OF_OTHERS = 65536


class Shipped(NamedTuple):
    """One thing to compile: a device's entry in one of its uses."""

    device: str
    capability: int
    arithmetic: str
    channels: int
    pixels: int
    use: str
    origin: str  # of the tile: see configurations.Entry
    launch: Launch


def dtype_of(arithmetic: str) -> torch.dtype:
    return torch.bfloat16 if arithmetic == "half" else torch.float32


def all_shipped(capabilities: dict[str, tuple[int, ...]] | None = None) -> Iterator[Shipped]:
    """The full matrix, or that of the devices and capabilities given."""
    for device in configurations.devices():
        for capability in (capabilities or CAPABILITIES).get(device.name, ()):
            for entry in device.conv:
                yield from _of_entry(device, capability, entry, (*FORWARD, *BACKWARD))
            for entry in device.weight_gradient:
                yield from _of_entry(device, capability, entry, WEIGHT_GRADIENT)
            yield from _of_entry(device, capability, device.conv[1], AROUND_NORMS)
            yield from _of_others(device, capability)


def _of_entry(device: Device, capability: int, entry: Entry, uses: tuple[str, ...]) -> Iterator[Shipped]:
    precision = "tf32" if entry.arithmetic == "tf32" else "ieee"
    dtype, count = dtype_of(entry.arithmetic), device.numbers.multiprocessors
    setting = make_setting(device, (entry.pixels // 64, entry.channels, 8, 8), dtype, precision, count)
    for use in uses:
        built = launch_of(setting, dtype, use)
        yield Shipped(device.name, capability, entry.arithmetic, entry.channels, entry.pixels, use, entry.origin, built)


def _of_others(device: Device, capability: int) -> Iterator[Shipped]:
    pixels = PIXELS_OF_OTHERS
    for channels, linear, dtype, said in OTHERS:
        shape = (pixels, channels) if linear else (pixels // 64, channels, 8, 8)
        setting = make_setting(device, shape, dtype, "exact", device.numbers.multiprocessors)
        for use in USES_OF_OTHERS:
            entries = device.weight_gradient if use in WEIGHT_GRADIENT else device.conv
            origin = configurations.nearest(entries, "half", channels, pixels).origin
            built = launch_of(setting, dtype, use)
            yield Shipped(device.name, capability, "half", channels, pixels, use + said, origin, built)


def launch_of(setting: Setting, dtype: torch.dtype, use: str, dilation: int = 1) -> Launch:
    """The launch of one use with all that can ride on it; its tensors have sizes but hold no data."""
    channels = setting.channels

    def empty(*sizes: int, of: torch.dtype = torch.float32) -> Tensor:
        return _stand_in(sizes, of)

    def a_map() -> Tensor:
        return empty(setting.pixels, channels, of=dtype)

    weight = empty(channels, setting.taps, channels, of=dtype)
    bias, affine, coefficients = empty(channels, of=dtype), empty(3, channels), empty(4, channels)
    rows = empty(1, channels)
    partial = empty(setting.splits, channels, setting.columns)
    pair, affines = empty(2, setting.pixels, channels, of=dtype), empty(2, 3, channels)
    one, two = empty(setting.tiles, 1, channels), empty(setting.tiles, 2, channels)
    plain, normed = Operand(a_map()), Operand(a_map(), affine, True)
    summed = Sums(two, a_map(), affine)
    if use == "forward":
        return launch.conv3x3(
            setting, dilation, plain, weight, a_map(), bias=bias, add_a=a_map(), add_b=a_map(), relu=True
        )
    if use == "measuring":
        return launch.conv3x3(setting, dilation, plain, weight, a_map(), bias=bias, statistics=two)
    if use == "normalising":
        return launch.conv3x3(setting, dilation, normed, weight, a_map(), bias=bias, statistics=two)
    if use == "known norm":
        return launch.conv3x3(
            setting, dilation, plain, weight, a_map(), bias=bias, pre_norm=a_map(), out_affine=affine, add_a=a_map(),
            add_b=a_map(), relu=True,
        )  # fmt: skip
    if use == "input gradient":
        return launch.conv3x3(
            setting,
            dilation,
            plain,
            weight,
            a_map(),
            flip=True,
            add_a=a_map(),
            add_b=a_map(),
            mask=plain,
            sums=Sums(one),
        )
    if use in ("input gradient to a norm", "input gradient through a norm"):
        through = NormGradient(a_map(), coefficients, a_map()) if use.endswith("through a norm") else None
        return launch.conv3x3(
            setting, dilation, plain, weight, a_map(), flip=True, through_norm=through, add_a=a_map(), add_b=a_map(),
            mask=normed, sums=summed,
        )  # fmt: skip
    if use == "weight gradient":
        return launch.weight_gradient(
            setting, dilation, Series(pair, last=a_map()), Series(pair, first=a_map()), partial, 2, True
        )
    if use == "weight gradient, normalising":
        inputs = Series(pair, affines=affines, relu=True)
        return launch.weight_gradient(setting, dilation, Series(pair), inputs, partial, 2, True)
    if use == "finish":
        return launch.finish_stage(setting, a_map(), affine, a_map(), a_map(), a_map(), True)
    if use == "norm gradient":
        return launch.norm_gradient(setting, a_map(), a_map(), coefficients, a_map())
    if use == "gradient sums":
        return launch.gradient_sums(setting, a_map(), summed)
    if use == "statistics":
        return launch.norm_statistics(setting, two, rows, rows, rows, rows, affines[:1], 1e-5)
    if use == "sums to gradients":
        vector = rows[0]
        return launch.merge_gradient_sums(
            setting, summed, vector, coefficients, vector, vector, vector, True, 1e-5, True
        )
    if use == "reduction":
        out = empty(channels, channels, 3, 3, of=dtype)
        return launch.weight_gradient_reduce(setting, partial, out)
    raise ValueError(f"rdk: no launch is called {use!r}.")


def _stand_in(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of these sizes on one aligned element: never read, only asked for its type, address and strides."""
    return torch.empty(1, dtype=dtype).as_strided(sizes, [0] * len(sizes))
