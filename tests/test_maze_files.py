"""Maze files: whole or refused in a sentence; the command line that writes them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.data import maze_files, mazes
from experiments.data.atomic import write_atomic
from experiments.data.maze_cli import main
from experiments.data.maze_files import MazeFileError


@pytest.mark.parametrize("posts", mazes.POSTS)
def test_file_gives_back_what_was_saved(tmp_path: Path, posts: str) -> None:
    chosen = mazes.generate(6, 33, seed=14, posts=posts)
    file = tmp_path / "new" / "mazes.npz"
    maze_files.save(file, chosen, seed=14)
    back = maze_files.load(file, cells=6, posts=posts, count=33)
    for name in ("right", "down", "start", "end", "solution"):
        assert np.array_equal(getattr(back, name), getattr(chosen, name))
    assert (back.cells, back.posts) == (6, posts) and maze_files.describe(file)["about"] == {"seed": 14}
    maze_files.save(file, mazes.generate(6, 0))
    assert len(maze_files.load(file)) == 0
    assert [path.name for path in file.parent.iterdir()] == ["mazes.npz"]


def test_file_with_images_is_readable_by_numpy_alone(tmp_path: Path) -> None:
    chosen = mazes.generate(5, 4, seed=15)
    maze_files.save(tmp_path / "m.npz", chosen, with_images=True)
    with np.load(tmp_path / "m.npz") as stored:
        assert np.array_equal(stored["images"], chosen.images(2, 32))
        assert np.array_equal(stored["targets"], chosen.targets(2, 32))
    assert len(maze_files.load(tmp_path / "m.npz")) == 4


def test_every_truncation_and_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """A byte that zip does not use may change; what is read is then still what was saved."""
    chosen = mazes.generate(3, 5, seed=16)
    whole = tmp_path / "whole.npz"
    maze_files.save(whole, chosen)
    content = whole.read_bytes()
    broken = tmp_path / "broken.npz"
    for length in range(0, len(content), 13):
        broken.write_bytes(content[:length])
        with pytest.raises(MazeFileError, match=r"broken\.npz was not read: expected a whole file.*write it anew"):
            maze_files.load(broken)
    refused = 0
    for place in range(0, len(content), 7):
        broken.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            assert np.array_equal(maze_files.load(broken).solution, chosen.solution)
            assert maze_files.load(broken).keys() == chosen.keys()
        except MazeFileError:
            refused += 1
    assert refused > len(content) / 7 / 2


def test_consistent_change_of_content_fails_the_checksum(tmp_path: Path) -> None:
    """A file whose zip sums are right but whose mazes were exchanged."""
    maze_files.save(tmp_path / "a.npz", mazes.generate(5, 8, seed=17))
    maze_files.save(tmp_path / "b.npz", mazes.generate(5, 8, seed=18))
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        mixed = dict(a) | {"solution": b["solution"]}
    np.savez(tmp_path / "mixed.npz", **mixed)
    with pytest.raises(MazeFileError, match="SHA-256 does not match"):
        maze_files.load(tmp_path / "mixed.npz")


def test_foreign_files_and_other_mazes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(MazeFileError, match="there is no file"):
        maze_files.load(tmp_path / "none.npz")
    np.savez(tmp_path / "foreign.npz", x=np.arange(3))
    (tmp_path / "text.npz").write_text("no mazes here")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("header.npy", b"nothing")
    for name in ("foreign.npz", "text.npz", "pickled.npy", "plain.zip"):
        with pytest.raises(MazeFileError, match="was not read"):
            maze_files.load(tmp_path / name)
    with pytest.raises(MazeFileError, match="there is no file"):
        maze_files.load(tmp_path)
    maze_files.save(tmp_path / "five.npz", mazes.generate(5, 3))
    with pytest.raises(MazeFileError, match="cells = 5, but 6 was asked for"):
        maze_files.load(tmp_path / "five.npz", cells=6)


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "kept.bin"
    write_atomic(file, lambda out: out.write(b"old"))

    def fails(out: object) -> None:
        out.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(file, fails)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_command_line_writes_checks_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = str(tmp_path / "train.npz"), str(tmp_path / "test.npz")
    assert main(["--cells", "3", "--count", "300", "--out", train]) == 0
    assert main(["--cells", "3", "--count", "50", "--out", test, "--stream", "1", "--exclude", train]) == 0
    assert mazes.overlap(maze_files.load(test), maze_files.load(train)) == 0
    assert main(["--check", test]) == 0
    assert "whole; 50 mazes of 3 cells, posts closed" in capsys.readouterr().out
    for arguments, words in (
        (["--cells", "1", "--out", test], "got 1"),
        (["--count", "5"], "nothing to do"),
        (["--check", str(tmp_path)], "there is no file"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert len(maze_files.load(test)) == 50
