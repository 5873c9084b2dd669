"""Reads a maze of the user's own, ASCII or PNG, a sentence for all that does not fit; called by run (--solve), pictures, show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.data.maze_raster import breadth_first

WALL, FREE, START, END = range(4)
SYMBOLS = {"#": WALL, " ": FREE, ".": FREE, "S": START, "E": END}
COLOURS = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]], dtype=np.float64)  # of WALL, FREE, START, END
COLOUR_TOLERANCE = 0.25
LARGEST = 501  # pixels a side, at one per unit


@dataclass(frozen=True)
class UserMaze:
    """A maze with a way through, at one pixel per unit and framed by walls."""

    units: NDArray[np.int64]  # (H, W): WALL, FREE, START or END
    length: int  # steps of a shortest path
    ways: int  # number of shortest paths
    path: NDArray[np.bool_]  # (H, W): one of them

    @property
    def image(self) -> NDArray[np.float32]:
        """(1, 3, H, W) of 0 and 1, in the colours that the network was trained on."""
        return COLOURS[self.units].transpose(2, 0, 1)[None].astype(np.float32)

    def solved_by(self, prediction: NDArray[np.bool_]) -> bool:
        """Whether the pixels (H, W) are those of a shortest path, whichever."""
        found = _search(np.where(prediction, self.units, WALL))
        return int(prediction.sum()) == self.length + 1 and found[1] == self.length


def read(path: str | Path) -> UserMaze:
    """The maze of a file: a PNG image (white ways, black walls, one green start, one red end) or text (# . S E).

    Raises ValueError, in a sentence that says what was expected and what came.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"demo: there is no file {path}. Name a PNG image or a text file with a maze.")
    content = path.read_bytes()
    if content.startswith(b"\x89PNG"):
        return from_units(_from_png(path), str(path))
    if content.startswith((b"\xff\xd8", b"GIF8", b"BM", b"RIFF", b"II*", b"MM\0*")):
        raise ValueError(f"demo: {path} is an image, but no PNG. Save it as PNG, which keeps the colours exact.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise ValueError(f"demo: {path} is neither a PNG image nor a text file in UTF-8.") from reason
    return from_units(_from_text(text, str(path)), str(path))


def from_units(units: NDArray[np.int64], name: str) -> UserMaze:
    """Checks start, end and the way between them, and frames the maze with walls where it has no frame."""
    for code, word, sign in ((START, "start", "S, or green"), (END, "end", "E, or red")):
        found = int((units == code).sum())
        if found != 1:
            raise ValueError(f"demo: {name} has {found} pixels that are the {word} ({sign}); a maze has exactly one.")
    if (units[[0, -1]] != WALL).any() or (units[:, [0, -1]] != WALL).any():
        units = np.pad(units, 1, constant_values=WALL)
    if max(units.shape) > LARGEST:
        raise ValueError(
            f"demo: {name} is a maze of {units.shape[0]}×{units.shape[1]} units; at most {LARGEST} a side."
        )
    path, length, ways = _search(units)
    if length < 0:
        raise ValueError(f"demo: in {name} no way leads from the start to the end; open a wall between them.")
    return UserMaze(units, length, ways, path)


def _search(units: NDArray[np.int64]) -> tuple[NDArray[np.bool_], int, int]:
    """A shortest path, its steps (-1 where there is none) and the number of shortest paths."""
    if not ((units == START).any() and (units == END).any()):
        return np.zeros(units.shape, bool), -1, 0
    start, end = np.argwhere(units == START)[:1], np.argwhere(units == END)[:1]
    found = breadth_first((units != WALL)[None], start, end)
    return found.path[0], int(found.length[0]), int(found.ways[0])


def _from_text(text: str, name: str) -> NDArray[np.int64]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    if not lines:
        raise ValueError(f"demo: {name} is empty; expected a maze drawn with # . S E.")
    for number, line in enumerate(lines, 1):
        for column, symbol in enumerate(line, 1):
            if symbol not in SYMBOLS:
                raise ValueError(
                    f"demo: {name} has the symbol {symbol!r} in line {number}, column {column}; expected # for a wall, "
                    f". or a space for a way, S for the start and E for the end."
                )
        if len(line) != len(lines[0]):
            raise ValueError(
                f"demo: {name} has {len(line)} symbols in line {number}, but {len(lines[0])} in the first; all lines must be "
                f"as long (spaces at the end don't count: end every line with a #)."
            )
    return np.array([[SYMBOLS[symbol] for symbol in line] for line in lines], dtype=np.int64)


def _from_png(path: Path) -> NDArray[np.int64]:
    """The image's units: every unit is a square of one colour, as large as the green one."""
    from matplotlib import image as images

    try:
        pixels = np.asarray(images.imread(path), dtype=np.float64)
    except Exception as reason:  # a damaged image makes the decoder raise nearly anything
        raise ValueError(f"demo: {path} is a damaged PNG image. Save it anew.") from reason
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ValueError(f"demo: {path} is a grey image; the start must be green and the end red. Save it in colour.")
    colours = pixels[:, :, :3] * (pixels[:, :, 3:4] if pixels.shape[2] == 4 else 1.0)
    distance = np.abs(colours[:, :, None] - COLOURS).max(axis=3)  # (H, W, 4)
    if distance.min(axis=2).max() > COLOUR_TOLERANCE:
        row, column = np.unravel_index(int(distance.min(axis=2).argmax()), distance.shape[:2])
        shown = tuple(int(value) for value in np.rint(255 * colours[row, column]))
        raise ValueError(
            f"demo: {path} has the colour {shown} in row {row}, column {column}; expected black for walls, white for ways, "
            f"green (0, 255, 0) for the start and red (255, 0, 0) for the end."
        )
    units = distance.argmin(axis=2)
    for code, word in ((START, "start (green)"), (END, "end (red)")):
        if not (units == code).any():
            raise ValueError(f"demo: {path} has no {word}.")
    return _one_pixel_per_unit(units, str(path))


def _one_pixel_per_unit(units: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    rows, columns = np.nonzero(units == START)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    if height != width or len(rows) != height * width:
        raise ValueError(
            f"demo: the start in {name} must be one green square; found {len(rows)} pixels of another shape."
        )
    side = int(height)
    ways = np.argwhere(units != WALL)
    (top, left), (bottom, right) = ways.min(axis=0), ways.max(axis=0) + 1
    inside = units[top:bottom, left:right]
    coarse = inside[::side, ::side]
    same = inside.shape[0] % side == 0 and inside.shape[1] % side == 0
    if not (same and np.array_equal(coarse.repeat(side, axis=0).repeat(side, axis=1), inside)):
        raise ValueError(
            f"demo: {name} is not drawn on one grid: the start is a square of {side}×{side} pixels, so every cell, wall and "
            f"way must be squares of that size."
        )
    return coarse
