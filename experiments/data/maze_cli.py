"""The command line of the maze generator; called by `python -m experiments.data.mazes`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.data import maze_files, mazes
from experiments.data.mazes import MazeSet


def main(argv: Sequence[str] | None = None) -> int:
    """Generates and stores mazes as the arguments say. Returns the exit code; errors are one sentence on stderr."""
    options = _parser().parse_args(argv)
    try:
        if options.check is not None:
            _check(options.check)
        elif options.paper is not None:
            _paper(options)
        elif options.out is not None:
            _one(options)
        else:
            raise ValueError("mazes: nothing to do. Give --out FILE, --paper FOLDER or --check FILE.")
    except (ValueError, TypeError, OSError) as reason:
        print(reason, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mazes: interrupted; no half-written file is left. Run the same command again.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.mazes",
        description="Generates depth-first mazes with their shortest paths and stores them with a checksum.",
    )
    parser.add_argument("--cells", type=int, default=5, help="side in cells, at least 2 (default 5)")
    parser.add_argument("--count", type=int, default=60_000, help="number of mazes (default 60000)")
    parser.add_argument("--out", metavar="FILE", help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal mazes (default 0)")
    parser.add_argument("--stream", type=int, default=0, help="an independent sequence of the same seed (default 0)")
    parser.add_argument("--posts", choices=mazes.POSTS, default="closed", help="rule for the posts (default closed)")
    parser.add_argument("--exclude", metavar="FILE", help="a maze file none of whose mazes may come")
    parser.add_argument("--images", action="store_true", help="also store 32×32 images and targets as arrays")
    parser.add_argument(
        "--paper", metavar="FOLDER", help="write the paper's six sets: 50,000 and 10,000 each of 5, 6 and 7 cells"
    )
    parser.add_argument("--check", metavar="FILE", help="say what a file holds, or why it can't be read")
    return parser


def _one(options: argparse.Namespace) -> None:
    exclude = frozenset(maze_files.load(options.exclude).keys()) if options.exclude else frozenset()
    began = time.perf_counter()
    with _progress(options.count, f"{options.cells}×{options.cells} cells") as progress:
        made = mazes.generate(
            options.cells,
            options.count,
            seed=options.seed,
            stream=options.stream,
            posts=options.posts,
            exclude=exclude,
            progress=progress,
        )
    _store(Path(options.out), made, options.seed, options.stream, options.images)
    print(f"{len(made)} mazes in {time.perf_counter() - began:.1f} s")


def _paper(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    total = 0
    with _progress(180_000, "the paper's mazes") as progress:
        for name, cells in mazes.SIZES.items():
            train, test = mazes.train_and_test(cells, seed=options.seed, posts=options.posts, progress=progress)
            folder = Path(options.paper)
            _store(folder / f"{name}_train.npz", train, options.seed, 0, options.images)
            _store(folder / f"{name}_test.npz", test, options.seed, 1, options.images)
            print(f"  {mazes.overlap(test, train)} test mazes are also training mazes")
            total += len(train) + len(test)
    print(f"{total} mazes in {time.perf_counter() - began:.1f} s")


def _store(path: Path, made: MazeSet, seed: int, stream: int, images: bool) -> None:
    copies = mazes.duplicates(made)
    maze_files.save(path, made, with_images=images, seed=seed, stream=stream, duplicates=copies)
    lengths = made.lengths()
    shown = f"mean path {lengths.mean():.1f} steps, longest {lengths.max()}" if len(made) else "empty"
    print(f"{path}: {len(made)} mazes of {made.cells}×{made.cells} cells, posts {made.posts}, {shown}, {copies} copies")


def _check(path: str) -> None:
    header = maze_files.describe(path)
    print(
        f"{path}: whole; {header['count']} mazes of {header['cells']} cells, posts {header['posts']}, {header['about']}"
    )


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar where rich is installed and stderr is a terminal, else nothing."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda done: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=max(total, 1))
        yield lambda done: bar.advance(task, done)
