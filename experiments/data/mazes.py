"""The paper's mazes, drawn as images and kept apart by key; called by the demo, sets, analyses, report, maze_cli and maze_files.

    python -m experiments.data.mazes --cells 5 --count 60000 --out mazes5.npz
    python -m experiments.data.mazes --paper data/mazes        # 50,000 + 10,000 each of 5, 6 and 7 cells

Source: Schwarzschild et al. (ICLR 2022); every step as their generator does it, see docs/mazes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experiments.data.maze_raster import authors_path, breadth_first, place_on_canvas, rasterize
from experiments.data.maze_trees import Trees, grow

POSTS = ("closed", "authors_v1")
SIZES = {"small": 5, "medium": 6, "large": 7}  # the paper's names: 9×9, 11×11, 13×13 without the frame
CANVAS = 32  # pixels of the paper's images
MOST_CELLS = 250  # a maze of 250 cells a side is an image of 501×501 units
CELLS_PER_CHUNK = 2**17  # what is advanced together; part of what a seed means


@dataclass(frozen=True)
class MazeSet:
    """N mazes of cells × cells, compact. S = 2 * cells + 1 is the raster's side, frame included."""

    cells: int
    posts: str
    right: NDArray[np.bool_]  # (N, cells, cells-1): openings between a cell and its right neighbour
    down: NDArray[np.bool_]  # (N, cells-1, cells): and the one below
    start: NDArray[np.int64]  # (N,) cell numbers, row * cells + column
    end: NDArray[np.int64]  # (N,)
    solution: NDArray[np.bool_]  # (N, S, S): the pixels of the labelled shortest path, both ends included

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: slice | NDArray[np.int64] | NDArray[np.bool_]) -> MazeSet:
        """The mazes of a slice, of an array of numbers or of a mask."""
        walls = self.right[index], self.down[index]
        return MazeSet(self.cells, self.posts, *walls, self.start[index], self.end[index], self.solution[index])

    @property
    def size(self) -> int:
        """S, the raster's side in units."""
        return 2 * self.cells + 1

    @property
    def free(self) -> NDArray[np.bool_]:
        """(N, S, S): every pixel that is no wall."""
        return rasterize(self.right, self.down, self.posts)

    def images(self, scale: int = 1, canvas: int | None = None) -> NDArray[np.uint8]:
        """(N, 3, H, W) of 0 and 1: start green, end red, free white, walls and padding black.

        scale: pixels per unit. canvas: side of the black square in whose middle the maze lies; None for the maze alone.
        The paper's images are scale=2, canvas=32. Raises ValueError where the canvas is too small.
        """
        rows = np.arange(len(self))
        drawn = np.repeat(self.free[:, None].astype(np.uint8), 3, axis=1)
        for cell, channel in ((self.start, 1), (self.end, 0)):
            row, column = np.divmod(cell, self.cells)
            drawn[rows, :, 2 * row + 1, 2 * column + 1] = 0
            drawn[rows, channel, 2 * row + 1, 2 * column + 1] = 1
        return place_on_canvas(drawn, scale, canvas)

    def targets(self, scale: int = 1, canvas: int | None = None) -> NDArray[np.uint8]:
        """(N, H, W): 1 on the solution, 0 elsewhere; scale and canvas as in `images`."""
        return place_on_canvas(self.solution.astype(np.uint8), scale, canvas)

    def lengths(self) -> NDArray[np.int64]:
        """(N,) steps on the raster from start to end: two per cell."""
        return np.asarray(self.solution.sum((1, 2), dtype=np.int64)) - 1

    def keys(self) -> list[bytes]:
        """What makes a maze this maze: its walls, start and end. Mazes of different sizes never share a key."""
        count, walls = len(self), self.cells * (self.cells - 1)
        bits = np.concatenate([self.right.reshape(count, walls), self.down.reshape(count, walls)], axis=1)
        ends = np.stack([np.full(count, self.cells), self.start, self.end], axis=1).astype(">u2")
        packed = np.concatenate([ends.view(np.uint8).reshape(count, 6), np.packbits(bits, axis=1)], axis=1)
        return [row.tobytes() for row in packed]


def generate(
    cells: int,
    count: int,
    *,
    seed: int = 0,
    stream: int = 0,
    posts: str = "closed",
    exclude: Collection[bytes] = frozenset(),
    progress: Callable[[int], object] | None = None,
) -> MazeSet:
    """`count` random mazes.

    Args:
        cells: side in cells, at least 2; the paper has 5, 6 and 7.
        count: how many; the first mazes of a seed are the same whatever the count.
        seed, stream: equal numbers give equal mazes; another stream of a seed is independent of it.
        posts: "closed", every maze has one way through; or "authors_v1", the rule behind the paper's printed numbers
            (some posts are free, the label is one of the shortest paths). The trees of a seed are the same under both.
        exclude: keys (`MazeSet.keys`) of mazes that must not come.
        progress: called with the number of mazes done since the last call.

    Raises TypeError and ValueError for arguments that do not fit, and ValueError where no maze is left to be drawn.
    """
    _check(cells, count, seed, stream, posts)
    parts: list[MazeSet] = []
    missing = count
    for drawn in _chunks(cells, seed, stream, posts):
        wanted = drawn[: max(missing, 0)] if not exclude else drawn[_allowed(drawn, exclude)][:missing]
        if missing and not len(wanted):
            raise ValueError(
                f"mazes: of {count} mazes of {cells}×{cells} cells, {missing} can't be drawn: {len(drawn)} draws in a row "
                f"were all among the {len(exclude)} excluded ones. Ask for fewer, exclude fewer, or use more cells."
            )
        parts.append(_solved(wanted))
        missing -= len(wanted)
        if progress is not None:
            progress(len(wanted))
        if missing <= 0:
            break
    return _joined(parts)


def train_and_test(
    cells: int,
    train: int = 50_000,
    test: int = 10_000,
    *,
    seed: int = 0,
    posts: str = "closed",
    progress: Callable[[int], object] | None = None,
) -> tuple[MazeSet, MazeSet]:
    """A training set, and a test set drawn after it that shares no key with it. Arguments as in `generate`."""
    train_set = generate(cells, train, seed=seed, posts=posts, progress=progress)
    known = frozenset(train_set.keys())
    return train_set, generate(cells, test, seed=seed, stream=1, posts=posts, exclude=known, progress=progress)


def duplicates(mazes: MazeSet) -> int:
    """Surplus copies: how many mazes are the same as an earlier one of the set."""
    return len(mazes) - len(set(mazes.keys()))


def overlap(mazes: MazeSet, others: MazeSet) -> int:
    """How many of `mazes` are also among `others`."""
    known, keys = frozenset(others.keys()), mazes.keys()
    return sum(key in known for key in keys)


def widest_shift(cells: int, scale: int = 2, canvas: int = CANVAS) -> int:
    """Pixels by which the authors' loader may move a maze either way: one less than its margin (4, 2, 0 for 5, 6, 7 cells)."""
    return max((canvas - scale * (2 * cells + 1)) // 2 - 1, 0)


def _check(cells: int, count: int, seed: int, stream: int, posts: str) -> None:
    for name, value in (("cells", cells), ("count", count), ("seed", seed), ("stream", stream)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"mazes: {name} must be an integer, got {value!r} ({type(value).__name__}).")
    if not 2 <= cells <= MOST_CELLS:
        raise ValueError(f"mazes: cells must be from 2 to {MOST_CELLS}, got {cells}; the paper's sizes are 5, 6 and 7.")
    for name, value in (("count", count), ("seed", seed), ("stream", stream)):
        if value < 0:
            raise ValueError(f"mazes: {name} must not be negative, got {value}.")
    if posts not in POSTS:
        raise ValueError(f"mazes: posts must be one of {', '.join(POSTS)}, got {posts!r}.")


def _chunks(cells: int, seed: int, stream: int, posts: str) -> Iterator[MazeSet]:
    """Mazes without end, each chunk from an own seed so that none depends on how many are drawn; not yet re-solved."""
    size = max(CELLS_PER_CHUNK // (cells * cells), 1)
    chunk = 0
    while True:
        sequence = np.random.SeedSequence(seed, spawn_key=(cells, stream, chunk))
        trees = grow(cells, size, np.random.Generator(np.random.PCG64(sequence)))
        yield _from_trees(trees, cells, posts)
        chunk += 1


def _from_trees(trees: Trees, cells: int, posts: str) -> MazeSet:
    return MazeSet(cells, posts, trees.right, trees.down, trees.start, trees.end, trees.path)


def _allowed(mazes: MazeSet, exclude: Collection[bytes]) -> NDArray[np.bool_]:
    keys = mazes.keys()
    return np.fromiter((key not in exclude for key in keys), bool, len(keys))


def _solved(mazes: MazeSet) -> MazeSet:
    """Under "authors_v1" the tree's path need not be the shortest: solves the rasters anew, ties as the authors' heap."""
    if mazes.posts == "closed" or not len(mazes):
        return mazes
    free = mazes.free
    start, end = (2 * np.stack(np.divmod(cell, mazes.cells), axis=1) + 1 for cell in (mazes.start, mazes.end))
    found = breadth_first(free, start, end)
    solution = found.path
    for number in np.flatnonzero(found.ways > 1):
        solution[number] = authors_path(free[number], start[number], end[number])
    return replace(mazes, solution=solution)


def _joined(parts: list[MazeSet]) -> MazeSet:
    if len(parts) == 1:
        return parts[0]
    arrays = zip(*((part.right, part.down, part.start, part.end, part.solution) for part in parts), strict=True)
    return MazeSet(parts[0].cells, parts[0].posts, *(np.concatenate(array) for array in arrays))


if __name__ == "__main__":
    from experiments.data.maze_cli import main

    raise SystemExit(main())
