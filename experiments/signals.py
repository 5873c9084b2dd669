"""Ctrl-C and SIGTERM during training: noted, so that a step ends and is saved; called by engine.py and by demo/training.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noted() -> Iterator[list[int]]:
    """While open, a list that SIGINT and SIGTERM are only put into; the training looks at it after a step.

    A second SIGINT raises KeyboardInterrupt at once: whoever presses Ctrl-C again does not want to wait. A SIGTERM never
    does, because one Ctrl-C can bring both (`run --jobs` sends it on to processes that the terminal has already told).
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = [(number, signal.signal(number, note)) for number in (signal.SIGINT, signal.SIGTERM)]
    except ValueError:  # not the main thread, as inside some schedulers
        before = []
    try:
        yield received
    finally:
        for number, handler in before:
            signal.signal(number, handler)
