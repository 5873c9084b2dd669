"""A maze of the user's own for the demo: read from ASCII and PNG, refused in sentences, judged, drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image as images

from experiments.data import mazes
from experiments.demo import pictures, run, show, user_maze
from experiments.demo.network import Architecture, MazeNetwork

SOLVABLE = "#######\n#S#...#\n#.#.#.#\n#...#E#\n#######\n"


def test_solving_judges_each_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    maze = user_maze.from_units(user_maze._from_text(SOLVABLE, "m"), "m")
    network = MazeNetwork(Architecture(4, 3, cells=3))
    on, off = (torch.from_numpy(np.where(maze.path, sign, -1.0)).float() for sign in (1.0, -1.0))

    def answers(image: torch.Tensor, iterations: int) -> Iterator[torch.Tensor]:
        for marks in (off, off, on, on, off):
            yield torch.stack([torch.zeros_like(marks), marks])[None]

    monkeypatch.setattr(network, "every_iteration", answers)
    found = run._solving(network, torch.from_numpy(maze.image), maze.solved_by, 5)
    assert found.right == (False, False, True, True, False) and found.finished() == 3
    assert found.chosen(6) == [1, 2, 3] and found.title(3) == "iteration 3, solved" and found.title(2) == "iteration 2"
    assert np.array_equal(found.paths[2], maze.path) and np.array_equal(found.units, maze.units)


def test_user_maze_is_the_same_as_text_and_as_png_of_any_scale(tmp_path: Path) -> None:
    chosen = mazes.generate(6, 1, seed=4)
    for scale, canvas in ((1, None), (2, 32), (7, 120)):
        images.imsave(tmp_path / "m.png", chosen.images(scale, canvas)[0].transpose(1, 2, 0).astype(np.float32))
        maze = user_maze.read(tmp_path / "m.png")
        assert np.array_equal(maze.image[0], chosen.images()[0])
        assert np.array_equal(maze.path, chosen.solution[0]) and maze.length == chosen.lengths()[0] and maze.ways == 1
        (tmp_path / "m.txt").write_text("\r\n".join(show.plain(maze.units, np.zeros_like(maze.path))) + "\r\n\r\n")
        assert np.array_equal(user_maze.read(tmp_path / "m.txt").units, maze.units)


def test_user_maze_without_a_frame_gets_one() -> None:
    maze = user_maze.from_units(user_maze._from_text("S.#\n#.E", "m"), "m")
    assert maze.units.shape == (4, 5) and (maze.units[[0, -1]] == 0).all() and maze.length == 3


def test_any_shortest_path_counts_as_solved_and_nothing_else() -> None:
    maze = user_maze.from_units(user_maze._from_text("#####\n#S..#\n#.#.#\n#..E#\n#####", "m"), "m")
    assert maze.ways == 2 and maze.length == 4
    around = (maze.units == user_maze.FREE) & ~maze.path
    ends = maze.units >= user_maze.START
    assert maze.solved_by(maze.path) and maze.solved_by(around | ends)
    both, gap, longer = maze.path | around, maze.path.copy(), maze.path.copy()
    gap[tuple(np.argwhere(maze.path & ~ends)[0])] = False
    longer[tuple(np.argwhere(around)[0])] = True
    for wrong in (both, gap, longer, ends, np.zeros_like(ends)):
        assert not maze.solved_by(wrong)


@pytest.mark.parametrize(
    "text, words",
    [
        ("#####\n#..E#\n#####", "has 0 pixels that are the start"),
        ("#####\n#S..#\n#####", "has 0 pixels that are the end"),
        ("#####\n#SEE#\n#####", "has 2 pixels that are the end"),
        ("#####\n#S?E#\n#####", r"the symbol '\?' in line 2, column 3"),
        ("#####\n#S.E#\n####", "4 symbols in line 3, but 5 in the first"),
        ("#####\n#S#E#\n#####", "no way leads from the start to the end"),
        ("\n\n", "is empty"),
        ("", "is empty"),
        ("S" + "." * 600 + "E", "at most 501 a side"),
    ],
)
def test_bad_ascii_is_a_sentence(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        user_maze.read(tmp_path / "m.txt")


def test_bad_images_are_sentences(tmp_path: Path) -> None:
    good = mazes.generate(4, 1, seed=2).images(3, 31)[0].transpose(1, 2, 0).astype(np.float64)
    green = np.argwhere(good[:, :, 1] > good[:, :, 0])
    file = tmp_path / "m.png"

    def refused(picture: np.ndarray, words: str) -> None:
        images.imsave(file, picture)
        with pytest.raises(ValueError, match=words):
            user_maze.read(file)

    blue = good.copy()
    blue[5, 7] = (0, 0, 1)
    refused(blue, r"the colour \(0, 0, 255\) in row 5, column 7; expected black")
    no_start = good.copy()
    no_start[green[:, 0], green[:, 1]] = 1
    refused(no_start, r"has no start \(green\)")
    ragged = good.copy()
    ragged[tuple(green[0])] = 1
    refused(ragged, "the start in .* must be one green square; found 8 pixels")
    crooked = np.insert(good, 16, good[16], axis=0)
    refused(crooked, "not drawn on one grid|must be one green square")
    two_ends = good.copy()
    row, column = np.argwhere(good.min(axis=2) == 1)[0]
    two_ends[row : row + 3, column : column + 3] = (1, 0, 0)
    refused(two_ends, "has 2 pixels that are the end")
    file.write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    with pytest.raises(ValueError, match="damaged PNG"):
        user_maze.read(file)
    for content, words in ((b"\xff\xd8\xff\xe0", "no PNG"), (b"\x80\x81\x82", "neither a PNG image nor a text file")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            user_maze.read(file)


def test_frames_side_by_side_keep_to_the_width() -> None:
    units = user_maze._from_text(SOLVABLE, "m")
    path = np.zeros(units.shape, bool)
    path[2, 1] = True
    frames = [(f"iteration {number}", units, path) for number in range(1, 6)]
    text = show.side_by_side(frames, 40)
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("#S#   #") == 5 and text.count("#o# # #") == 5
    assert all(f"iteration {number}" in text for number in range(1, 6))


def test_picture_of_an_image_has_the_maze_s_units() -> None:
    chosen = mazes.generate(3, 1, seed=8)
    units = pictures.units_of(chosen.images()[0].astype(np.float64))
    assert np.array_equal(units != user_maze.WALL, chosen.free[0])
    assert (units == user_maze.START).sum() == (units == user_maze.END).sum() == 1
    colours = pictures.painted(units, np.ones(units.shape))
    assert np.allclose(colours[units == user_maze.FREE], pictures.PATH)
    assert np.allclose(colours[units == user_maze.WALL], pictures.SHADES[0])
