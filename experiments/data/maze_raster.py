"""Trees as pixels and shortest paths on pixels; called by mazes (images, targets, posts="authors_v1") and by the demo."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def rasterize(right: Bools, down: Bools, posts: str) -> Bools:
    """(B, 2c+1, 2c+1): which pixels are free. Cells at odd positions, openings between them, posts at even positions.

    posts="closed": every post stands, so the tree's path is the only one. posts="authors_v1": a post stands if the wall
    east or south of it stands, or both north and west do; else it is free, and short cuts arise.
    """
    count, cells = right.shape[:2]
    free = np.zeros((count, 2 * cells + 1, 2 * cells + 1), bool)
    free[:, 1::2, 1::2] = True
    free[:, 1::2, 2:-1:2] = right
    free[:, 2:-1:2, 1::2] = down
    if posts == "authors_v1":
        north, south, west, east = ~right[:, :-1], ~right[:, 1:], ~down[:, :, :-1], ~down[:, :, 1:]
        free[:, 2:-1:2, 2:-1:2] = ~(east | south | (north & west))
    return free


class Search(NamedTuple):
    """What a breadth-first search found in each of B rasters."""

    path: Bools  # (B, H, W): the pixels of the path found, both ends included; empty where there is none
    length: Ints  # (B,) steps; -1 where the end can't be reached
    ways: Ints  # (B,) number of shortest paths


def breadth_first(free: Bools, start: Ints, end: Ints) -> Search:
    """Shortest paths between pixels with 4 neighbours, all rasters of the batch advanced together.

    free: (B, H, W); start and end: (B, 2) row and column. A first-in-first-out search that expands down, right, up, left
    and keeps the first parent of a pixel: of several shortest paths it marks the one that this order finds.
    """
    count, height, width = free.shape
    padded = np.zeros((count, height + 2, width + 2), bool)
    padded[:, 1:-1, 1:-1] = free
    wide, area = width + 2, (height + 2) * (width + 2)
    steps = np.array([wide, 1, -wide, -1])
    base = np.arange(count) * area
    source, goal = (base + (spot[:, 0] + 1) * wide + spot[:, 1] + 1 for spot in (start, end))
    open_pixels = padded.reshape(-1)
    distance = np.full(count * area, -1, np.int64)
    ways = np.zeros(count * area, np.int64)
    parent = np.zeros(count * area, np.int64)
    queue = np.zeros((count, height * width), np.int64)
    tail = np.ones(count, np.int64)
    queue[:, 0], distance[source], ways[source] = source, 0, 1
    active, head = np.arange(count), 0
    while len(active):
        place = queue[active, head]
        going = place != goal[active]
        active, place = active[going], place[going]
        for step in steps:
            there = place + step
            known = distance[there]
            fresh = open_pixels[there] & (known < 0)
            again = known == distance[place] + 1
            ways[there[again]] += ways[place[again]]
            to, of, rows = there[fresh], place[fresh], active[fresh]
            distance[to], ways[to], parent[to] = distance[of] + 1, ways[of], of
            queue[rows, tail[rows]] = to
            tail[rows] += 1
        head += 1
        active = active[tail[active] > head]
    path = np.zeros(count * area, bool)
    rows = np.flatnonzero(distance[goal] >= 0)
    place = goal[rows]
    while len(place):
        path[place] = True
        place = place[distance[place] > 0]
        place = parent[place]
    inner = path.reshape(padded.shape)[:, 1:-1, 1:-1].copy()
    return Search(inner, distance[goal], ways[goal])


class _Entry(int):
    """A place in the heap, compared by its cost alone."""

    pixel: int


def authors_path(free: Bools, start: Ints, end: Ints) -> Bools:
    """(H, W): the shortest path that the authors' Dijkstra search marks in one raster whose frame is wall.

    Same order of expansion as `breadth_first`, but the open pixels lie in a binary heap compared on cost only, which is
    not stable, and a pixel already open is pushed again; so ties are broken differently.
    """
    width = free.shape[1]
    flat = free.ravel().tolist()
    source, goal = int(start[0]) * width + int(start[1]), int(end[0]) * width + int(end[1])
    parent = {source: -1}
    closed = bytearray(len(flat))
    first = _Entry(0)
    first.pixel = source
    heap = [first]
    while heap:
        entry = heapq.heappop(heap)
        pixel = entry.pixel
        if pixel == goal:
            break
        if closed[pixel]:
            continue
        closed[pixel] = 1
        cost = entry + 1
        for neighbour in (pixel + width, pixel + 1, pixel - width, pixel - 1):
            if flat[neighbour] and not closed[neighbour]:
                parent.setdefault(neighbour, pixel)
                reached = _Entry(cost)
                reached.pixel = neighbour
                heapq.heappush(heap, reached)
    path = np.zeros(len(flat), bool)
    while pixel >= 0:
        path[pixel] = True
        pixel = parent[pixel]
    return path.reshape(free.shape)


def place_on_canvas(pixels: NDArray[np.uint8], scale: int, canvas: int | None) -> NDArray[np.uint8]:
    """(…, S, S) → (…, canvas, canvas): every unit becomes scale×scale pixels, centred on zeros.

    canvas=None adds nothing around. The authors' images are scale 2 on a canvas of 32: offsets 5, 3, 1 for 5, 6, 7 cells.
    """
    size = scale * pixels.shape[-1]
    canvas = size if canvas is None else canvas
    if canvas < size:
        raise ValueError(
            f"mazes: {size} pixels do not fit a canvas of {canvas}. Give a canvas of at least {size}, or a smaller scale."
        )
    offset = (canvas - size) // 2
    placed = np.zeros((*pixels.shape[:-2], canvas, canvas), pixels.dtype)
    inner = placed[..., offset : offset + size, offset : offset + size]
    for row in range(scale):
        for column in range(scale):
            inner[..., row::scale, column::scale] = pixels
    return placed
