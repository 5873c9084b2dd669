"""`python -m benchmarks dispatch`: measures a grid of problems for one backend and writes its table in rdk/measured."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

import rdk
from benchmarks import environment, measure
from benchmarks.contenders import EAGER, named, native_layout
from benchmarks.measure import Outcome
from benchmarks.problem import PRECISIONS, Precision, Problem
from benchmarks.timing import Patience
from benchmarks.workloads import CPU_SHAPES, MAZE_SHAPES, WORKLOADS, Case
from rdk import budget, dispatch, measured

FOLDER = Path(measured.__file__).parent
WRITE_EVERY = 30.0  # seconds: what a run that is killed may lose

# a problem whose eager training step takes longer than this by estimate is left out of the grid
STEP_SECONDS = {"cpu": 1.0, "cuda": 0.2}
QUICK_STEP_SECONDS = {"cpu": 0.25, "cuda": 0.05}
ESTIMATED_FLOP_PER_SECOND = {"cpu": 1e11, "cuda": 2e14}


def grid(device_type: str, quick: bool) -> list[Case]:
    """Networks over channels, maps, batches and iterations, without those that take long; the benchmark's own shapes among them."""
    channels: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    if device_type == "cpu":
        channels = (4, 8, *channels)
        sizes = [(32, 32), (64, 28), (128, 9), (128, 32), (256, 16), (512, 16)] if quick else None
        batches: tuple[int, ...] = (1, 16) if quick else (1, 32)
        iterations: tuple[int, ...] = (1, 10) if quick else (1, 5, 20)
        own = [*CPU_SHAPES, *MAZE_SHAPES]
    else:
        sizes = [(64, 28), (128, 9), (128, 32), (256, 16), (512, 16)] if quick else None
        batches, iterations = ((1, 64), (1, 8)) if quick else ((1, 16, 128), (1, 4, 16))
        own = [case for workload in WORKLOADS.values() for case in workload.cases(headline_only=True)]
    sizes = sizes or list(product(channels, (8, 13, 32)))
    cases = [*_products(sizes, batches, iterations), *_dilated(batches, iterations), *own]
    if device_type == "cpu" and not quick:
        cases += _small()
    limit = (QUICK_STEP_SECONDS if quick else STEP_SECONDS)[device_type]
    rate = ESTIMATED_FLOP_PER_SECOND[device_type]
    unique = {_identity(case): case for case in cases if 3 * case.conv_flop * case.convolutions / rate <= limit}
    return list(unique.values())


def _products(sizes: Iterable[tuple[int, int]], batches: Iterable[int], iterations: Iterable[int]) -> Iterator[Case]:
    kinds = (("conv", False), ("residual", False), ("residual", True))
    for (channels, size), batch, count, (kind, norm) in product(sizes, batches, iterations, kinds):
        if not (norm and batch == 1):
            yield Case("grid", kind, batch, channels, size, size, count, norm=norm)


def _dilated(batches: Iterable[int], iterations: Iterable[int]) -> Iterator[Case]:
    """Dilation 2, on fewer sizes: a record speaks for its own dilation only."""
    for (channels, size), batch, count in product(((32, 13), (64, 28), (128, 32)), batches, iterations):
        for kind in ("conv", "residual"):
            yield Case("grid", kind, batch, channels, size, size, count, dilation=2)


def _small() -> Iterator[Case]:
    """Maps so small that the calls themselves take the time: how many convolutions repay that is another question."""
    for channels, size, batch, count in product((4, 8, 16, 32, 64), (4, 8), (1, 8), (2, 3, 8)):
        yield Case("grid", "conv", batch, channels, size, size, count)


def _identity(case: Case) -> tuple[Any, ...]:
    return case.kind, case.shape, case.iterations, case.norm, case.recall, case.dilation


def path_of(backend: str, device: torch.device) -> Path:
    """rdk/measured/cpu_avx512_amd_epyc.json, rdk/measured/triton_nvidia_h200.json."""
    name, hardware = measured.device_name(device), measured.hardware_name(device)
    processor = "" if hardware == name else environment.short(hardware)
    return FOLDER / f"{environment.file_stem(backend, name.removeprefix(f'{backend} '), processor)}.json"


class Entry(NamedTuple):
    """What one line of a table is about."""

    case: Case
    precision: Precision
    arithmetic: str  # mode of the cpu backend; "": what PyTorch's switches give
    training: bool

    @property
    def description(self) -> str:
        what = "training step" if self.training else "forward"
        return f"{self.case.description}, {self.precision.name} {self.arithmetic}, {what}"


def entries(
    backend: str, device: torch.device, precisions: Sequence[str], quick: bool, cases: Sequence[Case] | None = None
) -> list[Entry]:
    """Everything that a table of the backend holds; `cases` instead of the grid."""
    found = []
    for number, arithmetic in enumerate(_arithmetics(backend)):
        # the default mode on the whole grid, others on the short one
        chosen = grid(device.type, quick or number > 0) if cases is None else cases
        for name, case, training in product(precisions, chosen, (False, True)):
            found.append(Entry(case, PRECISIONS[name], arithmetic, training))
    return found


def _arithmetics(backend: str) -> tuple[str, ...]:
    """The precision modes of the backend that are worth a table; "" means the one that PyTorch's switches give."""
    return ("fast", "accurate") if backend == "cpu" else ("",)


def record_of(entry: Entry, arithmetic: str, layout: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One line of the table: the backend, called in `layout` (the last outcome), against eager in its faster layout and in that."""
    case = entry.case
    *eager, ours = outcomes
    medians = {
        name: o.timing.median for name, o in zip(("contiguous", "channels_last"), eager, strict=True) if o.timing
    }
    best = min(medians, key=lambda name: medians[name])
    assert ours.timing and ours.errors
    return {
        "kind": case.kind,
        "pass": "training" if entry.training else "forward",
        "dtype": str(entry.precision.dtype).removeprefix("torch."),
        "precision": arithmetic,
        "norm": case.norm,
        "dilation": case.dilation,
        "channels": case.channels,
        "height": case.height,
        "width": case.width,
        "batch": case.batch,
        "iterations": case.iterations,
        "stages": case.stages,
        "speedup": _short(medians[best] / ours.timing.median),
        "layout": layout,
        "speedup_in_layout": _short(medians[layout] / ours.timing.median),
        "eager": best,
        "eager_ms": _short(medians[best]),
        "spread": _short(max(o.timing.spread for o in outcomes if o.timing)),
        "samples": ours.timing.samples,
        "error": _short(ours.errors.output),
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def run(
    backend: str,
    device: torch.device,
    precisions: Sequence[str],
    quick: bool,
    say: Callable[[str], None] = print,
    cases: Sequence[Case] | None = None,
    target: Path | None = None,
    given_commit: str | None = None,
    seconds: float | None = None,
) -> int:
    """Measures, prints a line per problem, and writes the table: while it measures, after Ctrl-C, when `seconds` are over.

    Returns 1 where a result was wrong or nothing could be measured.
    """
    reason = dispatch.unavailable(backend)
    if reason is not None:
        raise ValueError(f"backend {backend!r} is not available here: {reason}")
    path = target or path_of(backend, device)
    environment.make_way_for(path)
    patience = Patience(0.25, 3, 30, 1) if quick else Patience(0.5, 5, 50, 1)
    table = Table(backend, device, path, patience, given_commit)
    todo = entries(backend, device, precisions, quick, cases)
    finished, wrong = False, 0
    end = None if seconds is None else time.monotonic() + seconds
    if end is not None:  # a table cut short then covers the whole grid thinly, not its first part
        random.Random(0).shuffle(todo)
    try:
        for number, entry in enumerate(todo, 1):
            if end is not None and time.monotonic() > end:
                say(f"the {seconds:g} s are over after {number - 1} of {len(todo)} problems")
                break
            ours = table.measure(entry)
            wrong += ours.status == "wrong"
            became = f"{ours.status}: {ours.note}"
            if ours.status == "ok":
                became = f"{table.records[-1]['speedup']:.2f} times eager"
            say(f"[{number}/{len(todo)}] {entry.description}: {became}")
        else:
            finished = True
    except KeyboardInterrupt:
        say("stopped; what was measured so far is written.")
    finally:
        if table.records:
            table.write(finished)
            say(f"{len(table.records)} records in {path}")
    if not table.records:
        say(f"no problem of the grid could be measured on backend {backend!r}; no table is written.")
    return 1 if wrong or not table.records else 0


@dataclass
class Table:
    """The records of one backend on one device, and the file that they go to."""

    backend: str
    device: torch.device
    path: Path
    patience: Patience
    given_commit: str | None
    records: list[dict[str, Any]] = field(default_factory=list)
    written: float = field(default_factory=time.monotonic)

    def measure(self, entry: Entry) -> Outcome:
        """What became of the backend; where its results were right the entry has a record."""
        outcomes = self._outcomes(entry)
        if outcomes[-1].status == "ok":
            layout = "channels_last" if native_layout(self.device) == torch.channels_last else "contiguous"
            self.records.append(record_of(entry, entry.arithmetic or self._in_force(entry.precision), layout, outcomes))
            if time.monotonic() - self.written >= WRITE_EVERY:
                self.write(finished=False)
        return outcomes[-1]

    def _outcomes(self, entry: Entry) -> list[Outcome]:
        """Of eager in both layouts and of the backend."""
        ours = f"rdk {self.backend}"
        before = dispatch.precision_of(torch.device("cpu"), torch.float32)
        if entry.arithmetic:
            rdk.set_cpu_precision(entry.arithmetic)
        try:
            problem = Problem(entry.case, entry.precision, self.device)
            return measure.compare(problem, entry.training, named((*EAGER, ours)), self.patience)
        except (torch.OutOfMemoryError, MemoryError) as error:
            return [Outcome(ours, "out of memory", note=measure.first_line(error))]
        finally:
            rdk.set_cpu_precision(before)

    def _in_force(self, precision: Precision) -> str:
        precision.apply()
        return dispatch.precision_of(self.device, precision.dtype)

    def write(self, finished: bool) -> None:
        """One record per line, so that two versions can be compared line by line; the file is replaced in one step."""
        about = environment.describe(self.device, self.given_commit)
        about |= {"date": environment.now(), "finished": finished, "program": "python -m benchmarks dispatch"}
        head = {"format": measured.FORMAT, "backend": self.backend, "device": about["device"], "measured_on": about}
        lines = [json.dumps(record) for record in self.records]
        text = json.dumps(head, indent=1)[:-2] + ',\n "records": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.path)
        self.written = time.monotonic()
        measured.tables.cache_clear()
        budget.forget()
