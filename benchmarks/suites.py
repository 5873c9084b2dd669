"""What is compared with what: tasks, planned by cli and agenda, and how one is carried out, by run, worker, profile, conftest."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from benchmarks import contenders, environment, floors, measure, records
from benchmarks.contenders import CONTENDERS
from benchmarks.measure import Outcome
from benchmarks.problem import PRECISIONS, Precision, Problem
from benchmarks.records import Record
from benchmarks.timing import Patience
from benchmarks.workloads import (
    CPU_SHAPES,
    CURVE_BASE,
    LINEAR_SHAPES,
    MAZE_SHAPES,
    TINY_SHAPES,
    WORKLOADS,
    Case,
    Workload,
    named,
)

# on a CPU the batch is cut until one eager training step takes at most so long, or one image (with a norm, two) is left
STEP_SECONDS, QUICK_STEP_SECONDS = 1.0, 0.6
LONGEST_STEP_SECONDS = 2.0  # longer ones are left out

PATIENCE = {"quick": Patience(0.8, 3, 30, 1), "gpu": Patience(0.5, 10, 100, 3), "full": Patience(3.0, 7, 200, 2)}

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Task:
    """One comparison to make, or, without a case, the ceilings to measure. `seconds` estimates what it takes."""

    suite: str
    precision: str
    case: Case | None = None
    pass_name: str = "forward"
    contenders: tuple[str, ...] = ()
    patience: str = "full"
    memory: bool = False
    seconds: float = 10.0
    part: str = ""  # of a plan, where several tasks compare the same case with different contenders

    @property
    def name(self) -> str:
        """Unique within a plan, and how records and the terminal name the task."""
        if self.case is None:
            return f"{self.suite} {self.precision}"
        kind = self.suite.removesuffix("s")
        what = self.case.label if self.suite == "workloads" else f"{kind} {self.case.description}"
        return " ".join(filter(None, (what, self.pass_name, self.precision, self.part)))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Task:
        case = Case(**found["case"]) if found["case"] else None
        return cls(**(found | {"case": case, "contenders": tuple(found["contenders"])}))


def contender_names(device_type: str, training: bool, quick: bool, case: Case) -> tuple[str, ...]:
    """Everyone who takes part in a comparison, eager first, rdk last."""
    ours = contenders.ours(device_type)
    found = [*contenders.EAGER]
    compiles = not quick or case.convolutions <= 20
    if device_type == "cuda":
        found += ["eager graph"]
        found += ["compile", "compile graph"] if compiles else []
        found += [] if quick else ["max-autotune", "max-autotune graph"]
        found += [] if training else ["cudnn graphs"]
    elif compiles and (not quick or case.workload in ("W1", "W4")):
        found += ["compile"] if quick else ["compile", "max-autotune"]
        found += [] if training else ["compile frozen"]
    if training:
        found += ["checkpoint"] if quick else ["checkpoint", "checkpoint sqrt", "compile budget"]
    found += [f"rdk {name}" for name in ours]
    if training:
        found += [f"rdk {ours[-1]} sqrt"] if quick else [f"rdk {name} sqrt" for name in ours]
    if device_type == "cuda":
        found += [f"rdk {name} graph" for name in ours]
    return tuple(found)


def plan_workloads(
    workloads: Iterable[Workload], device_type: str, precisions: Sequence[str], quick: bool
) -> list[Task]:
    """Every case of the workloads (their headline cases, when quick), each pass a task."""
    tasks = []
    for precision, workload in itertools.product(precisions, workloads):
        for case in workload.cases(headline_only=quick):
            if quick and device_type == "cpu" and workload.name == "W4r" and case.iterations > 100:
                continue
            for pass_name in workload.passes:
                training = pass_name == "training"
                tasks.append(
                    Task(
                        "workloads",
                        precision,
                        case,
                        pass_name,
                        contender_names(device_type, training, quick, case),
                        "quick" if quick else "full",
                        memory=training or (pass_name == "rollout" and device_type == "cuda"),
                    )
                )
    return tasks


def plan_curves(device_type: str, precision: str, quick: bool) -> list[Task]:
    """Training steps over one axis at a time: iterations, batch, channels, map. The axis is what differs from the base case."""
    on_cpu, base = device_type == "cpu", CURVE_BASE[device_type]
    iterations: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32) if on_cpu else (1, 4, 16, 64, 256)
    channels: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    maps: tuple[int, ...] = (8, 13, 16, 32, 64, 128, 256) if on_cpu else (8, 13, 16, 28, 56)
    if quick:
        iterations, batches, channels, maps = (1, 10, 100, 1000), batches[::2], channels[::2], maps[:5:2]
    cases = [replace(base, iterations=count) for count in iterations]
    cases += [replace(base, batch=count) for count in batches]
    cases += [replace(base, channels=count) for count in channels]
    cases += [replace(base, height=size, width=size) for size in maps]
    ours = [f"rdk {name}" for name in contenders.ours(device_type)]
    names = (*contenders.EAGER, "checkpoint", *ours, *(f"{name} sqrt" for name in ours))
    unique = dict.fromkeys(cases)
    patience = "quick" if quick else "full"
    return [Task("curves", precision, case, "training", names, patience, memory=True) for case in unique]


def plan_shapes(device_type: str, precisions: Sequence[str], quick: bool) -> list[Task]:
    """The shapes of CPU steps, with their whole batches, as inference and as a training step against eager and torch.compile."""
    ours = [f"rdk {name}" for name in contenders.ours(device_type)]
    tasks = []
    for precision, case in itertools.product(precisions, (*CPU_SHAPES, *MAZE_SHAPES, *TINY_SHAPES)):
        for pass_name, compiled in (("forward", "compile frozen"), ("training", "compile")):
            # a tiny call may be plain PyTorch, with the layouts that eager has
            layouts = ("rdk auto channels_last",) if case in TINY_SHAPES else ()
            names = (*contenders.EAGER, compiled, *ours, *layouts)
            tasks.append(Task("shapes", precision, case, pass_name, names, "quick" if quick else "full"))
    return tasks


def plan_linear(device_type: str, precisions: Sequence[str], quick: bool) -> list[Task]:
    """Repeated linear layers, which `auto` leaves to PyTorch's matrix product on a CPU: what that costs beside the plain loop."""
    ours = dict.fromkeys(f"rdk {name}" for name in ("eager", *contenders.ours(device_type), "auto"))
    tasks = []
    for precision, case in itertools.product(precisions, LINEAR_SHAPES):
        for pass_name, compiled in (("forward", "compile frozen"), ("training", "compile")):
            names = ("eager", compiled, *ours)
            tasks.append(Task("linear", precision, case, pass_name, names, "quick" if quick else "full"))
    return tasks


@dataclass
class Executor:
    """Carries tasks out on one device and turns them into records."""

    device: torch.device
    quick: bool = False
    given_commit: str | None = None
    say: Callable[[str], None] = lambda text: None
    step_seconds: float | None = None
    _rates: dict[tuple[Any, ...], float] = field(default_factory=dict)
    _fitted: dict[tuple[Case, str, bool], tuple[Case, str | None]] = field(default_factory=dict)

    def carry_out(self, task: Task) -> list[Record]:
        """The records of the task, one per contender; nothing that goes wrong in a comparison escapes but Ctrl-C."""
        if task.case is None:
            return [self._ceilings(task)]
        precision = PRECISIONS[task.precision]
        training = task.pass_name == "training"
        case, uncut = task.case, task.case.batch
        try:
            if self.device.type == "cpu" and task.suite == "workloads":  # a curve with cut batches would be none
                case, reason = self.fitted(case, precision, training=task.pass_name != "rollout")
                if reason is not None:
                    return self._records(task, case, uncut, _everyone(task, "left out", reason))
            problem = Problem(case, precision, self.device)
            outcomes = measure.compare(
                problem,
                training,
                contenders.named(task.contenders),
                PATIENCE[task.patience],
                memory=task.memory,
                say=self.say,
            )
        except Exception as error:
            status = "out of memory" if measure.is_out_of_memory(error) else "failed"
            outcomes = _everyone(task, status, measure.first_line(error))
            measure.release(self.device)
        return self._records(task, case, uncut, outcomes)

    def fitted(self, case: Case, precision: Precision, training: bool) -> tuple[Case, str | None]:
        """The case with its batch halved until one eager step takes at most the limit; or why it cannot be run. Decided once
        per case, so that its passes and contenders all run the same batch.

        A norm needs two images. The step of one image is estimated from few iterations, and the batch found is tried once.
        """
        key = (case, precision.name, training)
        if key not in self._fitted:
            self._fitted[key] = self._fit(case, precision, training)
        return self._fitted[key]

    def _fit(self, case: Case, precision: Precision, training: bool) -> tuple[Case, str | None]:
        limit = self.step_seconds or (QUICK_STEP_SECONDS if self.quick else STEP_SECONDS)
        least = 2 if case.norm else 1
        one = least * self._seconds_per_image(case, precision, training)
        if one > LONGEST_STEP_SECONDS:
            return case.with_batch(least), (
                f"an eager {'training step' if training else 'roll-out'} of {least} image{'s' if least > 1 else ''} takes "
                f"about {one:.1f} s on one such CPU thread, and more than {LONGEST_STEP_SECONDS:g} s are not waited for"
            )
        batch = case.batch
        while batch > least and batch * one / least > limit:
            batch = max(batch // 2, least)
        while batch > least and self._step_seconds(case.with_batch(batch), precision, training) > limit:
            batch = max(batch // 2, least)
        return case.with_batch(batch), None

    def _seconds_per_image(self, case: Case, precision: Precision, training: bool) -> float:
        few = replace(case, batch=2, iterations=min(case.iterations, 2))
        key = (few.kind, few.shape, few.iterations, few.norm, few.recall, few.dilation, precision.name, training)
        if key not in self._rates:
            self._rates[key] = self._step_seconds(few, precision, training)
        return self._rates[key] / 2 * case.iterations / few.iterations

    def _step_seconds(self, case: Case, precision: Precision, training: bool) -> float:
        prepared = CONTENDERS["eager"].make(Problem(case, precision, self.device), training)
        prepared.run()
        began = time.perf_counter()
        prepared.run()
        return time.perf_counter() - began

    def _records(self, task: Task, case: Case, uncut: int, outcomes: Sequence[Outcome]) -> list[Record]:
        date = environment.now()
        about = environment.describe(self.device, self.given_commit)
        group = f"{date}-{os.getpid()}-{next(_numbers)}"
        return [
            records.of_outcome(
                outcome,
                case,
                task.pass_name,
                task.precision,
                suite=task.suite,
                group=group,
                task=task.name,
                uncut_batch=uncut,
                date=date,
                measured_on=about,
            )
            for outcome in outcomes
        ]

    def _ceilings(self, task: Task) -> Record:
        found = floors.measure_ceilings(self.device, PRECISIONS[task.precision])
        date = environment.now()
        return {
            "format": records.FORMAT,
            "suite": "ceilings",
            "group": f"{date}-{os.getpid()}-{next(_numbers)}",
            "task": task.name,
            "date": date,
            "precision": task.precision,
            "flop_per_second": float(f"{found.flop_per_second:.4g}"),
            "bytes_per_second": float(f"{found.bytes_per_second:.4g}"),
            "measured_on": environment.describe(self.device, self.given_commit),
        }


def _everyone(task: Task, status: str, note: str) -> list[Outcome]:
    return [Outcome(name, status, note=note) for name in task.contenders]


def all_workloads(names: Sequence[str] | None) -> list[Workload]:
    """The workloads of those names, all where none is given. Raises UnknownWorkloadError."""
    return [named(name) for name in names] if names else list(WORKLOADS.values())
