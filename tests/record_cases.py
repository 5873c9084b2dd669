"""Fixed records for the tests of records and reports: comparisons on a GPU and a CPU, points of growth curves, shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks import records, workloads
from benchmarks.check import Errors
from benchmarks.measure import Outcome
from benchmarks.records import Record, Setting
from benchmarks.suites import Task
from benchmarks.timing import Timing
from benchmarks.workloads import Case

ABOUT = {
    "device": "NVIDIA H200", "device_type": "cuda", "hardware": "NVIDIA H200", "driver": "580.1", "threads": 1, "torch": "2.11.0",
    "python": "3.12.3", "rdk": "0.1.0", "commit": "abc123", "dirty": False, "tree": "t1",
}  # fmt: skip
ON_CPU = ABOUT | {"device": "cpu avx512", "device_type": "cpu", "hardware": "A Xeon", "driver": None}
OTHER_CPU = ON_CPU | {"hardware": "Another(R)"}
GPU, ONE_THREAD = Setting("NVIDIA H200", "bf16", None), Setting("cpu avx512", "fp32", 1, "A Xeon")
W1 = workloads.WORKLOADS["W1"].case(5)
W4R = workloads.WORKLOADS["W4r"].case(100)


def ok(name: str, milliseconds: float, peak: int | None = None, error: float = 1e-3) -> Outcome:
    timing = Timing(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 0.8 * milliseconds, 9)
    return Outcome(name, "ok", timing, Errors(error, 2 * error, "gradient of weight 0"), peak)


def group(
    outcomes: list[Outcome],
    case: Case = W1,
    pass_name: str = "training",
    date: str = "2026-11-24T00:00:00Z",
    about: dict[str, Any] = ABOUT,
    precision: str = "bf16",
    suite: str = "workloads",
    uncut: int | None = None,
    part: str = "core",
) -> list[Record]:
    name = Task(suite, precision, case, pass_name, part=part).name
    return [
        records.of_outcome(
            outcome, case, pass_name, precision, suite=suite, group=f"{date} {case} {pass_name} {part}",
            task=name, uncut_batch=uncut or case.batch, date=date, measured_on=about,
        )
        for outcome in outcomes
    ]  # fmt: skip


FIXED = group(
    [
        ok("eager", 4.0, 800), ok("eager channels_last", 2.0, 900), ok("compile graph", 1.5), ok("checkpoint", 5.0, 300),
        ok("rdk triton", 1.0, 700), ok("rdk triton graph", 0.9), ok("rdk triton sqrt", 1.6, 200),
        Outcome("max-autotune", "failed", note="RuntimeError: no"),
    ]
)  # fmt: skip


def curve(axis: str, values: tuple[int, ...]) -> list[Record]:
    base = workloads.CURVE_BASE["cpu"]
    found = []
    for value in values:
        moved = {"height": value, "width": value} if axis == "height" else {axis: value}
        case = replace(base, **moved)
        outcomes = [
            ok("eager", 2.0 * value, 1000 * value),
            ok("rdk cpu", 1.0 * value, 500),
            ok("rdk cpu sqrt", 1.5 * value, 90),
        ]
        found += group(outcomes, case, about=ON_CPU, precision="fp32", suite="curves")
    return found


def shape(
    number: int, pass_name: str, milliseconds: dict[str, float], threads: int = 1, date: str = "2026-11-24T00:00:00Z"
) -> list[Record]:
    case = (*workloads.CPU_SHAPES, *workloads.MAZE_SHAPES)[number]
    outcomes = [ok(name, value) for name, value in milliseconds.items()]
    about = ON_CPU | {"threads": threads}
    return group(outcomes, case, pass_name, date, about, "fp32", "shapes", part=f"{threads}")
