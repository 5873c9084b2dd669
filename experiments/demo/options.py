"""The demo's flags, checked; parsed by __main__, read by run and training."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rdk
from experiments.data.mazes import MOST_CELLS
from experiments.demo.network import Architecture
from rdk.dispatch import NAMES

LONG_STEP = 30  # iterations of the second training step that is compared
ARCHITECTURE_FLAGS = ("--width", "--iterations", "--cells", "--no-recall", "--feed-forward")


@dataclass(frozen=True)
class Options:
    architecture: Architecture
    steps: int
    batch: int
    learning_rate: float
    seed: int
    device: torch.device
    threads: int
    backend: str
    checkpoint: str | int
    memory_budget: int | None
    test_cells: tuple[int, ...]
    test_mazes: int
    longest: int
    compare: tuple[int, ...]
    out: Path
    save: Path | None
    load: Path | None
    solve: Path | None
    fresh: bool
    animate: bool

    def run_settings(self) -> dict[str, Any]:
        """How rdk is to run; no influence on what is computed beyond rounding."""
        return {"checkpoint": self.checkpoint, "memory_budget": self.memory_budget, "backend": self.backend}

    def identity(self) -> dict[str, Any]:
        """All that the trained weights depend on; its hash names the run's folder."""
        found = vars(self.architecture) | {
            "steps": self.steps,
            "batch": self.batch,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "device": self.device.type,
            "threads": self.threads,
            "test_mazes": self.test_mazes,
            **self.run_settings(),
        }
        if self.load is not None:
            found["load"] = hashlib.sha256(self.load.read_bytes()).hexdigest()
        return found

    def folder(self) -> Path:
        """Where this configuration's files lie."""
        text = json.dumps(self.identity(), sort_keys=True)
        return self.out / hashlib.sha256(text.encode()).hexdigest()[:12]


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options of a command line. Raises ValueError, a sentence, for a value that does not fit."""
    given = _parser().parse_args(argv)
    _check_numbers(given)
    if given.load is not None:
        _check_load(given)
    architecture = Architecture(
        width=given.width or Architecture.width,
        iterations=given.iterations or Architecture.iterations,
        recall=not given.no_recall,
        tied=not given.feed_forward,
        cells=given.cells or Architecture.cells,
    )
    return Options(
        architecture=architecture,
        steps=given.steps,
        batch=given.batch,
        learning_rate=given.learning_rate,
        seed=given.seed,
        device=_device(given.device),
        threads=given.threads,
        backend=_backend(given.backend),
        checkpoint=_checkpoint(given.checkpoint, given.memory_budget),
        memory_budget=given.memory_budget,
        test_cells=_test_cells(given.test_cells),
        test_mazes=given.test_mazes,
        longest=given.longest,
        compare=() if given.no_comparison else _compare(given.compare_iterations, architecture),
        out=Path(given.out),
        save=given.save,
        load=given.load,
        solve=given.solve,
        fresh=given.fresh,
        animate=not given.no_animation,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f"demo: {message}. `python -m experiments.demo --help` lists all flags.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiments.demo",
        description="Trains a recurrent network to solve mazes, and shows that more iterations solve larger ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    network = parser.add_argument_group("network")
    add = network.add_argument
    add("--cells", type=int, help=f"size of the mazes that it is trained on (default {Architecture.cells})")
    add("--width", type=int, help=f"channels (default {Architecture.width})")
    add("--iterations", type=int, help=f"iterations that it is trained for (default {Architecture.iterations})")
    add("--no-recall", action="store_true", help="do not show the image again at every iteration")
    add("--feed-forward", action="store_true", help="every iteration owns its weights: the feed-forward twin")
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--steps", type=int, default=800, help="training steps")
    add("--batch", type=int, default=64, help="mazes per step")
    add("--learning-rate", type=float, default=8e-3, help="the highest, after the warm-up")
    add("--seed", type=int, default=0, help="of the weights, the mazes and the number of iterations of every step")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--backend", default="auto", help="auto, " + ", ".join(NAMES))
    add("--checkpoint", default="auto", help="states kept for the backward pass: auto, none, sqrt or a number")
    add("--memory-budget", type=int, metavar="BYTES", help="peak bytes that rdk may hold; instead of --checkpoint")
    add("--fresh", action="store_true", help="start anew even where a saved state could be resumed")
    showing = parser.add_argument_group("what is shown")
    add = showing.add_argument
    add("--test-cells", help="sizes of the test mazes, as in 5,6,7 (default: the trained size and the next two)")
    add("--test-mazes", type=int, default=1000, help="unseen mazes per size")
    add("--longest", type=int, default=30, help="iterations up to which it is run when tested")
    add(
        "--compare-iterations",
        metavar="N,N",
        help="iterations of the training steps whose time and memory are compared (default: the trained ones, and 30)",
    )
    add("--no-comparison", action="store_true", help="leave out the table of time and memory")
    add("--no-animation", action="store_true", help="print a few frames instead of an animation")
    files = parser.add_argument_group("files")
    add = files.add_argument
    add("--save", type=Path, metavar="FILE", help="write the trained network")
    add("--load", type=Path, metavar="FILE", help="use a network written by --save instead of training one")
    add(
        "--solve", type=Path, metavar="FILE", help="solve the maze of a PNG image or a text file, and show nothing else"
    )
    add("--out", default="runs/demo", metavar="FOLDER", help="where results and checkpoints go")
    return parser


def _check_numbers(given: argparse.Namespace) -> None:
    least = {
        "width": 1,
        "iterations": 1,
        "batch": 1,
        "steps": 1,
        "threads": 1,
        "test_mazes": 1,
        "longest": 1,
        "seed": 0,
    }
    for name, smallest in least.items():
        value = getattr(given, name)
        if value is not None and value < smallest:
            raise ValueError(f"demo: {_flag(name)} must be at least {smallest}, got {value}.")
    if given.cells is not None:
        _check_cells(given.cells, "--cells")
    if not 0 < given.learning_rate < float("inf"):
        raise ValueError(f"demo: --learning-rate must be a positive number, got {given.learning_rate}.")


def _check_cells(cells: int, flag: str) -> None:
    if not 2 <= cells <= MOST_CELLS:
        raise ValueError(f"demo: {flag} must be from 2 to {MOST_CELLS}, got {cells}; the paper's sizes are 5, 6 and 7.")


def _check_load(given: argparse.Namespace) -> None:
    """What a loaded network is built from stands in its file, so flags that say it are refused."""
    for flag in ARCHITECTURE_FLAGS:
        if getattr(given, flag[2:].replace("-", "_")):
            raise ValueError(
                f"demo: {flag} can't be given with --load, because the file says how the network is built. Leave it out "
                f"(--test-cells and --longest choose what it is tested on)."
            )
    if not given.load.is_file():
        raise ValueError(f"demo: there is no file {given.load}. Name one that --save has written.")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as reason:
        raise ValueError(f"demo: --device must be cpu, cuda or cuda:N, got {name!r}.") from reason
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"demo: --device must be cpu, cuda or cuda:N, got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"demo: --device {name} was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA devices here. "
            f"Leave --device out to run on the CPU."
        )
    return device


def _backend(name: str) -> str:
    if name == "auto":
        return name
    if name not in NAMES:
        raise ValueError(f"demo: --backend must be one of auto, {', '.join(NAMES)}, got {name!r}.")
    available = rdk.backends()[name]
    if available is not True:
        raise ValueError(f"demo: --backend {name} is not available here: {available}")
    return name


def _checkpoint(text: str, memory_budget: int | None) -> str | int:
    if memory_budget is not None:
        if text != "auto":
            raise ValueError(
                f"demo: give --checkpoint or --memory-budget, not both (got {text!r} and {memory_budget})."
            )
        if memory_budget < 1:
            raise ValueError(f"demo: --memory-budget must be a positive number of bytes, got {memory_budget}.")
    if text in ("auto", "none", "sqrt"):
        return text
    if not text.isdecimal():
        raise ValueError(f"demo: --checkpoint must be auto, none, sqrt or a number of states, got {text!r}.")
    return int(text)


def _test_cells(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    sizes = _numbers(text, "--test-cells")
    for cells in sizes:
        _check_cells(cells, "--test-cells")
    return sizes


def _numbers(text: str, flag: str) -> tuple[int, ...]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"demo: {flag} must be positive numbers with commas between them, as in 5,6,7; got {text!r}.")
    return tuple(dict.fromkeys(map(int, parts)))


def _compare(text: str | None, architecture: Architecture) -> tuple[int, ...]:
    if text is None:
        return tuple(dict.fromkeys((architecture.iterations, LONG_STEP)))
    return _numbers(text, "--compare-iterations")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
