"""What the demo prints: mazes as frames, tables, the progress of training; called by run and, for the console, __main__."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from experiments.demo.comparison import Row
from experiments.demo.evaluation import LONG, Curve, percent
from experiments.demo.training import Training
from experiments.demo.user_maze import END, FREE, START, WALL

SECONDS_PER_FRAME = 0.2
LINE_EVERY = 100  # steps, where there is no terminal
STYLES = {WALL: "on grey30", FREE: "on grey93", START: "on green", END: "on red"}


def make_console() -> Console:
    """A console of the terminal's width; 110 columns where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=110)


@contextmanager
def training_progress(console: Console, training: Training) -> Iterator[Callable[[Training], None]]:
    """A live bar on a terminal, else a line every hundred steps. Gives the function to be called after each step."""
    total = training.options.steps
    if not console.is_terminal:

        def line(now: Training) -> None:
            if now.step % LINE_EVERY == 0 or now.step == total:
                mean = np.mean(now.losses[-LINE_EVERY:])
                console.print(f"  step {now.step:4d} of {total}  loss {mean:.4f}  {now.seconds:.1f} s")

        yield line
        return
    columns = [
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps  loss {task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    ]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=total, completed=training.step, loss="–")

        def advance(now: Training) -> None:
            bar.update(task, completed=now.step, loss=f"{np.mean(now.losses[-20:]):.4f}")

        yield advance


def accuracy_table(curves: Sequence[Curve], trained_cells: int, iterations: int) -> Table:
    """Accuracy per size of maze: at the trained iterations, at the best number, at 20."""
    table = Table(title="unseen mazes whose every pixel is right")
    for heading in ("mazes", "number", f"at {iterations} (trained)", "best", f"at {LONG}"):
        table.add_column(heading, justify="right")
    for one in curves:
        highest, best_at = one.best()
        seen = "" if one.cells == trained_cells else ", never trained on"
        cells = [f"{one.cells}×{one.cells} cells{seen}", str(one.mazes)]
        for number in (iterations, None, LONG):
            got = one.at(number) if number else highest
            shown = percent(got) if got is not None else "can't run so long" if one.ended else "not run so long"
            cells.append(shown if number else f"{shown} at {best_at}")
        table.add_row(*cells)
    return table


def comparison_table(rows: Sequence[Row], iterations: int, batch: int, cells: int) -> Table:
    """Time and memory of one training step, each also as a ratio to plain PyTorch's."""
    table = Table(title=f"one training step, {batch} mazes of {cells}×{cells} cells, {iterations} iterations")
    table.add_column("computed by")
    for heading in ("median ms", "× PyTorch", "peak MiB", "× PyTorch", "gradients differ by"):
        table.add_column(heading, justify="right")
    first = rows[0]
    for row in rows:
        table.add_row(
            row.name,
            f"{1e3 * row.seconds:.1f}",
            f"{row.seconds / first.seconds:.2f}",
            f"{row.peak / 2**20:.1f}",
            f"{row.peak / first.peak:.2f}",
            "–" if row is first else f"{row.difference:.0e}" if row.difference else "0",
        )
    return table


def animate(console: Console, frames: Sequence[tuple[str, NDArray[np.int64], NDArray[np.bool_]]]) -> None:
    """Plays the frames (title, units, pixels said to be on the path) on a terminal; the last one stays."""
    with Live(console=console, auto_refresh=False) as live:
        for title, units, path in frames:
            live.update(coloured(title, units, path), refresh=True)
            time.sleep(SECONDS_PER_FRAME)


def coloured(title: str, units: NDArray[np.int64], path: NDArray[np.bool_]) -> Text:
    """One frame, two columns per unit."""
    text = Text(title + "\n", style="")
    for row, marks in zip(units, path, strict=True):
        for unit, mark in zip(row, marks, strict=True):
            text.append("  ", "on dodger_blue2" if mark and unit == FREE else STYLES[int(unit)])
        text.append("\n")
    return text


def side_by_side(frames: Sequence[tuple[str, NDArray[np.int64], NDArray[np.bool_]]], width: int) -> str:
    """Frames as plain text, as many beside each other as fit `width` columns: # wall, o path, S start, E end."""
    blocks = [[title, *plain(units, path)] for title, units, path in frames]
    gap, lines = 3, []
    while blocks:
        wide = [max(map(len, block)) for block in blocks]
        fit = 1
        while fit < len(blocks) and sum(wide[: fit + 1]) + gap * fit <= width:
            fit += 1
        for number in range(max(len(block) for block in blocks[:fit])):
            parts = [block[number].ljust(wide[i] + gap) for i, block in enumerate(blocks[:fit])]
            lines.append("".join(parts).rstrip())
        lines.append("")
        blocks = blocks[fit:]
    return "\n".join(lines)


def plain(units: NDArray[np.int64], path: NDArray[np.bool_]) -> list[str]:
    """The rows of one frame, one symbol per unit."""
    signs = {WALL: "#", FREE: " ", START: "S", END: "E"}
    return [
        "".join("o" if mark and unit == FREE else signs[int(unit)] for unit, mark in zip(row, marks, strict=True))
        for row, marks in zip(units, path, strict=True)
    ]
