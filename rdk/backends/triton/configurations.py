"""Tile shapes as data: reads configurations.json; called by setting.py, written by rdk.tune, listed by report.py.

An entry says for which device, arithmetic ("half", "tf32" or "ieee"), channels and pixels (batch times map) it was chosen.
The nearest entry serves a problem: the device's own list where its name is known, else that of a device of the same compute
capability, else the conservative "default", which fits every device from compute capability 8.0 on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from math import log2
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
FILE = "configurations.json"
# a doubling of channels counts as much as two of pixels: channels decide the shape of a tile, pixels only how many there are
CHANNEL_WEIGHT = 2.0


@dataclass(frozen=True)
class ConvTile:
    """conv3x3_kernel: pixels by output channels of one program, input channels per step, parts of the epilogue."""

    block_pixels: int
    block_out: int
    block_in: int
    warps: int
    stages: int
    parts: int = 1


@dataclass(frozen=True)
class WeightGradientTile:
    """weight_gradient_kernel: output channels by (tap, channel) columns of one program, pixels per step."""

    block_out: int
    block_columns: int
    block_pixels: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Numbers:
    """What else is tuned; one set per device."""

    multiprocessors: int  # used where PyTorch cannot say, and by the model in report.py
    run_pixels: int  # weight gradients gather iterations until they have this many pixels …
    run_iterations: int  # … but at most this many iterations
    split_programs: int  # weight gradient programs that one multiprocessor is taken to hold
    split_cost_pixels: int  # pixels whose products take as long as reading and writing one split's sums
    norm_gradient_on_load_bytes: (
        int  # maps up to this size go through BatchNorm's backward on load, larger ones in a pass
    )
    norm_gradient_on_load_out: int  # output channels of such a program at most: it holds more, and wider ones spill
    unaligned_block: int  # widest block, and channels or pixels per step, where rows are no multiples of 16 bytes: such
    unaligned_step: int  # operands come element by element through registers, and larger tiles spill
    pointwise_elements: int  # elements per program of pointwise kernels
    merge_tiles: int  # tiles and channels per step of kernels that merge per-tile sums
    merge_channels: int
    pointwise_warps: int
    merge_warps: int
    reduce_elements: int  # elements per program of the reduction over splits


@dataclass(frozen=True)
class Entry:
    """One tile and the problem it was chosen for."""

    arithmetic: str
    channels: int
    pixels: int
    origin: str  # "arithmetic" or "measured"
    tile: ConvTile | WeightGradientTile


@dataclass(frozen=True)
class Device:
    """The configurations of one device."""

    name: str
    capability: tuple[int, int]
    numbers: Numbers
    conv: tuple[Entry, ...]
    weight_gradient: tuple[Entry, ...]


def as_text(devices: tuple[Device, ...]) -> str:
    """The file's text: one tile a line, so that a change of one shows as one line."""
    blocks = []
    for device in devices:
        lines = [f'   "device": {json.dumps(device.name)},', f'   "capability": {json.dumps(list(device.capability))},']
        lines.append(f'   "numbers": {json.dumps(asdict(device.numbers))},')
        for name, entries in (("conv", device.conv), ("weight_gradient", device.weight_gradient)):
            tiles = ",\n".join(f"    {json.dumps(asdict(entry))}" for entry in entries)
            lines.append(f'   "{name}": [\n{tiles}\n   ]{"," if name == "conv" else ""}')
        blocks.append("  {\n" + "\n".join(lines) + "\n  }")
    return f'{{\n "format": {FORMAT},\n "devices": [\n' + ",\n".join(blocks) + "\n ]\n}\n"


def path() -> Path:
    """The file in the package."""
    return Path(str(resources.files("rdk.backends.triton"))) / FILE


@lru_cache(maxsize=None)
def devices() -> tuple[Device, ...]:
    """Every device of the shipped file."""
    return parse(json.loads(path().read_text(encoding="utf-8")))


def parse(table: dict[str, Any]) -> tuple[Device, ...]:
    """The devices of a table. Raises ValueError for one of another format."""
    if table.get("format") != FORMAT:
        raise ValueError(f"rdk: {FILE} has format {table.get('format')!r}; expected {FORMAT}. Reinstall rdk.")
    return tuple(
        Device(
            name=device["device"],
            capability=(device["capability"][0], device["capability"][1]),
            numbers=Numbers(**device["numbers"]),
            conv=tuple(_entry(entry, ConvTile) for entry in device["conv"]),
            weight_gradient=tuple(_entry(entry, WeightGradientTile) for entry in device["weight_gradient"]),
        )
        for device in table["devices"]
    )


def _entry(entry: dict[str, Any], kind: type[ConvTile] | type[WeightGradientTile]) -> Entry:
    return Entry(entry["arithmetic"], entry["channels"], entry["pixels"], entry["origin"], kind(**entry["tile"]))


def device_named(name: str, capability: tuple[int, int]) -> Device:
    """The device's own configurations, those of one of its capability, or the default. ROCm's GPUs, whose capabilities are other
    numbers, have their own or the default."""
    for device in devices():
        if device.name == name:
            return device
    for device in devices() if torch.version.hip is None else ():
        if device.capability == capability and device.name not in ("default", "interpreter"):
            return device
    return next(device for device in devices() if device.name == "default")


@lru_cache(maxsize=None)
def present_device(device: torch.device) -> Device:
    """The configurations for a device of this machine; a CPU means Triton's interpreter."""
    if device.type == "cuda":
        return device_named(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    return device_named("interpreter", (0, 0))


def nearest(entries: tuple[Entry, ...], arithmetic: str, channels: int, pixels: int) -> Entry:
    """The entry chosen for the problem most like this one; of equals that of most channels, whose tile reads least."""

    def distance(entry: Entry) -> tuple[float, int]:
        far = CHANNEL_WEIGHT * abs(log2(entry.channels / channels)) + abs(log2(entry.pixels / pixels))
        return round(far, 9), -entry.channels

    return min((entry for entry in entries if entry.arithmetic == arithmetic), key=distance)
