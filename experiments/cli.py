"""The command line: `python -m experiments list | run NAME | report | status`; called by __main__.

python -m experiments run F2a --smoke              # five steps on digits, to see that everything works
python -m experiments run F2 --laptop              # the sweep at a size for a CPU
python -m experiments run T2 --dry-run             # which runs, how long
python -m experiments run T2 --epoch-scale 0.25 --jobs 4
python -m experiments run F2c --only data.name=cifar10 --train.epochs 50
torchrun --nproc-per-node 4 -m experiments run F2d
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from experiments import cluster, configs, distributed, records, runner
from experiments.data.base import Where
from experiments.engine import Diverged, Interrupted, Place, train
from experiments.folders import RunFolder
from experiments.settings import Data, Model, Run, SettingsError, Train, current_names, from_dict, optional_copy

INTERRUPTED = 130  # exit code after Ctrl-C or SIGTERM
# words of older command lines
RENAMED = {
    "--schedule-scale": "--epoch-scale",
    "--train.schedule": "--train.lr-rule",
    "train.schedule": "train.lr_rule",
}
ModelOverrides: Any = optional_copy(Model, "Overrides of every run's network.")
DataOverrides: Any = optional_copy(Data, "Overrides of every run's data.")
TrainOverrides: Any = optional_copy(Train, "Overrides of every run's recipe.")


@dataclass(frozen=True)
class PlaceOptions:
    """Where things lie."""

    runs: Path = Path("runs")
    """folder of checkpoints and results of single runs"""
    data_root: Path = Path("runs/data")
    """folder in which data sets are looked for"""
    download: bool = False
    """fetch data that is missing"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """of PyTorch on the CPU; 0 leaves its own choice; --jobs on a CPU share them"""
    save_seconds: float = 300.0
    """between checkpoints"""
    tensorboard: bool = False

    def place(self, device_name: str) -> Place:
        if self.threads:
            torch.set_num_threads(self.threads)
        device = distributed.local_device(device_name)
        where = Where(self.data_root, self.download, device)
        return Place(where, self.runs, self.save_seconds, self.tensorboard)


Options = Annotated[PlaceOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class RunCommand:
    """Trains what a table, figure or claim needs, and computes it. The same command again goes on where it ended."""

    name: tyro.conf.Positional[str]
    """T1 … T7, F1 … F13, C1 … C11; `list` shows all"""
    smoke: bool = False
    """five steps of narrow nets on digits or small mazes: shows that everything works"""
    laptop: bool = False
    """digits and small mazes at a size for a CPU"""
    epoch_scale: float = 1.0
    """multiplies epochs and milestones"""
    seeds: int = 0
    """keep only the seeds below this; 0 keeps all"""
    only: tuple[str, ...] = ()
    """keep only runs with FIELD=VALUE[,VALUE], for instance data.name=cifar10 model.depth=15,19"""
    dry_run: bool = False
    """print the runs and the estimated hours, do nothing"""
    tflops: float = 0.0
    """for the estimate; 0: 300 on a GPU, 0.05 on a CPU"""
    step_ms: float = 0.0
    """for the estimate, least time of a step; 0: 0.5 on a GPU, 2 on a CPU"""
    jobs: int = 1
    """runs at a time, over the local GPUs"""
    results: Path | None = None
    """where records are written; experiments/results by default, runs/smoke with --smoke"""
    options: Options = field(default_factory=PlaceOptions)
    slurm: cluster.Slurm = field(default_factory=cluster.Slurm)
    model: ModelOverrides = field(default_factory=ModelOverrides)
    data: DataOverrides = field(default_factory=DataOverrides)
    train: TrainOverrides = field(default_factory=TrainOverrides)

    def __call__(self) -> int:
        console = Console()
        if self.smoke and self.laptop:
            raise SettingsError("--smoke and --laptop exclude each other.")
        if not self.epoch_scale > 0:
            raise SettingsError(f"--epoch-scale must be positive, got {self.epoch_scale}.")
        experiment = configs.experiment(self.name)
        scale = "smoke" if self.smoke else "laptop" if self.laptop and experiment.runs() else "full"
        overrides = RunOverrides(self.model, self.data, self.train)
        choice = runner.Choice(scale, self.epoch_scale, self.seeds, self.only, overrides)
        runs = runner.chosen_runs(experiment, choice)
        if not runs and experiment.runs():
            raise SettingsError(f"{self.name} has no runs at --{scale}: it says nothing at that size.")
        results = self.results or (self.options.runs / "smoke" if self.smoke else records.RESULTS)
        records.check_folder(results)
        # a job chooses its own device: the machine that queues it may have another
        place = self.options.place("cpu" if self.slurm.partition else self.options.device)
        if self.dry_run:
            rate = runner.rate_for(place.device, self.tflops, self.step_ms)
            console.print(runner.plan_table(runs, rate, self.jobs, place))
            return 0
        if self.slurm.partition:
            cluster.submit(runs, self.slurm, place, self.options.device, console)
            return 0
        if self.jobs > 1:
            outcome = runner.train_over_devices(runs, self.jobs, place, console, results)
        else:
            outcome = runner.train_here(runs, place, console, results)
        if outcome.failures:
            console.print(f"{len(outcome.failures)} of {len(runs)} runs failed; {self.name} is not analysed.")
            return 1
        if distributed.start(place.device).first:
            written = runner.analyse(experiment, runs, place, choice, results)
            if written is not None:
                aside = (
                    "" if written.parent == results else f" (not the preset's own runs: {', '.join(choice.changes())})"
                )
                console.print(f"{self.name}: {written}{aside}", markup=False, highlight=False, soft_wrap=True)
        return 0


@dataclass(frozen=True)
class RunOverrides:
    """What of a Run the command line replaces; None is nothing."""

    model: Any
    data: Any
    train: Any


@dataclass(frozen=True)
class ListCommand:
    """Shows every preset with its runs."""

    def __call__(self) -> int:
        table = Table()
        for heading in ("name", "what it is", "runs", "laptop", "data"):
            table.add_column(heading, justify="right" if heading in ("runs", "laptop") else "left")
        for entry in configs.EXPERIMENTS.values():
            full, laptop = len(entry.runs_at("full")), len(entry.runs_at("laptop"))
            made = "arithmetic" if not full else str(full)
            table.add_row(entry.name, entry.title, made, str(laptop) if laptop else "", ", ".join(entry.needs_data))
        Console().print(table)
        return 0


@dataclass(frozen=True)
class StatusCommand:
    """Shows how far each preset is, and what else lies there: runs finished, begun, being run now, and all."""

    runs: Path = Path("runs")

    def __call__(self) -> int:
        console = Console()
        table = Table()
        for heading in ("name", "scale", "finished", "begun", "being run", "all"):
            table.add_column(heading)
        known: set[str] = set()
        for entry in configs.EXPERIMENTS.values():
            for scale in ("full", "laptop", "smoke"):
                folders = [RunFolder(self.runs, run) for run in entry.runs_at(scale)]
                known |= {folder.run.key for folder in folders}
                _add_row(table, entry.name, scale, folders, str(len(folders)))
        others: dict[tuple[str, str], list[RunFolder]] = {}
        for file in sorted(self.runs.glob("*/*/run.json")):
            run = _settings_in(file)
            if run.key not in known:
                scale = run.scale if run.epoch_scale == 1 else f"{run.scale} × {run.epoch_scale:g}"
                others.setdefault((f"{run.home}, changed", scale), []).append(RunFolder(self.runs, run))
        for (name, scale), folders in others.items():
            _add_row(table, name, scale, folders, "")
        console.print(table if table.row_count else f"Nothing was run yet under {self.runs}.")
        return 0


def _add_row(table: Table, name: str, scale: str, folders: list[RunFolder], count: str) -> None:
    """A row of `status`, where any of the runs was begun."""
    finished = sum(folder.result.exists() for folder in folders)
    begun = sum(folder.checkpoint.exists() for folder in folders)
    running = sum(folder.under_way() for folder in folders)
    if finished or begun or running:
        table.add_row(name, scale, str(finished), str(begun), str(running), count)


@dataclass(frozen=True)
class ReportCommand:
    """Writes REPORT.md, report.html and the pictures from the records, and the table of experiments/README.md."""

    results: Path = records.RESULTS
    readme: Path | None = None
    """whose table is rewritten; experiments/README.md where the records are experiments/results"""

    def __call__(self) -> int:
        from experiments.report import write

        records.check_folder(self.results)
        readme = self.readme or (records.RESULTS.parent / "README.md" if self.results == records.RESULTS else None)
        for path in write(self.results, readme):
            print(path)
        return 0


@dataclass(frozen=True)
class OneCommand:
    """Trains the run whose settings a file holds; `run --jobs` calls this."""

    settings: tyro.conf.Positional[Path]
    options: Options = field(default_factory=PlaceOptions)

    def __call__(self) -> int:
        train(_settings_in(self.settings), self.options.place(self.options.device))
        return 0


def _settings_in(file: Path) -> Run:
    """The run whose settings a run.json holds."""
    try:
        return from_dict(Run, current_names(json.loads(file.read_text())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{file} holds no settings of a run ({type(error).__name__}: {error}).") from error


COMMANDS: dict[str, Callable[..., Callable[[], int]]] = {
    "list": ListCommand,
    "run": RunCommand,
    "report": ReportCommand,
    "status": StatusCommand,
    "one": OneCommand,
}


def _current_word(word: str) -> str:
    """A word of the command line, where it is an old flag or filter (with its =VALUE, if any) under today's name."""
    name, equals, value = word.partition("=")
    return f"{RENAMED.get(name, name)}{equals}{value}"


def main(words: list[str] | None = None) -> int:
    """Runs a command; the exit code. Errors of the user are one sentence on stderr and code 2."""
    words = sys.argv[1:] if words is None else words
    again = f"The same command goes on: python -m experiments {' '.join(words)}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # between runs, SIGTERM ends the program as Ctrl-C does
    try:
        current = [_current_word(word) for word in words]
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m experiments", args=current)
        return command()
    except runner.ERRORS as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"experiments: {error or 'interrupted.'} {again}".replace("  ", " "), file=sys.stderr)
        return INTERRUPTED
    finally:
        distributed.close()
