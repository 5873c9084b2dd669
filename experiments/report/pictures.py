"""Every picture of the report, as PNG and PDF, with fixed colours: recurrent C0, feed-forward C1; called by the sections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from experiments.data.mazes import SIZES

COLOURS = {True: "C0", False: "C1"}
KINDS = {True: "recurrent", False: "feed-forward"}
DATA_NAMES = {
    "cifar10": "CIFAR-10",
    "svhn": "SVHN",
    "emnist": "EMNIST",
    "imagenet": "ImageNet",
    "digits": "digits",
    "mazes": "mazes",
}
DATA_NAMES |= {str(cells): f"{name} mazes" for name, cells in SIZES.items()}


@contextmanager
def saved(path: Path, columns: int = 1, rows: int = 1, width: float = 4.2, height: float = 3.2) -> Iterator[Any]:
    """Axes of a new figure (columns × rows), written to path.png and path.pdf at the end."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    yield axes[0] if rows == 1 else axes
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_name(path.name + ".png"), dpi=110, metadata={"Software": None})
    figure.savefig(path.with_name(path.name + ".pdf"), metadata={"CreationDate": None})
    plt.close(figure)


def accuracy_against_depth(path: Path, runs: pd.DataFrame, by: str, label: str) -> None:
    """Figures 2 and 5: a panel per data set, mean and standard error against depth."""
    panels = sorted(runs[by].unique())
    with saved(path, len(panels)) as axes:
        for axis, panel in zip(axes, panels, strict=True):
            chosen = runs[runs[by] == panel]
            for recurrent in (True, False):
                grouped = chosen[chosen["recurrent"] == recurrent].groupby("depth")["test_accuracy"]
                if not len(grouped):
                    continue
                mean, error = grouped.mean(), grouped.sem(ddof=1)
                style = {
                    "color": COLOURS[recurrent],
                    "label": KINDS[recurrent],
                    "marker": "o",
                    "markersize": 4,
                    "capsize": 3,
                }
                axis.errorbar(mean.index, mean, yerr=error, **style, linestyle="-" if recurrent else "--")
            axis.set(
                title=DATA_NAMES.get(str(panel), str(panel)),
                xlabel="effective depth",
                xticks=sorted(chosen["depth"].unique()),
            )
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(label)
        axes[0].legend()


def effective_depth(path: Path, iterations: int) -> None:
    """Figure 1: the recurrent net as it is written and unrolled."""
    with saved(path, 1, 1, 7.5, 2.9) as (axis,):
        rows = {1.0: [("layer", "C7")] * 2 + [("module", "C0")] + [("layer", "C7")] * 2}
        rows[0.0] = [("layer", "C7")] * 2 + [("module", "C0")] * iterations + [("layer", "C7")] * 2
        for y, boxes in rows.items():
            for number, (text, colour) in enumerate(boxes):
                x = number + (7 - len(boxes)) / 2
                axis.add_patch(Rectangle((x, y), 0.8, 0.5, facecolor=colour, alpha=0.55, edgecolor="black"))
                axis.text(x + 0.4, y + 0.25, text, ha="center", va="center", fontsize=9)
                if number:
                    axis.annotate("", (x, y + 0.25), (x - 0.2, y + 0.25), arrowprops={"arrowstyle": "->"})
        axis.annotate(
            "",
            (3.0, 1.52),
            (3.8, 1.52),
            arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=0.9", "color": "C0"},
        )
        axis.text(3.4, 1.95, f"× {iterations}", ha="center", color="C0")
        axis.text(3.4, -0.25, f"effective depth 2 + {iterations} × 1 + 2 = {4 + iterations}", ha="center")
        axis.set(xlim=(-0.2, 7.0), ylim=(-0.4, 2.2))
        axis.axis("off")


def mazes(path: Path, drawn: dict[str, list[list[int]]]) -> None:
    """Figure 3: each maze as the net sees it, and with its solution."""
    colours = ListedColormap(["black", "white", "tab:blue", "limegreen", "red"])
    with saved(path, 2 * len(drawn), 1, 2.4, 2.6) as axes:
        for number, (posts, units) in enumerate(drawn.items()):
            solved = np.array(units)
            plain = np.where(solved == 2, 1, solved)
            for offset, (image, title) in enumerate(((plain, f"posts {posts}"), (solved, "solution"))):
                axis = axes[2 * number + offset]
                axis.imshow(image, cmap=colours, vmin=0, vmax=4, interpolation="nearest")
                axis.set_title(title, fontsize=9)
                axis.axis("off")


def path_lengths(path: Path, values: dict[str, Any]) -> None:
    """Figure 4: the histograms of the three sizes; bars closed posts, lines the authors' rule."""
    with saved(path, len(SIZES)) as axes:
        for axis, name in zip(axes, SIZES, strict=True):
            for posts in ("closed", "authors_v1"):
                entry = values[f"{name} {posts}"]
                lengths = [int(length) for length in entry["histogram"]]
                shares = [100 * times / entry["count"] for times in entry["histogram"].values()]
                if posts == "closed":
                    axis.bar(lengths, shares, width=1.6, color="C0", label=f"closed, n={entry['count']:,}")
                else:
                    axis.plot(lengths, shares, "C3.-", label=f"authors_v1, n={entry['count']:,}")
            axis.set(title=f"{name} mazes", xlabel="path length in steps on the raster")
            axis.legend(fontsize=7)
        axes[0].set_ylabel("% of mazes")


def active_neurons(path: Path, nets: list[dict[str, Any]]) -> None:
    """Figures 6, 9, 10 and 11: per iteration, activity as a share of the filter's most active iteration."""
    count = len(nets[0]["histograms"])
    with saved(path, count, 1, 2.3, 2.5) as axes:
        edges = np.linspace(0, 1, nets[0]["bins"] + 1)
        for iteration, axis in enumerate(axes):
            for net in nets:
                bins = np.array(net["histograms"][iteration], dtype=float)
                axis.stairs(bins / max(1.0, bins.sum()), edges, fill=len(nets) == 1, label=f"seed {net['seed']}")
            axis.set(title=f"iteration {iteration + 1}", xlabel="share of most active")
            axis.set_yscale("log")
        axes[0].set_ylabel("share of pairs")
        if len(nets) > 1:
            axes[-1].legend(fontsize=7)


def test_time_iterations(path: Path, nets: list[dict[str, Any]]) -> None:
    """Beside Figure 5: accuracy of each recurrent net after every iteration, up to twice its own number; a colour per depth."""
    sizes, depths, seeds = (sorted({net[name] for net in nets}) for name in ("cells", "depth", "seed"))
    with saved(path, len(sizes)) as axes:
        for axis, cells in zip(axes, sizes, strict=True):
            for net in (net for net in nets if net["cells"] == cells):
                line, own = net["per_iteration"], net["trained_iterations"]
                colour = f"C{depths.index(net['depth'])}"
                label = f"depth {net['depth']}" if net["seed"] == seeds[0] else None
                axis.plot(range(1, len(line) + 1), line, color=colour, label=label, linewidth=1)
                axis.plot([own], [line[own - 1]], "o", color=colour, markersize=4)
            axis.set(title=f"mazes of {cells} cells", xlabel="iterations at test time", ylabel="% solved")
            axis.grid(alpha=0.3)
        axes[-1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def probe_curves(path: Path, values: dict[str, list[dict[str, float]]]) -> None:
    """Beside Tables 3, 6 and 7: probe accuracy after each iteration."""
    with saved(path) as (axis,):
        for name, line in values.items():
            colour = COLOURS[True] if name.startswith("recurrent") else COLOURS[False]
            style = ":" if "global" in name or "convnet" in name else "-"
            axis.plot(
                range(1, len(line) + 1),
                [entry["test"] for entry in line],
                style,
                marker="o",
                color=colour,
                label=f"{name}, test",
            )
        axis.set(
            xlabel="after iteration", ylabel="probe accuracy, %", xticks=range(1, 1 + max(map(len, values.values())))
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
