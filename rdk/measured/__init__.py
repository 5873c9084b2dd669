"""What was measured on which device: shipped JSON files that dispatch asks whether a backend beats eager on a problem.

One file per backend, device and, for a CPU, processor, written by `python -m benchmarks dispatch` and never by hand:

    {"format": 1, "backend": "cpu", "device": "cpu avx512",
     "measured_on": {"hardware": "…", "driver": null, "threads": 1, "torch": "…", "commit": "…", "date": "…", …},
     "records": [{"kind": "conv" | "residual" | "linear", "pass": "forward" | "training", "dtype": "float32",
                  "precision": "fast", "norm": false, "dilation": 1, "channels": 64, "height": 28, "width": 28,
                  "batch": 128, "iterations": 5, "stages": 1, "speedup": 3.1,
                  "layout": "contiguous" | "channels_last", "speedup_in_layout": 3.4, …}, …]}

speedup is the median time of eager, in its faster memory layout, over the backend's, from runs in turns in one process whose
results were checked against float64; speedup_in_layout is that of eager in the layout in which the backend was called: a caller
of that layout, who would get just that eager, is answered by it, every other by speedup. "measured_on" is described in
benchmarks/environment.py.

The nearest record decides.
  - Equal must be pass, dtype, precision, norm and dilation; a linear record speaks for linear problems only.
  - Distance is the sum of absolute differences of log2 of channels (half of it), of pixels in the whole batch (half as much again
    where the record has more), of pixels in a map (a quarter of it), of iterations and of stages, in which residual networks differ
    from single convolutions. Iterations and pixels beyond the most measured count as the most.
  - Of several equally near the geometric mean counts. A backend that nobody measured within `MAX_DISTANCE` is not preferred, nor
    is one for fewer channels than a `LEAST_CHANNELS`-th of the least measured: kernels pad them, eager does not.
  - A table speaks for its device alone: a CPU without one for its instruction set runs eager. Of several of a device those of
    the very hardware decide, by its name in measured_on; hardware that nobody has measured is answered by all of them.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from math import exp, inf, log, log2
from typing import Any

import torch

from rdk import env
from rdk.backends.base import Problem

FORMAT = 1
MAX_DISTANCE = 6.0  # six doublings in all
LEAST_CHANNELS = 2  # kernels pad channels to a block: of so few, records of many say nothing
MAP_WEIGHT = 0.25  # a transformed filter serves the whole batch; a map's own size matters by its tiles and border only
CHANNEL_WEIGHT = 0.5  # in every shipped table twice the channels change a speedup less than twice the iterations do
FEWER_PIXELS = 1.5  # a problem of fewer pixels than a record's repays less of the transform
VECTOR_BYTES = 16  # the triton backend's loads: rows of other sizes are loaded element by element, by other tiles

Record = dict[str, Any]


@lru_cache(maxsize=None)
def tables() -> list[dict[str, Any]]:
    """Every shipped file of measurements. Raises ValueError for one of another format."""
    found = []
    for entry in sorted(resources.files(__name__).iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".json"):
            table = json.loads(entry.read_text(encoding="utf-8"))
            if table.get("format") != FORMAT:
                raise ValueError(
                    f"rdk: {entry.name} has format {table.get('format')!r}; expected {FORMAT}. Reinstall rdk."
                )
            found.append(table)
    return found


@lru_cache(maxsize=None)
def device_name(device: torch.device) -> str:
    """The name under which measurements of a device are kept: product name for a GPU, for a CPU the instruction set of the cpu
    backend, which is PyTorch's own unless RDK_CPU_ISA names another."""
    if device.type == "cpu":
        wanted = env.read("RDK_CPU_ISA")
        return f"cpu {torch.backends.cpu.get_cpu_capability().lower() if wanted in ('auto', 'none') else wanted}"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


@lru_cache(maxsize=None)
def hardware_name(device: torch.device) -> str:
    """What tells devices of one name apart: a processor's model, as Linux has it (elsewhere what Python knows of it); a GPU's
    product name says all."""
    if device.type != "cpu":
        return device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def slower_than_eager(backend: str, problem: Problem, layout: str = "any") -> str | None:
    """The sentence why measurements do not show `backend` ahead of eager on the problem, called with a state in `layout`,
    "contiguous" or "channels_last"; "any" asks for eager in its faster one. None where they do."""
    name = device_name(problem.device)
    of_device = [table for table in tables() if table["backend"] == backend and table["device"] == name]
    if not of_device:
        return f"nobody has measured it on {name!r}"
    hardware = hardware_name(problem.device)
    own = [table for table in of_device if table["measured_on"].get("hardware") == hardware]
    records = [record for table in own or of_device for record in table["records"]]
    comparable = [record for record in records if _comparable(backend, record, problem)]
    # more iterations or pixels than were measured cost the same each: they are no reason to take a problem for unknown
    most = [max(numbers) for numbers in zip(*map(_amounts, comparable), strict=True)]
    pixels = problem.shape[2] * problem.shape[3] if problem.kind == "conv" else 1
    amounts = map(min, (problem.iterations, pixels * problem.shape[0], pixels), most)
    asked = (*amounts, problem.channels, len(problem.stages))
    distances = [(_distance(record, asked), record) for record in comparable]
    least = min((distance for distance, _ in distances), default=inf)
    too_few = LEAST_CHANNELS * problem.channels < min((record["channels"] for record in comparable), default=0)
    if least > MAX_DISTANCE or too_few:
        return f"no problem near this one was measured on {name!r}"
    nearest = [record for distance, record in distances if distance < least + 1e-9]
    speedup = exp(sum(log(_speedup(record, layout)) for record in nearest) / len(nearest))
    if speedup < 1.0:
        more = f" and {len(nearest) - 1} as near" if len(nearest) > 1 else ""
        return f"on the nearest problem measured ({_describe(nearest[0])}{more}) eager was faster ({speedup:.2f} times)"
    return None


def _comparable(backend: str, record: Record, problem: Problem) -> bool:
    whole = record["channels"] * problem.dtype.itemsize % VECTOR_BYTES == 0
    if backend == "triton" and whole != (problem.channels * problem.dtype.itemsize % VECTOR_BYTES == 0):
        return False
    return bool(
        (record["kind"] == "linear") == (problem.kind == "linear")
        and record["pass"] == ("training" if problem.needs_grad else "forward")
        and record["dtype"] == str(problem.dtype).removeprefix("torch.")
        and record["precision"] == problem.precision
        and record.get("norm", False) == problem.norm
        and record.get("dilation", 1) == max(stage.dilation for stage in problem.stages)
    )


def _speedup(record: Record, layout: str) -> float:
    return float(record["speedup_in_layout"] if record.get("layout") == layout else record["speedup"])


def _amounts(record: Record) -> tuple[int, int, int]:
    """Iterations, pixels of the whole batch, and of a map."""
    pixels = record["height"] * record["width"]
    return record["iterations"], pixels * record["batch"], pixels


def _distance(record: Record, asked: Sequence[int]) -> float:
    """asked: as _amounts, then channels and stages."""
    found = (*_amounts(record), record["channels"], record["stages"])
    weights = (1.0, FEWER_PIXELS if found[1] > asked[1] else 1.0, MAP_WEIGHT, CHANNEL_WEIGHT, 1.0)
    return sum(weight * _doublings(*pair) for weight, *pair in zip(weights, found, asked, strict=True))


def _doublings(measured: int, asked: int) -> float:
    return abs(log2(max(measured, 1)) - log2(max(asked, 1)))


def _describe(record: Record) -> str:
    return (
        f"{record['channels']} channels, {record['height']}x{record['width']}, batch {record['batch']}, "
        f"{record['iterations']} iterations, {record['pass']}"
    )
