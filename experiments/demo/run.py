"""The demo from the first line to the last: train or load, test, show, compare, store; called by __main__."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

import rdk
from experiments.data.atomic import write_atomic
from experiments.data.mazes import MazeSet
from experiments.demo import comparison, evaluation, pictures, problem, show, user_maze
from experiments.demo.comparison import DisagreementError
from experiments.demo.evaluation import Curve
from experiments.demo.network import Architecture, MazeNetwork, load_network, save_network
from experiments.demo.options import Options
from experiments.demo.training import Stopped, Training, trained_iterations

PANELS = 6  # of the picture of a maze being solved


@dataclass(frozen=True)
class Solving:
    """One maze after every iteration."""

    units: NDArray[np.int64]  # (H, W)
    shares: NDArray[np.float32]  # (iterations, H, W): how sure the network is that a pixel is on the path
    paths: NDArray[np.bool_]  # (iterations, H, W)
    right: tuple[bool, ...]  # is every pixel right

    def finished(self) -> int:
        """The first iteration at which every pixel is right, or the last of all."""
        return self.right.index(True) + 1 if any(self.right) else len(self.right)

    def chosen(self, count: int) -> list[int]:
        """At most `count` iterations, from the first to the finished one, denser at the beginning."""
        return sorted({int(number) for number in np.rint(np.geomspace(1, self.finished(), count))})

    def title(self, iteration: int) -> str:
        solved = ", solved" if self.right[iteration - 1] else ""
        return f"iteration {iteration}{solved}"


def _say(console: Console, text: str) -> None:
    """A sentence on one line, whatever the width, so that it can be searched and copied; brackets are no markup."""
    console.print(text, markup=False, soft_wrap=True)


def run(options: Options, console: Console) -> int:
    """Runs the demo. Returns the exit code; raises ValueError, a sentence, for input that does not fit."""
    torch.set_num_threads(options.threads)
    maze = None if options.solve is None else user_maze.read(options.solve)
    network, about, options = _network(options, console)
    if options.save is not None:
        save_network(options.save, network, about)
        _say(console, f"network saved in {options.save}")
    if maze is not None:
        _solve(network, maze, options, console)
        return 0
    _show(network, about, options, console)
    return 0


def _network(options: Options, console: Console) -> tuple[MazeNetwork, dict[str, Any], Options]:
    """The network of --load or one trained here, how it was trained, and the options with its architecture."""
    if options.load is not None:
        network, about = load_network(options.load, **options.run_settings())
        network.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        options = dataclasses.replace(options, architecture=network.architecture)
        _say(console, f"network loaded from {options.load}: {_described(network)}; {about.get('steps')} training steps")
        return network, about, options
    return *_trained(options, console), options


def _trained(options: Options, console: Console) -> tuple[MazeNetwork, dict[str, Any]]:
    a = options.architecture
    test = problem.test_mazes(a.cells, options.test_mazes, options.seed, ())
    training = Training(options, frozenset(test.keys()))
    _say(console, f"network: {_described(training.network)}")
    _say(console, f"runs on: {options.device}, {options.threads} CPU thread(s), backend {training.backends}")
    if not options.fresh and training.resume():
        done = "finished" if training.step == options.steps else f"goes on at step {training.step} of {options.steps}"
        _say(console, f"found {training.file()}: training {done} (--fresh starts anew)")
        if training.made_on != training.backends:
            _say(
                console,
                f"its steps ran on backend {training.made_on}: what follows may differ from an unbroken run by rounding",
            )
    began = training.step
    if began < options.steps:
        with show.training_progress(console, training) as report:
            training.run(report)
    about = {
        "steps": training.step,
        "seconds": round(training.seconds, 2),
        "batch": options.batch,
        "seed": options.seed,
        "test_mazes": options.test_mazes,
        "backends": training.backends,
        "learning_rate": options.learning_rate,
        "last_loss": float(np.mean(training.losses[-20:])),
    }
    _say(
        console,
        f"trained: {training.step} steps, {training.step * options.batch} fresh mazes of {a.cells}×{a.cells} cells, "
        f"{training.seconds:.1f} s; no test maze among them",
    )
    return training.network, about


def _described(network: MazeNetwork) -> str:
    a = network.architecture
    kind = "recurrent" if a.tied else "feed-forward (untied)"
    recall = "recall" if a.recall else "no recall"
    parameters = sum(p.numel() for p in network.parameters())
    return f"{kind}, width {a.width}, {a.iterations} iterations, {recall}, {parameters:,} parameters"


def _show(network: MazeNetwork, about: dict[str, Any], options: Options, console: Console) -> None:
    a = options.architecture
    sizes = options.test_cells or (a.cells, a.cells + 1, a.cells + 2)
    seen = frozenset() if options.load is None else problem.training_keys(a.cells, about, options.load)
    sets = [problem.test_mazes(cells, options.test_mazes, options.seed, seen) for cells in sizes]
    curves = [evaluation.curve(network, one, options.longest, options.device) for one in sets]
    console.print()
    console.print(show.accuracy_table(curves, a.cells, a.iterations))
    goals = [goal for one in curves if one.cells == a.cells for goal in evaluation.goals(one, a.iterations)]
    for goal in goals:
        _say(console, str(goal))
    if not all(goal.reached for goal in goals):
        _say(console, f"A run can miss its goal: try another --seed (this was {options.seed}) or more --steps.")
    _print_gains(curves, a, console)

    solving = _slowest_solved(network, sets[-1], curves[-1], options)
    settled = bool(curves[-1].settled.any())
    size = f"{sizes[-1]}×{sizes[-1]}"
    if settled:
        _say(console, f"\nof the unseen mazes of {size} cells that were solved for good, the one that took longest:")
    else:
        _say(console, f"\nnone of the unseen mazes of {size} cells was solved for good; the first of them:")
    _play(solving, options, console)

    tables = []
    images, targets = problem.tensors(sets[0][: options.batch], options.device)
    for iterations in dict.fromkeys(network.longest(number) for number in options.compare):
        rows = comparison.compare(network, images, targets, iterations)
        console.print(show.comparison_table(rows, iterations, len(images), sizes[0]))
        tables.append({"iterations": iterations, "batch": len(images), "rows": [row.stored() for row in rows]})
    _store(about, options, curves, goals, solving, tables, console)


def _print_gains(curves: Sequence[Curve], architecture: Architecture, console: Console) -> None:
    """Sizes that were not trained on: does running longer than any training step did help?"""
    most = trained_iterations(architecture)[1]
    for one in curves:
        highest, best_at = one.best()
        usual, longest = one.at(architecture.iterations), one.at(most)
        if one.cells == architecture.cells or usual is None or longest is None or best_at <= most:
            continue
        _say(
            console,
            f"{one.cells} cells, never trained on: {evaluation.percent(usual)} at {architecture.iterations} iterations, "
            f"{evaluation.percent(longest)} at {most}, the most it ran in training, {evaluation.percent(highest)} at {best_at}",
        )


@torch.no_grad()
def _solving(network: MazeNetwork, image: Tensor, right: Any, longest: int) -> Solving:
    """Runs one maze, (1, 3, H, W); `right` judges the pixels (H, W) that are said to be on the path."""
    shares, paths = [], []
    for scores in network.every_iteration(image, network.longest(longest)):
        shares.append(scores.softmax(dim=1)[0, 1].cpu().numpy())
        paths.append(problem.prediction(scores, image)[0].cpu().numpy())
    units = pictures.units_of(image[0].cpu().numpy())
    return Solving(units, np.stack(shares), np.stack(paths), tuple(bool(right(path)) for path in paths))


def _slowest_solved(network: MazeNetwork, chosen: MazeSet, curve: Curve, options: Options) -> Solving:
    """The maze that took the most iterations of those that came right and stayed so (the first maze, if none did)."""
    number = int(curve.settled.argmax())
    image, target = problem.tensors(chosen[number : number + 1], options.device)
    solution = target[0].cpu().numpy() == 1
    return _solving(network, image, lambda path: np.array_equal(path, solution), options.longest)


def _play(solving: Solving, options: Options, console: Console) -> None:
    def frame(number: int) -> tuple[str, NDArray[np.int64], NDArray[np.bool_]]:
        return solving.title(number), solving.units, solving.paths[number - 1]

    if console.is_terminal and options.animate and 2 * solving.units.shape[1] <= console.width:
        show.animate(console, [frame(number) for number in range(1, solving.finished() + 1)])
    else:
        frames = [frame(number) for number in solving.chosen(PANELS)]
        console.print(show.side_by_side(frames, console.width), markup=False)


def _panels(solving: Solving) -> list[tuple[str, NDArray[np.floating]]]:
    return [(solving.title(number), solving.shares[number - 1]) for number in solving.chosen(PANELS)]


def _solve(network: MazeNetwork, maze: user_maze.UserMaze, options: Options, console: Console) -> None:
    """Solves the user's maze and says whether the path is a shortest one."""
    image = torch.from_numpy(maze.image).to(options.device, memory_format=torch.channels_last)
    solving = _solving(network, image, maze.solved_by, options.longest)
    _say(
        console,
        f"{options.solve}: {maze.units.shape[0]}×{maze.units.shape[1]} units, shortest path {maze.length} steps",
    )
    if maze.ways > 1:
        _say(console, f"{maze.ways} paths are shortest; the network was trained on mazes that have one")
    _play(solving, options, console)
    last = len(solving.right)
    if any(solving.right):
        stays = "and stays so" if all(solving.right[solving.finished() - 1 :]) else "but not at every later one"
        _say(console, f"solved: every pixel is right from iteration {solving.finished()} on, {stays} up to {last}")
    else:
        missing = int((maze.path & ~solving.paths[-1]).sum())
        _say(
            console,
            f"NOT solved within {last} iterations: {missing} of {maze.length + 1} path pixels are missing. A larger --longest "
            f"may help; the network knows mazes whose ways are one pixel wide, between walls on a grid.",
        )
    file = options.folder() / f"solved-{Path(str(options.solve)).stem}.png"
    pictures.save(pictures.solving_figure(solving.units, _panels(solving)), file)
    _say(console, f"picture: {file}")


def _store(
    about: dict[str, Any],
    options: Options,
    curves: Sequence[Curve],
    goals: Sequence[evaluation.Goal],
    solving: Solving,
    tables: Sequence[dict[str, Any]],
    console: Console,
) -> None:
    """Pictures first, result.json last: where it is, the run is finished."""
    a, folder = options.architecture, options.folder()
    trained = trained_iterations(a)
    panels = _panels(solving)
    both = pictures.both_figure(solving.units, panels, curves, a.cells, trained)
    files = [
        pictures.save(pictures.accuracy_figure(curves, a.cells, trained), folder / "accuracy.png"),
        pictures.save(pictures.solving_figure(solving.units, panels), folder / "solved.png"),
        pictures.save(both, folder / "demo.png"),
        folder / "result.json",
    ]
    result = {
        "settings": options.identity(),
        "trained": about,
        "accuracy": {str(one.cells): {"mazes": one.mazes, "by_iteration": one.accuracy} for one in curves},
        "goals": [dataclasses.asdict(goal) | {"reached": goal.reached} for goal in goals],
        "training_step": tables,
        "rdk": rdk.__version__,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    write_atomic(files[-1], lambda file: file.write((json.dumps(result, indent=1) + "\n").encode()))
    _say(console, "files: " + ", ".join(map(str, files)))


__all__ = ["DisagreementError", "Stopped", "run"]
