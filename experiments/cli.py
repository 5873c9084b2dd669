"""The command line: `python -m experiments list | run NAME | report | status`; called by __main__.

python -m experiments run F2a --smoke              # five steps on digits, to see that everything works
python -m experiments run F2 --laptop              # the sweep at a size for a CPU
python -m experiments run T2 --dry-run             # which runs, how long
python -m experiments run T2 --schedule-scale 0.25 --jobs 4
python -m experiments run F2c --only data.name=cifar10 --train.epochs 50
torchrun --nproc-per-node 4 -m experiments run F2d
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from experiments import cluster, configs, distributed, records, runner
from experiments.data.sets import Where
from experiments.engine import Diverged, Interrupted, Place
from experiments.folders import RunFolder
from experiments.settings import Data, Model, Run, SettingsError, Train, from_dict, optional_copy

INTERRUPTED = 130  # exit code after Ctrl-C or SIGTERM
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
    """of PyTorch on the CPU; 0 leaves its own choice"""
    save_seconds: float = 300.0
    """between checkpoints"""
    tensorboard: bool = False

    def place(self) -> Place:
        if self.threads:
            torch.set_num_threads(self.threads)
        device = distributed.local_device(self.device)
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
    schedule_scale: float = 1.0
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
        if not self.schedule_scale > 0:
            raise SettingsError(f"--schedule-scale must be positive, got {self.schedule_scale}.")
        experiment = configs.experiment(self.name)
        scale = "smoke" if self.smoke else "laptop" if self.laptop and experiment.runs() else "full"
        overrides = RunOverrides(self.model, self.data, self.train)
        choice = runner.Choice(scale, self.schedule_scale, self.seeds, self.only, overrides)
        runs = runner.chosen_runs(experiment, choice)
        if not runs and experiment.runs():
            raise SettingsError(f"{self.name} has no runs at --{scale}: it says nothing at that size.")
        place = self.options.place()
        if self.dry_run:
            rate = runner.rate_for(place.device, self.tflops, self.step_ms)
            console.print(runner.plan_table(runs, rate, self.jobs, place))
            return 0
        if self.slurm.partition:
            cluster.submit(runs, self.slurm, place, console)
            return 0
        results = self.results or (self.options.runs / "smoke" if self.smoke else records.RESULTS)
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
    """Shows how far each preset is: runs finished, begun and all, with those under way."""

    runs: Path = Path("runs")

    def __call__(self) -> int:
        console = Console()
        table = Table()
        for heading in ("name", "scale", "finished", "begun", "all"):
            table.add_column(heading)
        for entry in configs.EXPERIMENTS.values():
            for scale in ("full", "laptop"):
                folders = [RunFolder(self.runs, run) for run in entry.runs_at(scale)]
                finished = sum(folder.result.exists() for folder in folders)
                begun = sum(folder.checkpoint.exists() for folder in folders)
                if finished or begun:
                    table.add_row(entry.name, scale, str(finished), str(begun), str(len(folders)))
        console.print(table if table.row_count else f"Nothing was run yet under {self.runs}.")
        return 0


@dataclass(frozen=True)
class ReportCommand:
    """Writes REPORT.md, report.html and the pictures from the records, and the table of experiments/README.md."""

    results: Path = records.RESULTS
    readme: Path | None = None
    """whose table is rewritten; experiments/README.md where the records are experiments/results"""

    def __call__(self) -> int:
        from experiments.report import write

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
        import json

        run = from_dict(Run, json.loads(self.settings.read_text()))
        place = self.options.place()
        from experiments.engine import train

        train(run, place)
        return 0


COMMANDS = {"list": ListCommand, "run": RunCommand, "report": ReportCommand, "status": StatusCommand, "one": OneCommand}


def main(words: list[str] | None = None) -> int:
    """Runs a command; the exit code. Errors of the user are one sentence on stderr and code 2."""
    words = sys.argv[1:] if words is None else words
    again = f"The same command goes on: python -m experiments {' '.join(words)}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # between runs, SIGTERM ends the program as Ctrl-C does
    try:
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m experiments", args=words)
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
