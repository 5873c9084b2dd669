"""`python -m rdk.backends.triton.report`: compiles every shipped configuration and prints what came out; writes docs/kernels.md.

    --write PATH   rewrite the tables between the markers of that file (docs/kernels.md)
    --jobs N       processes that compile (1)

Needs triton and no GPU. Run it in the root of the repository: the workloads are those of benchmarks/workloads.py.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rdk.backends.triton import configurations, shipped
from rdk.backends.triton.build import SHARED_LIMITS, Built, compile_ahead
from rdk.backends.triton.setting import Setting, ceil_div, make_setting

# of the model: NVIDIA H200; measured there: the product rate and the copy; assumed: the L2 rate
TENSOR_FLOPS = 790e12
HBM_BYTES = 4.3e12
L2_BYTES = 5.6e12
MODEL_DEVICE = "NVIDIA H200"
REGISTERS, THREADS, SHARED = (
    65_536,
    2_048,
    233_472,
)  # of one multiprocessor; a block takes 1 KiB of shared memory beside its own


class Row(NamedTuple):
    """One compiled use of a configuration."""

    device: str
    capability: int
    arithmetic: str
    channels: int
    use: str
    tile: str
    warps: int
    stages: int
    origin: str
    built: Built


def build_all(jobs: int) -> list[Row]:
    """Compiles the full matrix."""
    count = sum(1 for _ in shipped.all_shipped())
    if jobs == 1:
        return [_build(number) for number in range(count)]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_build, range(count), chunksize=4))


def _build(number: int) -> Row:
    for position, item in enumerate(shipped.all_shipped()):
        if position == number:
            return row_of(item)
    raise IndexError(number)


def row_of(item: shipped.Shipped) -> Row:
    """Compiles one shipped launch."""
    built = compile_ahead(item.launch, item.capability)
    return Row(
        item.device, item.capability, item.arithmetic, item.channels, item.use, _tile(item.launch.constants),
        item.launch.warps, item.launch.stages, item.origin, built,
    )  # fmt: skip


def _tile(constants: dict[str, Any]) -> str:
    names = ("BLOCK_P", "BLOCK_K", "BLOCK_C", "BLOCK_N", "BLOCK_T", "BLOCK")
    return " × ".join(f"{constants[name]}{name[6:7].lower()}" for name in names if name in constants)


def configuration_table(rows: Iterable[Row]) -> str:
    """What the compiler made of every shipped configuration."""
    lines = [
        "| device | sm | arithmetic | C | use | tile | warps | stages | registers | stack | spills | shared KiB (limit) "
        "| matrix instructions | bytes per load (count) | tile chosen by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        b = row.built
        matrix = ", ".join(f"{count} {name}" for name, count in b.matrix_instructions.items()) or "–"
        loads = ", ".join(f"{size} ({b.load_bytes[size]})" for size in sorted(b.load_bytes, reverse=True))
        lines.append(
            f"| {row.device} | {row.capability} | {row.arithmetic} | {row.channels} | {row.use} | {row.tile} | {row.warps} "
            f"| {row.stages} | {b.registers} | {b.stack_bytes} | {b.spilled} | {b.shared_bytes / 1024:.1f} "
            f"({SHARED_LIMITS[row.capability] // 1024}) | {matrix} | {loads} | {row.origin} |"
        )
    return "\n".join(lines)


class Floor(NamedTuple):
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


def floors(cases: Iterable[Any]) -> Iterator[Floor]:
    """For a bf16 convolution of each case its forward, input gradient and weight gradient, with what rides on them.

    cases: benchmarks/workloads.py's Case.
    """
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
            yield Floor(
                name, use, case.conv_flop, maps * map_bytes + weight_bytes,
                _conv_l2_bytes(setting) + (maps - 1) * map_bytes, programs, resident,
            )  # fmt: skip
        resident, programs = _residency(setting, weights, case.dilation)
        partials = 4 * setting.splits * setting.columns * setting.channels
        yield Floor(
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


def floor_table(found: Iterable[Floor]) -> str:
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


def headline_cases() -> list[Any]:
    """One case of each workload and map: the model speaks of one convolution, whatever the iterations."""
    try:
        from benchmarks.workloads import WORKLOADS
    except ImportError as error:
        raise SystemExit(f"rdk: {error}. Run this in the root of the repository, where benchmarks/ lies.") from error
    return [workload.case(workload.headline[-1], size) for workload in WORKLOADS.values() for size in workload.maps]


def rewritten(text: str, tables: dict[str, str]) -> str:
    """`text` with every table between its markers replaced. Raises ValueError where a marker is missing."""
    for name, table in tables.items():
        found = re.search(rf"<!-- begin {name} -->.*?<!-- end {name} -->", text, re.DOTALL)
        if found is None:
            raise ValueError(f"rdk: the file has no markers '<!-- begin {name} -->' and '<!-- end {name} -->'.")
        text = f"{text[: found.start()]}<!-- begin {name} -->\n{table}\n<!-- end {name} -->{text[found.end() :]}"
    return text


def versions() -> str:
    """What compiled the tables."""
    import triton

    return f"Compiled by triton {triton.__version__} beside PyTorch {torch.__version__.split('+')[0]}, without a GPU."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rdk.backends.triton.report", description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, metavar="PATH", help="rewrite the tables of that file")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET"):
        print("rdk: TRITON_INTERPRET is set, and interpreted kernels cannot be compiled. Unset it.", file=sys.stderr)
        return 1
    tables = {
        "versions": versions(),
        "floors": floor_table(floors(headline_cases())),
        "configurations": configuration_table(build_all(chosen.jobs)),
    }
    if chosen.write:
        chosen.write.write_text(rewritten(chosen.write.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        print("\n\n".join(tables.values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
