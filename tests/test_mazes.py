"""Mazes: spanning trees, both post rules, solutions against scipy and networkx, images, seeds, disjoint sets."""

from __future__ import annotations

import heapq
import itertools
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, shortest_path

from experiments.data import maze_raster, maze_statistics, mazes
from experiments.data.maze_trees import CHOICES, STAY
from experiments.data.mazes import MazeSet


def pixel_graph(free: np.ndarray) -> csr_matrix:
    """The adjacency of the free pixels of one raster (H, W), numbered row by row."""
    numbers = np.arange(free.size).reshape(free.shape)
    across = free[:, :-1] & free[:, 1:]
    along = free[:-1] & free[1:]
    a = np.concatenate([numbers[:, :-1][across], numbers[:-1][along]])
    b = np.concatenate([numbers[:, 1:][across], numbers[1:][along]])
    return csr_matrix((np.ones(len(a)), (a, b)), shape=(free.size, free.size))


def ends(chosen: MazeSet, number: int) -> tuple[int, int]:
    """The numbers of the start and end pixels of one maze."""
    found = []
    for cell in (chosen.start[number], chosen.end[number]):
        row, column = divmod(int(cell), chosen.cells)
        found.append((2 * row + 1) * chosen.size + 2 * column + 1)
    return found[0], found[1]


@given(cells=st.integers(2, 9), seed=st.integers(0, 2**40))
def test_walls_form_a_spanning_tree(cells: int, seed: int) -> None:
    chosen = mazes.generate(cells, 8, seed=seed)
    openings = chosen.right.sum((1, 2)) + chosen.down.sum((1, 2))
    assert (openings == cells * cells - 1).all()
    for number, free in enumerate(chosen.free):
        pieces, labels = connected_components(pixel_graph(free), directed=False)
        assert pieces == 1 + int((~free).sum())
        assert len(set(labels[free.ravel()])) == 1
        start, end = ends(chosen, number)
        assert start != end


@pytest.mark.parametrize("posts", mazes.POSTS)
@pytest.mark.parametrize("cells", [2, 3, 5, 7, 11])
def test_solutions_are_shortest_paths(cells: int, posts: str) -> None:
    chosen = mazes.generate(cells, 40, seed=cells, posts=posts)
    lengths = chosen.lengths()
    for number, (free, solution) in enumerate(zip(chosen.free, chosen.solution, strict=True)):
        start, end = ends(chosen, number)
        assert lengths[number] == shortest_path(pixel_graph(free), directed=False, indices=start)[end]
        assert (free | ~solution).all()
        graph = networkx.from_scipy_sparse_array(pixel_graph(solution)).subgraph(np.flatnonzero(solution).tolist())
        degrees = sorted(dict(graph.degree).values())
        assert networkx.is_connected(graph) and degrees == [1, 1] + [2] * (len(degrees) - 2)  # a simple path
        assert graph.degree[start] == graph.degree[end] == 1


@pytest.mark.parametrize("cells", [3, 5, 7])
def test_closed_posts_leave_one_shortest_path_and_it_is_the_tree_s(cells: int) -> None:
    chosen = mazes.generate(cells, 300, seed=1)
    start, end = (2 * np.stack(np.divmod(cell, cells), axis=1) + 1 for cell in (chosen.start, chosen.end))
    found = maze_raster.breadth_first(chosen.free, start, end)
    assert (found.ways == 1).all()
    assert np.array_equal(found.path, chosen.solution)
    assert np.array_equal(found.length, chosen.lengths())


def test_breadth_first_counts_the_ways_of_networkx_and_finds_none_through_a_wall() -> None:
    chosen = mazes.generate(4, 60, seed=2, posts="authors_v1")
    start, end = (2 * np.stack(np.divmod(cell, 4), axis=1) + 1 for cell in (chosen.start, chosen.end))
    found = maze_raster.breadth_first(chosen.free, start, end)
    for number, free in enumerate(chosen.free):
        graph = networkx.from_scipy_sparse_array(pixel_graph(free))
        assert found.ways[number] == len(list(networkx.all_shortest_paths(graph, *ends(chosen, number))))
    assert found.ways.max() > 1
    split = np.ones((1, 3, 5), bool)
    split[:, :, 2] = False
    none = maze_raster.breadth_first(split, np.array([[0, 0]]), np.array([[2, 4]]))
    assert none.length[0] == -1 and none.ways[0] == 0 and not none.path.any()


def test_post_stands_by_the_authors_rule() -> None:
    """2×2 cells, one post, all 16 sets of standing walls."""
    for north, south, west, east in itertools.product([False, True], repeat=4):
        right = np.array([[[not north], [not south]]])
        down = np.array([[[not west, not east]]])
        free = maze_raster.rasterize(right, down, "authors_v1")[0]
        stands = east or south or (north and west)
        assert free[2, 2] == (not stands)
        assert not maze_raster.rasterize(right, down, "closed")[0, 2, 2]


class Opened:
    """A place in the reference search below, compared by its cost alone."""

    def __init__(self, cost: float, pixel: tuple[int, int], parent: Opened | None) -> None:
        self.cost, self.pixel, self.parent = cost, pixel, parent

    def __lt__(self, other: Opened) -> bool:
        return self.cost < other.cost


def reference_label(free: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> np.ndarray:
    """What docs/mazes.md says of ties, one maze at a time: heap on cost only, open pixels pushed again, first parent kept."""
    first = Opened(0.0, start, None)
    heap, known, closed = [first], {start: first}, set()
    while True:
        now = heapq.heappop(heap)
        if now.pixel == end:
            break
        if now.pixel in closed:
            continue
        closed.add(now.pixel)
        x, y = now.pixel[1], now.pixel[0]
        for column, row in ((x, y + 1), (x + 1, y), (x, y - 1), (x - 1, y)):
            if free[row, column] and (row, column) not in closed:
                known.setdefault((row, column), Opened(now.cost + 1, (row, column), now))
                heapq.heappush(heap, known[row, column])
    label = np.zeros(free.shape, bool)
    step: Opened | None = now
    while step is not None:
        label[step.pixel] = True
        step = step.parent
    return label


def test_v1_labels_break_ties_as_the_authors_heap() -> None:
    chosen = mazes.generate(6, 150, seed=3, posts="authors_v1")
    for number, free in enumerate(chosen.free):
        spots = [divmod(pixel, chosen.size) for pixel in ends(chosen, number)]
        assert np.array_equal(chosen.solution[number], reference_label(free, *spots))


# cells: open posts per maze, mazes with one, several shortest paths, label differs from the tree's path, queue agrees with heap
V1_TABLE = {5: (2.69, 0.988, 0.30, 0.63, 0.986), 6: (3.84, 0.996, 0.35, 0.72, 0.975), 7: (5.13, 1.0, 0.39, 0.80, 0.966)}


@pytest.mark.parametrize("cells", V1_TABLE)
def test_v1_statistics_are_those_of_the_paper_s_generator(cells: int) -> None:
    """Measured on the authors' own rasters, 1,000 mazes each; so four standard errors of both samples."""
    count = 3000
    posts, with_post, several, off_tree, agree = V1_TABLE[cells]
    v1 = mazes.generate(cells, count, seed=4, posts="authors_v1")
    closed = mazes.generate(cells, count, seed=4)
    open_posts = v1.free[:, 2:-1:2, 2:-1:2].sum((1, 2))
    found = maze_statistics.ties(closed, v1)

    def near(got: float, expected: float) -> bool:
        error = np.sqrt(max(expected * (1 - expected), 0.003) * (1 / count + 1 / 1000))
        return abs(got - expected) <= 4 * error + 0.005  # the table prints two digits

    assert abs(found.free_posts - posts) < 4 * open_posts.std() * np.sqrt(1 / count + 1 / 1000)
    assert near(found.with_free_post, with_post)
    assert near(found.several_paths, several)
    assert near(found.off_tree, off_tree)
    assert near(found.queue_agrees, agree)
    assert (v1.lengths() <= closed.lengths()).all()


def test_the_statistics_program_writes_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin ties -->\nold\n<!-- end ties -->\nb\n<!-- begin lengths -->\n<!-- end lengths -->\n")
    assert maze_statistics.main(["--count", "30", "--write", str(page)]) == 0
    text = page.read_text()
    assert "old" not in text and text.startswith("a\n<!-- begin ties -->\n| cells |") and text.count("\n| 7 | ") == 2
    closed = mazes.generate(7, 30)
    lengths = closed.lengths()
    assert f"| 7 | {lengths.mean():.1f}, {lengths.std():.1f}, {np.median(lengths):.0f}, {lengths.max()} |" in text


@pytest.mark.parametrize("cells, mean, deviation", [(5, 21.5, 11.1), (6, 30.1, 15.6), (7, 39.7, 20.6)])
def test_path_lengths_are_those_of_figure_4(cells: int, mean: float, deviation: float) -> None:
    lengths = mazes.generate(cells, 20_000, seed=5).lengths()
    assert (lengths % 2 == 0).all() and lengths.min() >= 2
    assert abs(lengths.mean() - mean) < 4 * deviation / np.sqrt(20_000) + 0.05
    assert abs(lengths.std() - deviation) < 0.25


def test_neighbours_starts_and_ends_are_drawn_evenly() -> None:
    for mask in range(1, 16):
        directions, counts = np.unique(CHOICES[mask], return_counts=True)
        assert set(directions) == {d for d in range(4) if mask >> d & 1} and len(set(counts)) == 1
    assert (CHOICES[0] == STAY).all()
    chosen = mazes.generate(2, 12_000, seed=6)
    pairs = np.bincount(4 * chosen.start + chosen.end, minlength=16).reshape(4, 4)
    assert (np.diag(pairs) == 0).all()
    assert (abs(pairs[~np.eye(4, dtype=bool)] - 1000) < 5 * np.sqrt(1000)).all()


def test_seed_and_stream_decide_and_count_does_not() -> None:
    whole = mazes.generate(5, 6000, seed=7)
    again = mazes.generate(5, 50, seed=7)
    assert whole[:50].keys() == again.keys() and np.array_equal(whole[:50].solution, again.solution)
    assert mazes.generate(5, 50, seed=8).keys() != again.keys()
    assert mazes.generate(5, 50, seed=7, stream=1).keys() != again.keys()
    assert mazes.generate(5, 50, seed=7, posts="authors_v1").keys() == again.keys()
    assert len(mazes.generate(5, 0)) == 0 and mazes.generate(5, 0).images().shape == (0, 3, 11, 11)


def test_known_mazes_of_seed_0() -> None:
    """What a seed means must not change from release to release."""
    chosen = mazes.generate(3, 2, seed=0)
    rows = ["".join("#."[int(free)] for free in line) for line in chosen.free[0]]
    assert rows == ["#######", "#...#.#", "###.#.#", "#...#.#", "#.###.#", "#.....#", "#######"]
    keys = chosen.keys()
    assert [key.hex() for key in keys] == ["000300020000add0", "0003000000066f90"]


def test_train_and_test_share_no_key() -> None:
    """3×3 cells have few mazes: without exclusion the sets would overlap."""
    train, test = mazes.train_and_test(3, 400, 200, seed=9)
    assert len(train) == 400 and len(test) == 200
    assert not set(train.keys()) & set(test.keys()) and mazes.overlap(test, train) == 0
    unfiltered = mazes.generate(3, 200, seed=9, stream=1)
    assert mazes.overlap(unfiltered, train) > 0
    assert mazes.duplicates(train) > 0  # copies inside the training set stay, as in the paper


def test_a_key_is_walls_start_and_end() -> None:
    chosen = mazes.generate(4, 3, seed=10)
    base = chosen.keys()
    for name in ("right", "down", "start", "end"):
        other = {field: getattr(chosen, field).copy() for field in ("right", "down", "start", "end", "solution")}
        flat = other[name].reshape(3, -1)
        flat[0, 0] = ~flat[0, 0] if flat.dtype == bool else flat[0, 0] + 1
        keys = MazeSet(4, "closed", **other).keys()
        assert keys[0] != base[0] and keys[1:] == base[1:]


def test_no_maze_left_is_a_sentence() -> None:
    every = frozenset(mazes.generate(2, 3000, seed=0).keys())
    with pytest.raises(ValueError, match="use more cells"):
        mazes.generate(2, 10, seed=1, exclude=every)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"cells": 1}, ValueError, "from 2 to 250, got 1"),
        ({"cells": 0}, ValueError, "from 2 to 250, got 0"),
        ({"cells": 251}, ValueError, "got 251"),
        ({"cells": 5.0}, TypeError, "cells must be an integer, got 5.0"),
        ({"cells": True}, TypeError, "got True"),
        ({"count": -1}, ValueError, "count must not be negative, got -1"),
        ({"seed": -3}, ValueError, "seed must not be negative, got -3"),
        ({"posts": "open"}, ValueError, "closed, authors_v1, got 'open'"),
    ],
)
def test_bad_arguments_are_sentences(change: dict[str, object], error: type[Exception], words: str) -> None:
    arguments = {"cells": 5, "count": 3} | change
    with pytest.raises(error, match=words):
        mazes.generate(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("cells, offset", [(5, 5), (6, 3), (7, 1)])
def test_images_are_the_authors(cells: int, offset: int) -> None:
    """Two pixels per unit, centred on 32×32, start green, end red; the target treated alike."""
    chosen = mazes.generate(cells, 30, seed=11)
    images, targets = chosen.images(2, 32), chosen.targets(2, 32)
    assert images.shape == (30, 3, 32, 32) and images.dtype == np.uint8 and targets.shape == (30, 32, 32)
    unit = chosen.images()
    inner = slice(offset, 32 - offset)
    assert np.array_equal(images[..., inner, inner], np.kron(unit, np.ones((2, 2), np.uint8)))
    assert images.sum() == 4 * unit.sum() and targets.sum() == 4 * chosen.solution.sum()
    for number in range(30):
        for pixel, colour in zip(ends(chosen, number), ([0, 1, 0], [1, 0, 0]), strict=True):
            assert unit[number, :, pixel // chosen.size, pixel % chosen.size].tolist() == colour
    white = (unit == 1).all(axis=1)
    assert np.array_equal(white.sum((1, 2)) + 2, chosen.free.sum((1, 2)))
    assert np.array_equal(targets[..., inner, inner][:, ::2, ::2], chosen.targets())


def test_canvas_too_small_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="34 pixels do not fit a canvas of 32"):
        mazes.generate(8, 1).images(2, 32)


@pytest.mark.parametrize("cells, most", [(5, 4), (6, 2), (7, 0), (8, 0)])
def test_widest_shift_is_one_less_than_the_margin(cells: int, most: int) -> None:
    assert mazes.widest_shift(cells) == most


def test_index_and_length() -> None:
    chosen = mazes.generate(5, 10, seed=13)
    assert chosen[3:5].keys() == chosen.keys()[3:5]
    assert chosen[np.array([7, 1])].keys() == [chosen.keys()[7], chosen.keys()[1]]
    assert len(chosen[chosen.lengths() > 10**6]) == 0


def test_progress_counts_every_maze() -> None:
    done: list[int] = []
    mazes.generate(5, 12_000, progress=done.append)
    assert sum(done) == 12_000 and len(done) > 1


@pytest.mark.slow
def test_180_000_mazes_with_images_in_a_minute() -> None:
    """The paper's sizes, one thread; about 3 seconds where this was written, so a minute fails only a broken generator."""
    import time

    began = time.perf_counter()
    for cells in mazes.SIZES.values():
        train, test = mazes.train_and_test(cells)
        assert len(train) + len(test) == 60_000 and mazes.overlap(test, train) == 0
        for part in (train, test):
            assert part.images(2, 32).shape[1:] == (3, 32, 32) and part.targets(2, 32).shape[1:] == (32, 32)
    assert time.perf_counter() - began < 60
