"""`python -m experiments.data.maze_statistics`: what the mazes of both post rules are like; two tables of docs/mazes.md.

--write PATH   rewrite the tables between their markers in that file (docs/mazes.md)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.data import mazes
from experiments.data.maze_raster import breadth_first
from experiments.data.mazes import MazeSet
from rdk import documents

COUNT = 60_000  # mazes of each size, the paper's 50,000 and 10,000


@dataclass(frozen=True)
class Ties:
    """Mazes of one size under posts="authors_v1", beside the same trees under "closed"; shares of mazes from 0 to 1."""

    cells: int
    with_free_post: float
    free_posts: float  # per maze
    several_paths: float  # with more than one shortest path
    shorter: float  # whose shortest path is shorter than the tree's
    off_tree: float  # whose label is not the tree's path
    queue_agrees: float  # where a first-in-first-out search marks the label


def ties(closed: MazeSet, authors: MazeSet) -> Ties:
    """Both sets have the same trees, in the same order."""
    free = authors.free
    posts = free[:, 2:-1:2, 2:-1:2].sum((1, 2))
    start, end = (2 * np.stack(np.divmod(cell, authors.cells), axis=1) + 1 for cell in (authors.start, authors.end))
    queue = breadth_first(free, start, end)
    return Ties(
        authors.cells,
        float((posts > 0).mean()),
        float(posts.mean()),
        float((queue.ways > 1).mean()),
        float((authors.lengths() < closed.lengths()).mean()),
        float((authors.solution != closed.solution).any((1, 2)).mean()),
        float((queue.path == authors.solution).all((1, 2)).mean()),
    )


def tie_table(found: Sequence[Ties]) -> str:
    lines = [
        "| cells | mazes with a free post | free posts per maze | several shortest paths | shorter than the tree's path "
        "| label is not the tree's path | a first-in-first-out queue gives the same label |",
        "|---|---|---|---|---|---|---|",
    ]
    for t in found:
        shares = [f"{100 * share:.1f} %" for share in (t.several_paths, t.shorter, t.off_tree, t.queue_agrees)]
        lines.append(f"| {t.cells} | {100 * t.with_free_post:.2f} % | {t.free_posts:.2f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def length_table(pairs: Sequence[tuple[MazeSet, MazeSet]]) -> str:
    lines = [
        "| cells | path length, closed: mean, deviation, median, longest | authors_v1: mean, median, longest "
        "| on the path among free pixels, closed / authors_v1 |",
        "|---|---|---|---|",
    ]
    for pair in pairs:
        (a, b), shares = [one.lengths() for one in pair], [one.solution.sum() / one.free.sum() for one in pair]
        lines.append(
            f"| {pair[0].cells} | {a.mean():.1f}, {a.std():.1f}, {np.median(a):.0f}, {a.max()} "
            f"| {b.mean():.1f}, {np.median(b):.0f}, {b.max()} | {100 * shares[0]:.1f} / {100 * shares[1]:.1f} % |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.maze_statistics", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=COUNT, help=f"mazes of each size (default {COUNT})")
    parser.add_argument("--write", type=Path, metavar="PATH", help="rewrite the tables of that file")
    options = parser.parse_args(argv)
    pairs = []
    for cells in mazes.SIZES.values():
        closed, authors = (mazes.generate(cells, options.count, posts=posts) for posts in mazes.POSTS)
        pairs.append((closed, authors))
    tables = {"ties": tie_table([ties(*pair) for pair in pairs]), "lengths": length_table(pairs)}
    documents.publish(tables, options.write)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
