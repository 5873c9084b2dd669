"""Does what `run` asks for: chooses the runs, trains them here or over local GPUs, then analyses; called by cli.py."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from experiments import distributed, records
from experiments.configs import Experiment
from experiments.data.base import DataError
from experiments.engine import Diverged, Interrupted, Place, train
from experiments.estimate import RATES, Rate, estimate
from experiments.folders import FolderError, RunFolder
from experiments.settings import Run, SettingsError, as_dict, nearest, overridden

ERRORS = (SettingsError, DataError, FolderError)


@dataclass(frozen=True)
class Choice:
    """Which runs of an experiment, and how they are changed."""

    scale: str = "full"
    epoch_scale: float = 1.0
    seeds: int = 0
    filters: tuple[str, ...] = ()
    overrides: Any = None

    def changes(self) -> list[str]:
        """What makes the runs others than the preset's, in the words of the command line."""
        found = [f"--epoch-scale {self.epoch_scale:g}"] if self.epoch_scale != 1 else []
        found += [f"--seeds {self.seeds}"] if self.seeds else []
        found += [f"--only {' '.join(self.filters)}"] if self.filters else []
        for group, given in vars(self.overrides).items() if self.overrides is not None else ():
            named = {name.replace("_", "-"): value for name, value in vars(given).items() if value is not None}
            found += [f"--{group}.{name} {value}" for name, value in named.items()]
        return found


@dataclass
class Outcome:
    """What came of the runs: a sentence for each failure."""

    failures: list[str] = field(default_factory=list)


def chosen_runs(experiment: Experiment, choice: Choice) -> list[Run]:
    """The experiment's runs at a scale, filtered and overridden; each is checked. Raises SettingsError."""
    if choice.seeds < 0:
        raise SettingsError(f"--seeds must be at least 0, got {choice.seeds}.")
    found = []
    for run in experiment.runs_at(choice.scale):
        if choice.epoch_scale != 1.0:
            run = run.replaced(train=run.train.scaled(choice.epoch_scale), epoch_scale=choice.epoch_scale)
        if choice.seeds and run.seed >= choice.seeds:
            continue
        if not all(_matches(run, text) for text in choice.filters):
            continue
        if choice.overrides is not None:
            run = overridden(run, choice.overrides)
        run.check()
        found.append(run)
    if experiment.runs_at(choice.scale) and not found:
        raise SettingsError(f"no run of {experiment.name} is left with {' '.join(choice.changes())}.")
    return list({run.key: run for run in found}.values())


def _matches(run: Run, text: str) -> bool:
    """Whether a filter like model.depth=19 holds; several values are separated by commas."""
    name, equals, wanted = text.partition("=")
    value: Any = run
    for part in name.split("."):
        if not equals or not hasattr(value, part):
            fields = [f"{group}.{entry}" for group in ("model", "data", "train") for entry in vars(getattr(run, group))]
            raise SettingsError(f"--only takes FIELD=VALUE, got {text!r}.{nearest(name, [*fields, 'seed'])}")
        value = getattr(value, part)
    return str(value).lower() in wanted.lower().split(",")


def plan_table(runs: Sequence[Run], rate: Rate, jobs: int, place: Place) -> Table:
    """What --dry-run prints."""
    table = Table(title=f"{len(runs)} runs at {rate.tflops:g} TFLOP/s and at least {rate.step_ms:g} ms per step")
    for heading in ("run", "epochs", "steps", "PFLOP", "hours", "state"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    hours = 0.0
    for run in runs:
        guess = estimate(run, rate)
        folder = RunFolder(place.runs, run)
        state = "finished" if folder.result.exists() else "begun" if folder.checkpoint.exists() else ""
        hours += 0.0 if state == "finished" else guess.hours
        table.add_row(
            f"{run.title} ({run.key})",
            str(run.train.epochs),
            f"{guess.steps:,}",
            f"{guess.pflop:,.3g}",
            f"{guess.hours:.3g}",
            state,
        )
    table.caption = f"{hours:.3g} hours to go, {hours / max(1, jobs):.3g} with {jobs} at a time"
    return table


def train_here(runs: Sequence[Run], place: Place, console: Console, results: Path) -> Outcome:
    """One run after the other in this process, or in the processes that torchrun started."""
    outcome = Outcome()
    world = distributed.start(place.device)
    for number, run in enumerate(runs, 1):
        if world.first:
            console.print(f"[{number}/{len(runs)}] {run.title} ({run.key})", markup=False, highlight=False)
        try:
            result = train(run, place, world)
        except Diverged as error:
            outcome.failures.append(str(error))
            if world.first:
                console.print(str(error), markup=False, highlight=False)
            continue
        if world.first:
            _report_run(result, console)
            _record(result, results)
    return outcome


def train_over_devices(runs: Sequence[Run], jobs: int, place: Place, console: Console, results: Path) -> Outcome:
    """`jobs` processes at a time, each with one run; with GPUs job number j gets GPU j modulo their number, on a CPU each
    gets its share of the threads."""
    outcome, waiting = Outcome(), list(runs)
    active: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    gpus = _visible_gpus() if place.device.type == "cuda" else []
    threads = torch.get_num_threads() if gpus else max(1, torch.get_num_threads() // jobs)
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    run = waiting.pop(0)
                    chosen = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
                    console.print(f"started on slot {slot}: {run.title} ({run.key})", markup=False, highlight=False)
                    active[slot] = run, subprocess.Popen(_one(run, place, threads), env={**os.environ, **chosen})
            for slot, (run, process) in list(active.items()):
                if process.poll() is not None:
                    del active[slot]
                    _collect(run, process.returncode, place, console, results, outcome)
            time.sleep(0.05)
    except (KeyboardInterrupt, Interrupted) as error:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.wait()
        raise Interrupted("The runs under way wrote their checkpoints.") from error
    return outcome


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them, which may hold some of the machine's GPUs only."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def _one(run: Run, place: Place, threads: int) -> list[str]:
    """The command that trains one run, whose settings lie in its folder."""
    folder = RunFolder(place.runs, run)
    folder.write_json(folder.path / "run.json", as_dict(run))
    words = [sys.executable, "-m", "experiments", "one", str(folder.path / "run.json")]
    words += ["--runs", str(place.runs), "--data-root", str(place.where.root), "--device", place.device.type]
    words += ["--save-seconds", str(place.save_seconds), "--threads", str(threads)]
    return words + (["--download"] if place.where.download else []) + (["--tensorboard"] if place.tensorboard else [])


def _collect(run: Run, code: int, place: Place, console: Console, results: Path, outcome: Outcome) -> None:
    result = RunFolder(place.runs, run).finished()
    if result is None:
        outcome.failures.append(f"{run.title}: its process ended with code {code}; what it printed stands above.")
        return
    _report_run(result, console)
    _record(result, results)


def _record(result: dict[str, Any], results: Path) -> None:
    if result["scale"] != "smoke":
        records.add_run(result, results)


def _report_run(result: dict[str, Any], console: Console) -> None:
    metrics = result["metrics"]
    console.print(
        f"  test {metrics['test_accuracy']:.2f} %, train {metrics['train_accuracy']:.2f} %, {result['parameters']:,} "
        f"parameters, {result['seconds']:.0f} s",
        markup=False,
        highlight=False,
    )


def analyse(experiment: Experiment, runs: Sequence[Run], place: Place, choice: Choice, results: Path) -> Path | None:
    """Computes and records what the experiment asks for beyond training.

    Of other runs than the preset's the record and its pictures go to results/changed/, with what was changed, and the
    preset's own stay.
    """
    if not experiment.analysis:
        return None
    from experiments.analysis import ANALYSES

    keys = [run.key for run in runs]
    changed: list[str] = []
    if set(keys) != {run.key for run in experiment.runs_at(choice.scale)}:
        changed = choice.changes()
        name = hashlib.sha256(json.dumps(sorted(keys)).encode()).hexdigest()[:12]
        results = results / "changed" / f"{experiment.name}.{name}"
    values = ANALYSES[experiment.analysis](experiment, list(runs), place, choice.scale, results / "pictures")
    return records.add_analysis(experiment.name, choice.scale, values, keys, changed, place.device, results)


def rate_for(device: torch.device, tflops: float, step_ms: float) -> Rate:
    known = RATES[device.type if device.type in RATES else "cpu"]
    return Rate(tflops or known.tflops, step_ms or known.step_ms)
