"""Random spanning trees of a grid of cells, a whole batch advanced together; called by mazes.generate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STAY = 4  # a fifth direction: nowhere to go


class Trees(NamedTuple):
    """B spanning trees of c×c cells. Cell (row, column) has the number row * c + column."""

    right: NDArray[np.bool_]  # (B, c, c-1): is the wall between a cell and its right neighbour open
    down: NDArray[np.bool_]  # (B, c-1, c): likewise to the neighbour below
    start: NDArray[np.int64]  # (B,) cell where the search began
    end: NDArray[np.int64]  # (B,) another cell
    path: NDArray[np.bool_]  # (B, 2c+1, 2c+1): the only way through the tree from start to end, on the raster


def _choices() -> NDArray[np.uint8]:
    """(16, 12): direction for a set of open directions (4 bits) and a number below 12, which 1, 2, 3 and 4 divide."""
    table = np.full((16, 12), STAY, np.uint8)
    for mask in range(1, 16):
        directions = [d for d in range(4) if mask >> d & 1]
        table[mask] = [directions[number % len(directions)] for number in range(12)]
    return table


CHOICES = _choices()


def draw_ends(cells: int, count: int, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end cells, uniform over ordered pairs of different cells."""
    start = random.integers(0, cells * cells, count)
    end = random.integers(0, cells * cells - 1, count)
    return start, end + (end >= start)


def grow(cells: int, count: int, random: np.random.Generator) -> Trees:
    """`count` depth-first trees: from the start cell to a uniformly chosen unvisited neighbour, back where there is none,
    until every cell was visited (Schwarzschild et al. 2022, as their generator does it)."""
    start, end = draw_ends(cells, count, random)
    width = cells + 2  # with a border of visited cells
    area = width * width
    steps = np.array([1, width, -1, -width, 0])  # right, down, left, up, stay
    border = np.ones((count, width, width), bool)
    border[:, 1:-1, 1:-1] = False
    visited = border.reshape(-1)
    came_by = np.full(count * area, STAY, np.uint8)  # the direction that led into a cell
    opened = np.zeros((2, count * area), bool)  # to the right, down
    base = np.arange(count) * area
    start_place = base + _padded(start, cells)
    place = start_place.copy()
    visited[place] = True
    stack = np.empty((cells * cells, count), np.int64)
    stack[0] = place
    depth = np.zeros(count, np.int64)
    rows = np.arange(count)
    left = np.full(count, cells * cells - 1)
    while left.any():
        mask = np.zeros(count, np.uint8)
        for direction in range(4):
            mask |= (~visited[place + steps[direction]]).astype(np.uint8) << direction
        direction = CHOICES[mask, random.integers(0, 12, count, np.uint8)]
        moves = np.flatnonzero(direction != STAY)
        depth -= 1
        depth[moves] += 2
        np.maximum(depth, 0, out=depth)
        here, taken = place[moves], direction[moves]
        there = here + steps[taken]
        visited[there] = True
        came_by[there] = taken
        opened[taken & 1, np.minimum(here, there)] = True
        stack[depth[moves], moves] = there
        left[moves] -= 1
        place = stack[depth, rows]
    right, down = opened.reshape(2, count, width, width)
    return Trees(
        right=right[:, 1:-1, 1:-2].copy(),
        down=down[:, 1:-2, 1:-1].copy(),
        start=start,
        end=end,
        path=_walk_back(cells, base + _padded(end, cells), start_place, came_by, steps),
    )


def _padded(cell: NDArray[np.int64], cells: int) -> NDArray[np.int64]:
    row, column = np.divmod(cell, cells)
    return (row + 1) * (cells + 2) + column + 1


def _walk_back(
    cells: int,
    place: NDArray[np.int64],
    start: NDArray[np.int64],
    came_by: NDArray[np.uint8],
    steps: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Marks the raster pixels from the end to the start along the directions that led into each cell."""
    count, size, width = len(place), 2 * cells + 1, cells + 2
    path = np.zeros((count, size, size), bool)
    rows = np.arange(count)
    sides = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])
    while len(rows):
        row, column = np.divmod(place[rows] % (width * width), width)
        row, column = 2 * row - 1, 2 * column - 1
        path[rows, row, column] = True
        on_the_way = place[rows] != start[rows]
        rows, row, column = rows[on_the_way], row[on_the_way], column[on_the_way]
        direction = came_by[place[rows]]
        path[rows, row - sides[direction, 0], column - sides[direction, 1]] = True
        place[rows] -= steps[direction]
    return path
