"""`python -m benchmarks dispatch`: measures a grid of problems for one backend and writes its table in rdk/measured."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

import rdk
from benchmarks import contenders, environment, measure
from benchmarks.measure import Outcome
from benchmarks.problem import PRECISIONS, Precision, Problem
from benchmarks.timing import Patience
from benchmarks.workloads import CPU_SHAPES, MAZE_SHAPES, WORKLOADS, Case
from rdk import dispatch, measured

FOLDER = Path(measured.__file__).parent
WRITE_EVERY = 30.0  # seconds: what a run that is killed may lose

# a problem whose eager training step takes longer than this by estimate is left out of the grid
STEP_SECONDS = {"cpu": 1.0, "cuda": 0.2}
QUICK_STEP_SECONDS = {"cpu": 0.25, "cuda": 0.05}
ESTIMATED_FLOP_PER_SECOND = {"cpu": 1e11, "cuda": 2e14}


def grid(device_type: str, quick: bool) -> list[Case]:
    """Networks over channels, maps, batches and iterations, without those that take long; the benchmark's own shapes among them."""
    if device_type == "cpu":
        sizes = [(32, 32), (64, 28), (128, 9), (128, 32), (256, 16), (512, 16)] if quick else None
        batches: tuple[int, ...] = (1, 16) if quick else (1, 32)
        iterations: tuple[int, ...] = (1, 10) if quick else (1, 5, 20)
        own = [*CPU_SHAPES, *MAZE_SHAPES]
    else:
        sizes = [(64, 28), (128, 9), (128, 32), (256, 16), (512, 16)] if quick else None
        batches, iterations = ((1, 64), (1, 8)) if quick else ((1, 16, 128), (1, 4, 16))
        own = [case for workload in WORKLOADS.values() for case in workload.cases(headline_only=True)]
    sizes = sizes or list(product((16, 32, 64, 128, 256, 512), (8, 13, 32)))
    cases = [*_products(sizes, batches, iterations), *_dilated(batches, iterations), *own]
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


def _identity(case: Case) -> tuple[Any, ...]:
    return case.kind, case.shape, case.iterations, case.norm, case.recall, case.dilation


def path_of(backend: str, device: torch.device) -> Path:
    """rdk/measured/cpu_avx512.json, rdk/measured/triton_nvidia_h200.json."""
    name = measured.device_name(device).removeprefix(f"{backend} ")
    return FOLDER / f"{backend}_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.json"


def record_of(
    case: Case, training: bool, precision: Precision, arithmetic: str, layout: str, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """One line of the table: the backend, called in `layout` (the last outcome), against eager in its faster layout and in that."""
    *eager, ours = outcomes
    medians = {
        name: o.timing.median for name, o in zip(("contiguous", "channels_last"), eager, strict=True) if o.timing
    }
    best = min(medians, key=lambda name: medians[name])
    assert ours.timing and ours.errors
    return {
        "kind": case.kind,
        "pass": "training" if training else "forward",
        "dtype": str(precision.dtype).removeprefix("torch."),
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
    layout = "channels_last" if contenders.native_layout(device) == torch.channels_last else "contiguous"
    records: list[dict[str, Any]] = []
    wrong = 0
    todo = []
    for number, arithmetic in enumerate(
        _arithmetics(backend)
    ):  # the default mode on the whole grid, others on the short one
        chosen = grid(device.type, quick or number > 0) if cases is None else cases
        todo += list(product(precisions, (arithmetic,), chosen, (False, True)))
    finished, written = False, time.monotonic()
    end = None if seconds is None else time.monotonic() + seconds
    if end is not None:  # a table cut short then covers the whole grid thinly, not its first part
        random.Random(0).shuffle(todo)
    try:
        for number, (precision_name, arithmetic, case, training) in enumerate(todo, 1):
            if end is not None and time.monotonic() > end:
                say(f"the {seconds:g} s are over after {number - 1} of {len(todo)} problems")
                break
            precision = PRECISIONS[precision_name]
            line = f"[{number}/{len(todo)}] {case.description}, {precision_name} {arithmetic}, "
            line += "training step" if training else "forward"
            outcomes = _measured(backend, device, precision, arithmetic, case, training, patience)
            ours = outcomes[-1]
            if ours.status == "ok":
                records.append(
                    record_of(case, training, precision, arithmetic or _in_force(device, precision), layout, outcomes)
                )
                if time.monotonic() - written >= WRITE_EVERY:
                    write(path, backend, device, records, False, given_commit)
                    written = time.monotonic()
                say(f"{line}: {records[-1]['speedup']:.2f} times eager")
            else:
                wrong += ours.status == "wrong"
                say(f"{line}: {ours.status}: {ours.note}")
        else:
            finished = True
    except KeyboardInterrupt:
        say("stopped; what was measured so far is written.")
    finally:
        if records:
            write(path, backend, device, records, finished, given_commit)
            say(f"{len(records)} records in {path}")
    if not records:
        say(f"no problem of the grid could be measured on backend {backend!r}; no table is written.")
    return 1 if wrong or not records else 0


def _arithmetics(backend: str) -> tuple[str, ...]:
    """The precision modes of the backend that are worth a table; "" means the one that PyTorch's switches give."""
    return ("fast", "accurate") if backend == "cpu" else ("",)


def _in_force(device: torch.device, precision: Precision) -> str:
    precision.apply()
    return dispatch.precision_of(device, precision.dtype)


def _measured(
    backend: str,
    device: torch.device,
    precision: Precision,
    arithmetic: str,
    case: Case,
    training: bool,
    patience: Patience,
) -> list[Outcome]:
    compared = contenders.named((*contenders.EAGER, f"rdk {backend}"))
    before = dispatch._cpu_precision
    if arithmetic:
        rdk.set_cpu_precision(arithmetic)
    try:
        return measure.compare(Problem(case, precision, device), training, compared, patience)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return [Outcome(f"rdk {backend}", "out of memory", note=measure.first_line(error))]
    finally:
        rdk.set_cpu_precision(before)


def write(
    path: Path,
    backend: str,
    device: torch.device,
    records: list[dict[str, Any]],
    finished: bool,
    given_commit: str | None,
) -> None:
    """The table with one record per line, so that two versions can be compared line by line; replaced in one step."""
    about = environment.describe(device, given_commit)
    about |= {"date": environment.now(), "finished": finished, "program": "python -m benchmarks dispatch"}
    head = {"format": measured.FORMAT, "backend": backend, "device": about["device"], "measured_on": about}
    lines = [json.dumps(record) for record in records]
    text = json.dumps(head, indent=1)[:-2] + ',\n "records": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
    measured.tables.cache_clear()
    dispatch.choose.cache_clear()
