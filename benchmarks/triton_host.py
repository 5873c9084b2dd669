"""`python -m benchmarks.triton_host`: what a Triton launch costs the host, on an idle driver; a table of docs/kernels.md.

    --write PATH   rewrite the table between its markers in that file (docs/kernels.md)

Needs triton and no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import environment
from rdk import documents
from rdk.backends.triton import configurations, interpreting, launch
from rdk.backends.triton.build import INTERPRETED
from rdk.backends.triton.launch import Launch, Operand
from rdk.backends.triton.setting import make_setting

DEVICE = "NVIDIA H200"
SHAPE = (2, 128, 16, 16)  # the launch's, which costs the host the same for every size
ROUNDS, CALLS = 40, 100

Noted = list[tuple[tuple[Any, ...], tuple[Any, ...]]]


def idle_driver(noted: Noted | None = None) -> None:
    """From here on triton compiles for an H200 and launches nothing; `noted` gets (grid and kernel, arguments) of each launch."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    handles = itertools.count(1)

    class Launcher:
        def __init__(self, source: Any, metadata: Any) -> None: ...

        def __call__(
            self, *given: Any
        ) -> None:  # grid, stream, kernel, what triton says of it, then the kernel's arguments
            if noted is not None:
                noted.append((given[:5], given[9:]))

    class Driver:
        launcher_cls = Launcher
        utils = SimpleNamespace(
            load_binary=lambda *_: (1, next(handles), 32, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 232448},
            unload_module=lambda *_: None,
        )

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    driver.set_active(Driver())


def make_convolution() -> Callable[[], Launch]:
    """A function that makes the launch of one bf16 convolution with bias and ReLU, from tensors that are there."""
    device = configurations.device_named(DEVICE, (9, 0))
    setting = make_setting(device, SHAPE, torch.bfloat16, "exact", device.numbers.multiprocessors)
    maps = [torch.zeros(setting.pixels, setting.channels, dtype=torch.bfloat16) for _ in range(2)]
    weight = torch.zeros(setting.channels, setting.taps, setting.channels, dtype=torch.bfloat16)
    bias = torch.zeros(setting.channels, dtype=torch.bfloat16)
    return lambda: launch.conv3x3(setting, 1, Operand(maps[0]), weight, maps[1], bias=bias, relu=True)


def triton_runs(one: Launch) -> None:
    """The same launch by triton's own way to a kernel."""
    one.kernel[(one.grid,)](**one.arguments, **one.constants, num_warps=one.warps, num_stages=one.stages)


def measured(rounds: int = ROUNDS, calls: int = CALLS) -> dict[str, tuple[float, float]]:
    """By way of launching: microseconds of making and running a launch, and of running alone. Medians of rounds in turns."""
    idle_driver()
    make = make_convolution()
    made = make()
    ways: dict[str, Callable[[Launch], None]] = {"rdk": Launch.run, "triton's own": triton_runs}
    taken: dict[tuple[str, bool], list[float]] = {(name, whole): [] for name in ways for whole in (True, False)}
    for run in ways.values():
        run(made)  # compiles
    for _ in range(rounds):
        for (name, whole), times in taken.items():
            run = ways[name]
            began = time.perf_counter()
            for _ in range(calls):
                run(make() if whole else made)
            times.append((time.perf_counter() - began) / calls * 1e6)
    found = {key: statistics.median(times) for key, times in taken.items()}
    return {name: (found[name, True], found[name, False]) for name in ways}


def host_table(found: dict[str, tuple[float, float]]) -> str:
    """Ratios count: a host's clock is its own."""
    about = environment.describe(torch.device("cpu"))
    whole, alone = found["rdk"]
    lines = ["| way to a kernel | making and running, µs | running alone, µs | of rdk's |", "|---|---|---|---|"]
    for name, (both, run) in found.items():
        lines.append(f"| {name} | {both:.0f} | {run:.0f} | {both / whole:.1f} and {run / alone:.1f} times |")
    lines += ["", f"One core of {about['hardware']}, triton {about['triton']}, commit {about['commit']}."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_host", description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, metavar="PATH", help="rewrite the table of that file")
    chosen = parser.parse_args(arguments)
    if interpreting():
        print(INTERPRETED, file=sys.stderr)
        return 1
    environment.pin(1)
    documents.publish({"host": host_table(measured())}, chosen.write)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
