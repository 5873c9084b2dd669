"""What the paper says of its mazes: a sample, path lengths, duplicates, disjoint sets (F3, F4, C7, C8); called by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from experiments.configs import Experiment
from experiments.data import mazes
from experiments.engine import Place
from experiments.settings import Run

PERCENTILES = (10, 25, 50, 75, 90, 99)


def _counts(scale: str) -> tuple[int, int]:
    return (50_000, 10_000) if scale == "full" else (500, 100)


def sample_maze(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Figure 3: one maze of 7 cells with both rules for posts; 0 wall, 1 free, 2 solution, 3 start, 4 end."""
    drawn = {}
    for posts in mazes.POSTS:
        found = mazes.generate(7, 1, seed=3, posts=posts)
        units = found.free[0].astype(int) + found.solution[0]
        for value, cell in ((3, found.start[0]), (4, found.end[0])):
            row, column = divmod(int(cell), 7)
            units[2 * row + 1, 2 * column + 1] = value
        drawn[posts] = units.tolist()
    return {"cells": 7, "seed": 3, "mazes": drawn}


def path_lengths(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Figure 4: lengths of the labelled paths, in steps on the raster (two per cell), of 60,000 mazes per size."""
    found: dict[str, Any] = {}
    for posts, count in (("closed", sum(_counts(scale))), ("authors_v1", min(4_000, sum(_counts(scale))))):
        for name, cells in mazes.SIZES.items():
            lengths = mazes.generate(cells, count, seed=0, posts=posts).lengths()
            found[f"{name} {posts}"] = {
                "count": count,
                "mean": float(lengths.mean()),
                "deviation": float(lengths.std(ddof=1)),
                "percentiles": dict(
                    zip(map(str, PERCENTILES), np.percentile(lengths, PERCENTILES).tolist(), strict=True)
                ),
                "longest": int(lengths.max()),
                "histogram": {str(length): times for length, times in sorted(Counter(lengths.tolist()).items())},
            }
    return found


def duplicates(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Claim C7: the share of training mazes (same walls, start and end) that occur before, and that have any twin."""
    count, seeds = _counts(scale)[0], (0, 1, 2)
    found: dict[str, Any] = {"count": count, "seeds": list(seeds)}
    for name, cells in mazes.SIZES.items():
        surplus, members = [], []
        for seed in seeds:
            times = Counter(mazes.generate(cells, count, seed=seed).keys())
            surplus.append(100 * (count - len(times)) / count)
            members.append(100 * sum(number for number in times.values() if number > 1) / count)
        found[name] = {"surplus_percent": surplus, "members_percent": members}
    return found


def disjoint(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Claim C8: test mazes that are also training mazes, drawn freely and as drawn here, where the known are left out."""
    train_count, test_count = _counts(scale)
    found: dict[str, Any] = {"train": train_count, "test": test_count}
    for name, cells in mazes.SIZES.items():
        train, test = mazes.train_and_test(cells, train_count, test_count, seed=0)
        free = mazes.generate(cells, test_count, seed=0, stream=1)
        found[name] = {"without_filter": mazes.overlap(free, train), "as_drawn": mazes.overlap(test, train)}
    return found
