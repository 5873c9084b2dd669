"""Ctrl-C and SIGTERM during training: the first only asks, the second Ctrl-C ends at once, in the experiments and in the demo."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from experiments import signals
from experiments.demo import options
from experiments.demo import training as demo
from experiments.distributed import World
from experiments.engine import Interrupted, Place, Training, train
from experiments.folders import RunFolder
from experiments.settings import Data, Model, Run, Train

NUMBERS = (signal.SIGINT, signal.SIGTERM)
RUN = Run(
    model=Model(family="mlp", depth=3, width=8),
    data=Data(name="digits"),
    train=Train(lr=0.05, epochs=1, batch=16, steps_per_epoch=4),
)


def press(times: int) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("first", NUMBERS)
def test_only_a_second_ctrl_c_interrupts(first: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with signals.noted() as received:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)  # `run --jobs` sends one to what the terminal has told already
        if first != signal.SIGINT:
            press(1)
        assert received[:2] == [first, signal.SIGTERM] and received.count(signal.SIGINT) == 1
        with pytest.raises(KeyboardInterrupt):
            press(1)
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_another_thread_gets_a_list_that_stays_empty() -> None:
    def inside() -> None:
        with signals.noted() as received:
            found.append(list(received))

    found: list[list[int]] = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [[]]


@pytest.mark.parametrize("times, ending", [(1, Interrupted), (2, KeyboardInterrupt)])
def test_ctrl_c_in_a_step_of_a_run(times: int, ending: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the step ends and is saved. Twice: nothing more is saved, and what lies there can be gone on from."""
    pytest.importorskip("sklearn")
    look, folder = Training._look, RunFolder(tmp_path, RUN)

    def pressed(self: Training, stop: list[int]) -> None:
        if self.progress.step == 2:
            press(times)
        look(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_look", pressed)
        with pytest.raises(ending):
            train(RUN, Place(runs=tmp_path), World())
    assert folder.checkpoint.exists() == (times == 1) and not folder.under_way()
    assert train(RUN, Place(runs=tmp_path), World())["steps"] == 4


@pytest.mark.parametrize("times, ending", [(1, demo.Stopped), (2, KeyboardInterrupt)])
def test_ctrl_c_in_a_step_of_the_demo(
    times: int, ending: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--cells 3 --width 4 --iterations 2 --batch 4 --test-mazes 8 --steps 4 --out"
    training: Any = demo.Training(options.parse([*words.split(), str(tmp_path)]), frozenset())
    take_step = training.take_step

    def pressed() -> None:
        take_step()
        press(times)

    monkeypatch.setattr(training, "take_step", pressed)
    with pytest.raises(ending):
        training.run(lambda now: None)
    assert training.step == 1 and training.file().exists() == (times == 1)
