"""`python -m benchmarks.triton_floors`: what bounds each Triton launch of a workload's convolution; a table of docs/kernels.md.

    --write PATH   rewrite the table between its markers in that file (docs/kernels.md)

Needs triton and no GPU: how many programs a multiprocessor holds is read from kernels compiled ahead of time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.workloads import WORKLOADS, Case
from rdk import documents
from rdk.backends.triton import configurations, interpreting, shipped
from rdk.backends.triton.build import INTERPRETED, compile_ahead
from rdk.backends.triton.setting import Setting, ceil_div, make_setting

# of the model: NVIDIA H200; measured there: the product rate and the copy; assumed: the L2 rate
TENSOR_FLOPS = 790e12
HBM_BYTES = 4.3e12
L2_BYTES = 5.6e12
MODEL_DEVICE = "NVIDIA H200"
# of one multiprocessor; a block takes 1 KiB of shared memory beside its own
REGISTERS, THREADS, SHARED = 65_536, 2_048, 233_472


class LaunchFloor(NamedTuple):
    """Arithmetic of one launch: microseconds that each resource alone would take, at full rate."""

    workload: str
    use: str
    flop: float
    hbm_bytes: float
    l2_bytes: float
    programs: int
    resident: int  # programs that one multiprocessor holds, by registers, threads and shared memory

    @property
    def waves(self) -> float:
        return self.programs / (
            self.resident * configurations.device_named(MODEL_DEVICE, (9, 0)).numbers.multiprocessors
        )

    @property
    def times(self) -> dict[str, float]:
        """Tensor cores (with the last wave's idle multiprocessors), L2 and HBM, in microseconds."""
        return {
            "tensor cores": self.flop / TENSOR_FLOPS * max(ceil(self.waves) / self.waves, 1.0) * 1e6,
            "L2": self.l2_bytes / L2_BYTES * 1e6,
            "HBM": self.hbm_bytes / HBM_BYTES * 1e6,
        }


def headline_cases() -> list[Case]:
    """One case of each workload and map: the model speaks of one convolution, whatever the iterations."""
    return [workload.case(workload.headline[-1], size) for workload in WORKLOADS.values() for size in workload.maps]


def floors(cases: Iterable[Case]) -> Iterator[LaunchFloor]:
    """For a bf16 convolution of each case its forward, input gradient and weight gradient, with what rides on them."""
    device = configurations.device_named(MODEL_DEVICE, (9, 0))
    for case in cases:
        setting = make_setting(device, case.shape, torch.bfloat16, "exact", device.numbers.multiprocessors)
        norm, name = case.norm, case.label.rsplit(" ", 1)[0]
        map_bytes, weight_bytes = 2 * case.map_elements, 2 * setting.columns * setting.channels
        forward, backward = ("normalising", "input gradient") if norm else ("forward", "input gradient")
        weights = "weight gradient, normalising" if norm else "weight gradient"
        extra = 0.0 if norm or case.kind == "conv" else 0.5  # every second convolution adds a skip
        for use, maps in ((forward, 2 + extra), (backward, 3 + 2 * extra)):
            resident, programs = _residency(setting, use, case.dilation)
            yield LaunchFloor(
                name, use, case.conv_flop, maps * map_bytes + weight_bytes,
                _conv_l2_bytes(setting) + (maps - 1) * map_bytes, programs, resident,
            )  # fmt: skip
        resident, programs = _residency(setting, weights, case.dilation)
        partials = 4 * setting.splits * setting.columns * setting.channels
        yield LaunchFloor(
            name,
            weights,
            case.conv_flop,
            2 * map_bytes,
            _weight_gradient_l2_bytes(setting) + 2 * partials,
            programs,
            resident,
        )


def _residency(setting: Setting, use: str, dilation: int) -> tuple[int, int]:
    launched = shipped.launch_of(setting, torch.bfloat16, use, dilation)
    built = compile_ahead(launched, 90)
    threads = 32 * launched.warps
    per_thread = 8 * ceil_div(built.registers, 8)
    return min(
        REGISTERS // (per_thread * threads), THREADS // threads, SHARED // (built.shared_bytes + 1024)
    ), launched.grid


def _conv_l2_bytes(setting: Setting) -> float:
    """Operands of every program: its pixels and its weights at every tap."""
    tile = setting.conv
    programs = setting.tiles * ceil_div(setting.channels, tile.block_out)
    return 2.0 * programs * setting.taps * setting.channels * (tile.block_pixels + tile.block_out)


def _weight_gradient_l2_bytes(setting: Setting) -> float:
    tile = setting.weight_gradient
    programs = ceil_div(setting.channels, tile.block_out) * ceil_div(setting.columns, tile.block_columns)
    return 2.0 * programs * setting.pixels * (tile.block_out + tile.block_columns)


def floor_table(found: Iterable[LaunchFloor]) -> str:
    """The model's table: arithmetic, no measurement."""
    lines = [
        "| workload | launch | GFLOP | HBM MB | L2 MB | FLOP per L2 byte | programs | resident per SM | waves | tensor cores µs "
        "| L2 µs | HBM µs | bound by | predicted at least µs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        times = f.times
        bound = max(times, key=lambda name: times[name])
        lines.append(
            f"| {f.workload} | {f.use} | {f.flop / 1e9:.1f} | {f.hbm_bytes / 1e6:.1f} | {f.l2_bytes / 1e6:.0f} "
            f"| {f.flop / f.l2_bytes:.0f} | {f.programs} | {f.resident} | {f.waves:.2f} | {times['tensor cores']:.1f} "
            f"| {times['L2']:.1f} | {times['HBM']:.1f} | {bound} | {times[bound]:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_floors", description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, metavar="PATH", help="rewrite the table of that file")
    chosen = parser.parse_args(arguments)
    if interpreting():
        print(INTERPRETED, file=sys.stderr)
        return 1
    documents.publish({"floors": floor_table(floors(headline_cases()))}, chosen.write)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
