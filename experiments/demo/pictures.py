"""The demo's pictures: a maze solved iteration by iteration, and accuracy against iterations; called by run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.data.atomic import write_atomic
from experiments.demo.evaluation import Curve
from experiments.demo.user_maze import COLOURS, FREE, WALL

LINES = ("#1b6ca8", "#d9822b", "#7a4ea3", "#3a8f5c", "#b8405e", "#6b6b6b")
PATH = np.array([0x1B, 0x6C, 0xA8]) / 255
SHADES = np.array([[0x2B, 0x2B, 0x2B], [0xF4, 0xF1, 0xEA], [0x2E, 0xA0, 0x4B], [0xD0, 0x3A, 0x3A]]) / 255


def painted(units: NDArray[np.int64], share: NDArray[np.floating]) -> NDArray[np.float64]:
    """(H, W, 3): the maze, with every way coloured by how sure the network is that it is on the path (0 to 1)."""
    assert len(SHADES) == len(COLOURS)
    colours = SHADES[units]
    weight = np.where(units == FREE, share, 0.0)[..., None]
    return colours * (1 - weight) + PATH * weight


def solving(axes: Sequence[Axes], units: NDArray[np.int64], steps: Sequence[tuple[str, NDArray[np.floating]]]) -> None:
    """One panel per step: its title, and the share that the network gives every pixel."""
    for one, (title, share) in zip(axes, steps, strict=True):
        one.imshow(painted(units, share), interpolation="nearest")
        one.set_title(title, fontsize=9)
        one.set_axis_off()


def accuracy(axes: Axes, curves: Sequence[Curve], trained_cells: int, trained: tuple[int, int]) -> None:
    """Accuracy against iterations, one line per size; the band is what the network was trained with."""
    axes.axvspan(trained[0] - 0.5, trained[1] + 0.5, color="#00000010", lw=0)
    middle = (trained[0] + trained[1]) / 2
    shown = f"{trained[0]}–{trained[1]}" if trained[0] < trained[1] else str(trained[0])
    axes.text(middle, 3, f"trained with {shown} iterations", ha="center", va="bottom", fontsize=8, color="#555555")
    for number, one in enumerate(curves):
        seen = "trained on" if one.cells == trained_cells else "never trained on"
        axes.plot(
            range(1, len(one.accuracy) + 1),
            [100 * value for value in one.accuracy],
            color=LINES[number % len(LINES)],
            lw=2,
            marker="o" if len(one.accuracy) == 1 else None,
            label=f"{one.cells}×{one.cells} cells, {seen}",
        )
    longest = max(len(one.accuracy) for one in curves)
    axes.set(xlim=(0.5, longest + 0.5), ylim=(0, 101), xlabel="iterations", ylabel="mazes solved exactly, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=9, frameon=False)


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=130))
    return path


def solving_figure(units: NDArray[np.int64], steps: Sequence[tuple[str, NDArray[np.floating]]]) -> Figure:
    """A maze solved iteration by iteration, in one row."""
    height, width = units.shape
    figure = Figure(figsize=(1.75 * len(steps) * max(width / height, 0.6), 2.1), layout="constrained")
    solving(figure.subplots(1, len(steps), squeeze=False)[0], units, steps)
    return figure


def accuracy_figure(curves: Sequence[Curve], trained_cells: int, trained: tuple[int, int]) -> Figure:
    """Accuracy against iterations."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    accuracy(figure.subplots(), curves, trained_cells, trained)
    return figure


def both_figure(
    units: NDArray[np.int64],
    steps: Sequence[tuple[str, NDArray[np.floating]]],
    curves: Sequence[Curve],
    trained_cells: int,
    trained: tuple[int, int],
) -> Figure:
    """The README's picture: the maze above, the curve below."""
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.75, 3.6))[:, 0]
    solving(upper.subplots(1, len(steps), squeeze=False)[0], units, steps)
    accuracy(lower.subplots(), curves, trained_cells, trained)
    return figure


def units_of(image: NDArray[np.floating]) -> NDArray[np.int64]:
    """(3, H, W) of 0 and 1 → (H, W) of WALL, FREE, START, END."""
    distance = np.abs(image.transpose(1, 2, 0)[:, :, None] - COLOURS).sum(axis=3)
    units = distance.argmin(axis=2)
    assert WALL == 0
    return units
