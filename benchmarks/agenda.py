"""What to measure on a GPU in order of value, and which task still fits into the time left; called by gpu."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from benchmarks import contenders
from benchmarks.suites import Task, plan_curves, plan_linear
from benchmarks.workloads import WORKLOADS, Case

# estimates in seconds, for a first run; Agenda learns from what tasks took
CORE, COMPILE, AUTOTUNE = 6.0, 40.0, 100.0

COMPILED, AUTOTUNED = ("compile", "compile graph"), ("max-autotune", "max-autotune graph")

# the headline cases, most telling first
HEADLINE = ("W1", "W4s", "W4", "W4r", "W6", "W3", "W5", "W2", "W7")


class Agenda:
    """Hands out tasks until the deadline, without those that an earlier run has done. What tasks took scales the estimates of
    later ones of their part."""

    def __init__(self, tasks: Sequence[Task], done: Iterable[str], deadline: float, clock: Callable[[], float]) -> None:
        finished = set(done)
        self.open = [task for task in tasks if task.name not in finished]
        self.skipped = len(tasks) - len(self.open)
        self.deadline, self.clock = deadline, clock
        self.scale: dict[str, float] = {}

    def remaining(self) -> float:
        return self.deadline - self.clock()

    def estimate(self, task: Task) -> float:
        return task.seconds * self.scale.get(task.part, 1.0)

    def next(self) -> Task | None:
        """The first task, in order of value, that fits into the time left; None where none does."""
        for number, task in enumerate(self.open):
            if self.estimate(task) <= self.remaining():
                return self.open.pop(number)
        return None

    def put_back(self, task: Task) -> None:
        """For a task that was handed out and not carried out."""
        self.open.insert(0, task)

    def learn(self, task: Task, seconds: float) -> None:
        self.scale[task.part] = (self.scale.get(task.part, 1.0) + seconds / task.seconds) / 2


def plan(device_type: str) -> list[Task]:
    """Every task for a device, most valuable first."""
    names = contenders.ours(device_type)
    ours = tuple(f"rdk {name}" for name in names)
    graphs = tuple(f"rdk {name} graph" for name in names)
    kept = tuple(f"rdk {name} sqrt" for name in names)
    headline = [case for workload in HEADLINE for case in WORKLOADS[workload].cases(headline_only=True)]
    first = [case for case in headline if case.label in ("W1 n=5", "W4s 9x9 n=10", "W4 n=10", "W3 n=4", "W6 n=10")]

    def part(name: str, cases: Iterable[Case], precision: str, extra: Sequence[str], seconds: float) -> Iterator[Task]:
        for case in cases:
            for pass_name in WORKLOADS[case.workload].passes:
                training = pass_name == "training"
                others = ("checkpoint",) if training else ("cudnn graphs",)
                everyone = (*contenders.EAGER, *(("eager graph", *others) if name == "core" else extra), *ours, *graphs)
                everyone += kept if training and name == "core" else ()
                memory = training or pass_name == "rollout"
                long = _long(case, precision, training, seconds)
                yield Task("workloads", precision, case, pass_name, everyone, "gpu", memory, long, name)

    tasks = [Task("ceilings", "bf16", seconds=8.0)]
    tasks += part("core", first, "bf16", (), CORE)
    tasks += part("core", [case for case in headline if case not in first], "bf16", (), CORE)
    tasks += part("compile", first, "bf16", COMPILED, COMPILE)
    tasks += part("core", first, "tf32", (), CORE)
    tasks += part("core", first, "fp32", (), CORE)
    tasks += part("core", first[:2], "fp16", (), CORE)
    tasks += part("autotune", first[:3], "bf16", AUTOTUNED, AUTOTUNE)
    tasks += [replace(task, seconds=CORE, part="curves") for task in plan_curves(device_type, "bf16", quick=True)]
    tasks += [
        replace(task, patience="gpu", seconds=COMPILE, part="linear")
        for task in plan_linear(device_type, ["bf16"], False)
    ]
    tasks += part("compile", [case for case in headline if case not in first], "bf16", COMPILED, COMPILE)
    tasks += part("budget", first, "bf16", ("compile budget", "checkpoint sqrt"), COMPILE)
    others = [case for workload in HEADLINE for case in WORKLOADS[workload].cases() if case not in headline]
    tasks += part("core", others, "bf16", (), CORE)
    tasks += part("autotune", first[3:], "bf16", AUTOTUNED, AUTOTUNE)
    return tasks


def _long(case: Case, precision: str, training: bool, seconds: float) -> float:
    """More for the cases whose steps are long: about 90 of them, at half of what an H100 reaches in a matrix product."""
    rate = {"bf16": 4e14, "fp16": 4e14, "tf32": 2e14, "fp32": 3e13}[precision]
    return seconds + 90 * (3 if training else 1) * case.convolutions * case.conv_flop / rate
