"""Mazes on the disk: one .npz, written whole or not at all, read only if its checksum holds; called by maze_cli."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from experiments.data.atomic import write_atomic
from experiments.data.mazes import POSTS, MazeSet

FORMAT = "rdk mazes 1"
ARRAYS = ("right", "down", "start", "end", "solution")


class MazeFileError(ValueError):
    """A file that is not a whole maze file, or not the one asked for."""


def save(path: str | Path, mazes: MazeSet, *, with_images: bool = False, **about: Any) -> None:
    """Writes the mazes and their SHA-256. A reader finds the old file or the whole new one, never half.

    with_images also stores `images` (N, 3, 32, 32) and `targets` (N, 32, 32), uint8, as the paper's networks take them
    (4 KB per maze), for programs other than this one. `about` is any JSON that should stand in the file: seed, command.
    """
    arrays: dict[str, Any] = {
        "right": _packed(mazes.right),
        "down": _packed(mazes.down),
        "start": mazes.start.astype("<u2"),
        "end": mazes.end.astype("<u2"),
        "solution": _packed(mazes.solution),
    }
    header = {"format": FORMAT, "cells": mazes.cells, "posts": mazes.posts, "count": len(mazes), "about": about}
    if with_images:
        arrays |= {"images": mazes.images(2, 32), "targets": mazes.targets(2, 32)}
    header_bytes = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
    checksum = np.frombuffer(_digest(header_bytes, arrays), np.uint8)

    def write(file: BinaryIO) -> None:
        np.savez(file, header=header_bytes, checksum=checksum, **arrays)

    write_atomic(path, write)


def load(path: str | Path, *, cells: int | None = None, posts: str | None = None, count: int | None = None) -> MazeSet:
    """Reads a file that `save` wrote. cells, posts, count: what it must hold, where given.

    Raises MazeFileError, in a sentence with the file, what was expected and what to do, for a file that is missing,
    truncated, altered, foreign, or holds other mazes than asked for.
    """
    header, arrays = _read(Path(path))
    for name, wanted in (("cells", cells), ("posts", posts), ("count", count)):
        if wanted is not None and header[name] != wanted:
            raise MazeFileError(
                f"mazes: {path} holds mazes with {name} = {header[name]!r}, but {wanted!r} was asked for. "
                f"Name another file, or write this one anew with {_command(path)}."
            )
    n, c = header["count"], header["cells"]
    side = 2 * c + 1

    def bits(name: str, *shape: int) -> NDArray[np.bool_]:
        flat = np.unpackbits(arrays[name], axis=1, count=shape[0] * shape[1])
        return flat.reshape(n, *shape).astype(bool)

    return MazeSet(
        cells=c,
        posts=header["posts"],
        right=bits("right", c, c - 1),
        down=bits("down", c - 1, c),
        start=arrays["start"].astype(np.int64),
        end=arrays["end"].astype(np.int64),
        solution=bits("solution", side, side),
    )


def describe(path: str | Path) -> dict[str, Any]:
    """The header of a whole file: format, cells, posts, count and `about`. Raises as `load`."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if not path.is_file():
        raise MazeFileError(f"mazes: there is no file {path}. Write it with {_command(path)}.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(arrays.pop("header").tobytes())
        checksum = arrays.pop("checksum").tobytes()
        ours = header["format"] == FORMAT and header["posts"] in POSTS and set(ARRAYS) <= set(arrays)
    except Exception as reason:  # foreign bytes make zipfile, zlib, json and numpy raise nearly anything
        raise MazeFileError(_refusal(path, "it is truncated or of another kind")) from reason
    if not ours:
        raise MazeFileError(_refusal(path, "it is of another version or kind"))
    if checksum != _digest(np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8), arrays):
        raise MazeFileError(_refusal(path, "its SHA-256 does not match its content"))
    return header, arrays


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(N, …) → (N, bytes)."""
    return np.packbits(bits.reshape(len(bits), int(np.prod(bits.shape[1:]))), axis=1)


def _refusal(path: Path, found: str) -> str:
    return (
        f"mazes: {path} was not read: expected a whole file in the format {FORMAT!r}, but {found}. "
        f"If it was meant to hold mazes, write it anew with {_command(path)}; else name another file."
    )


def _digest(header: NDArray[np.uint8], arrays: dict[str, NDArray[Any]]) -> bytes:
    digest = hashlib.sha256(header.tobytes())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.digest()


def _command(path: str | Path) -> str:
    return f"`python -m experiments.data.mazes --out {path}`"
