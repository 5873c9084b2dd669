"""`python -m rdk.backends.triton.report`: compiles every shipped configuration and prints what came out; writes docs/kernels.md.

    --write PATH   rewrite the tables between the markers of that file (docs/kernels.md)
    --jobs N       processes that compile (1)

Needs triton and no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rdk import documents
from rdk.backends.triton import interpreting, shipped
from rdk.backends.triton.build import INTERPRETED, SHARED_LIMITS, Built, compile_ahead


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


def versions() -> str:
    """What compiled the tables."""
    import triton

    return f"Compiled by triton {triton.__version__} beside PyTorch {torch.__version__.split('+')[0]}, without a GPU."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rdk.backends.triton.report", description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, metavar="PATH", help="rewrite the tables of that file")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    chosen = parser.parse_args(arguments)
    if interpreting():
        print(INTERPRETED, file=sys.stderr)
        return 1
    documents.publish(
        {"versions": versions(), "configurations": configuration_table(build_all(chosen.jobs))}, chosen.write
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
