"""The demo with tiny settings: trains, tests, shows, compares, stores, resumes bit for bit, solves mazes of the user's own."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image as images
from rich.console import Console

import rdk
from experiments.data import mazes
from experiments.demo import comparison, evaluation, options, run, show
from experiments.demo.__main__ import main
from experiments.demo.network import Architecture, MazeNetwork, load_network, save_network
from experiments.demo.training import Stopped, Training

TINY = shlex.split("--cells 3 --width 6 --iterations 3 --batch 16 --test-mazes 40 --longest 8 --learning-rate 1e-2")
ROOT = Path(__file__).parents[1]
SOLVABLE = "#######\n#S#...#\n#.#.#.#\n#...#E#\n#######\n"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one whole run, 40 steps."""
    out = tmp_path_factory.mktemp("demo")
    command = [*TINY, "--steps", "40", "--out", str(out), "--save", str(out / "net.pt"), "--compare-iterations", "2,5"]
    torch.manual_seed(123)  # the run's own seed must be what counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "ROUNDS", 1)
        output = call(command)
    return next(path.parent for path in out.glob("*/result.json")), output


def call(command: list[str], code: int = 0) -> str:
    """What main() prints, stdout then stderr."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", error)
        got = main(command)
    text = out.getvalue() + error.getvalue()
    assert got == code, text
    return text


def training(out: Path, *more: str) -> Training:
    return Training(options.parse([*TINY, "--steps", "12", "--out", str(out), *more]), frozenset())


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in network.state_dict().values()]


def test_whole_run_prints_what_it_stores(finished: tuple[Path, str]) -> None:
    folder, output = finished
    result = json.loads((folder / "result.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == [
        "accuracy.png",
        "checkpoint.pt",
        "demo.png",
        "result.json",
        "solved.png",
    ]
    assert set(result["accuracy"]) == {"3", "4", "5"}
    for cells, stored in result["accuracy"].items():
        assert len(stored["by_iteration"]) == 8 and stored["mazes"] == 40
        assert f"{cells}×{cells} cells" in output
        assert evaluation.percent(stored["by_iteration"][2]) in output
    assert "trained: 40 steps, 640 fresh mazes of 3×3 cells" in output and "seconds" in result["trained"]
    assert [table["iterations"] for table in result["training_step"]] == [2, 5]
    for table in result["training_step"]:
        assert len(table["rows"]) == 6
        for row in table["rows"]:
            assert row["seconds"] > 0 and row["peak"] > 0 and f"{row['peak'] / 2**20:.1f}" in output
    for name in ("accuracy.png", "solved.png", "demo.png"):
        picture = images.imread(folder / name)
        assert picture.shape[0] > 100 and picture.std() > 0.05


def test_a_missed_goal_is_said(finished: tuple[Path, str]) -> None:
    folder, output = finished
    goals = json.loads((folder / "result.json").read_text())["goals"]
    assert [goal["wanted"] for goal in goals] == [0.95] and not goals[0]["reached"] and goals[0]["got"] < 0.95
    assert f"{evaluation.percent(goals[0]['got'])} of unseen mazes exactly right; goal 95.0 %: NOT reached" in output
    assert "try another --seed (this was 0)" in output


def test_training_learns(finished: tuple[Path, str]) -> None:
    losses = torch.load(finished[0] / "checkpoint.pt", weights_only=True)["losses"]
    assert len(losses) == 40 and abs(losses[0] - np.log(2)) < 0.1
    assert np.mean(losses[-5:]) < 0.95 * losses[0]


def test_finished_run_is_not_trained_again_and_fresh_is(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    command = [*TINY, "--steps", "40", "--out", str(folder.parent), "--no-comparison"]
    before = (folder / "checkpoint.pt").read_bytes()
    output = call(command)
    assert "training finished (--fresh starts anew)" in output and "one training step" not in output
    assert (folder / "checkpoint.pt").read_bytes() == before
    expected = torch.load(folder / "checkpoint.pt", weights_only=True)["network"]
    assert "found" not in call([*command, "--fresh"])
    again = torch.load(folder / "checkpoint.pt", weights_only=True)["network"]
    assert all(torch.equal(again[name], expected[name]) for name in expected)  # a seed decides the weights


def test_stop_and_resume_is_bit_for_bit(tmp_path: Path) -> None:
    whole = training(tmp_path / "a")
    whole.run(lambda now: None)
    part = training(tmp_path / "b")
    before = signal.getsignal(signal.SIGINT)

    def interrupt(now: Training) -> None:
        if now.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped) as stopped:
        part.run(interrupt)
    assert stopped.value.step in (5, 6) and stopped.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    resumed = training(tmp_path / "b")
    torch.rand(7)  # the global generator plays no part
    assert resumed.resume() and resumed.step == stopped.value.step
    assert resumed.made_on == resumed.backends == whole.backends
    resumed.run(lambda now: None)
    assert resumed.losses == whole.losses
    assert all(map(torch.equal, weights(resumed.network), weights(whole.network)))
    other = training(tmp_path / "c", "--seed", "1")
    other.run(lambda now: None)
    assert other.losses != whole.losses


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = Training.take_step

    def interrupting(self: Training) -> None:
        take_step(self)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    command = [*TINY, "--steps", "9", "--out", str(tmp_path), "--no-comparison"]
    with monkeypatch.context() as patch:
        patch.setattr(Training, "take_step", interrupting)
        output = call(command, 130)
    assert re.search(r"stopped after step [34] of 9; saved in .*The same command goes on from there", output)
    assert re.search(r"goes on at step [34] of 9", call(command))


def test_a_checkpoint_of_another_backend_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*TINY, "--steps", "2", "--out", str(tmp_path), "--no-comparison"]
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_backends", lambda self: "another")
        call(command)
    assert "its steps ran on backend another: what follows may differ" in call(command)


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_process_is_resumed_bit_for_bit(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "experiments.demo", *TINY, "--steps", "250", "--no-comparison", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "a")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("a/*/checkpoint.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    (file,) = tmp_path.glob("a/*/checkpoint.pt")
    assert 0 < torch.load(file, weights_only=True)["step"] < 250
    for folder in ("a", "b"):
        subprocess.run([*command, str(tmp_path / folder)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=300)
    first, second = (torch.load(next(tmp_path.glob(f"{f}/*/checkpoint.pt")), weights_only=True) for f in "ab")
    assert first["losses"] == second["losses"]
    assert all(torch.equal(first["network"][name], second["network"][name]) for name in first["network"])


def test_broken_checkpoint_is_a_sentence_and_fresh_helps(tmp_path: Path) -> None:
    command = [*TINY, "--steps", "3", "--out", str(tmp_path), "--no-comparison"]
    call(command)
    (file,) = tmp_path.glob("*/checkpoint.pt")
    file.write_bytes(file.read_bytes()[:-200])
    assert "was not read: it is truncated, altered or of another configuration. Add --fresh" in call(command, 2)
    call([*command, "--fresh"])
    assert torch.load(file, weights_only=True)["step"] == 3


def test_feed_forward_twin_has_only_its_own_iterations(tmp_path: Path) -> None:
    command = [*TINY, "--steps", "3", "--out", str(tmp_path), "--feed-forward", "--no-comparison"]
    output = call(command)
    assert "feed-forward (untied)" in output and "can't run so long" in output
    (file,) = tmp_path.glob("*/result.json")
    assert len(json.loads(file.read_text())["accuracy"]["5"]["by_iteration"]) == 3
    names = torch.load(file.with_name("checkpoint.pt"), weights_only=True)["network"]
    assert "core.stages.0.weight.2" in names


def test_flags_do_what_they_say(tmp_path: Path) -> None:
    words = shlex.split("--no-recall --width 7 --checkpoint sqrt --backend eager --test-cells 4 --threads 1 --seed 5")
    call([*TINY, "--steps", "2", "--out", str(tmp_path), "--no-comparison", *words])
    (file,) = tmp_path.glob("*/result.json")
    result = json.loads(file.read_text())
    shown = {name: result["settings"][name] for name in ("recall", "width", "checkpoint", "backend", "seed", "cells")}
    assert shown == {"recall": False, "width": 7, "checkpoint": "sqrt", "backend": "eager", "seed": 5, "cells": 3}
    assert list(result["accuracy"]) == ["4"] and result["goals"] == []
    network = training(tmp_path, *words).network
    assert network.look is None and (network.core.checkpoint, network.core.backend) == ("sqrt", "eager")
    parsed = options.parse(["--memory-budget", "5000000"])
    assert parsed.memory_budget == 5_000_000 and parsed.compare == (6, 30) and parsed.architecture == Architecture()
    assert options.parse(["--seed", "1"]).folder() != options.parse([]).folder() == options.parse([]).folder()


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--cells 1", "--cells must be from 2 to 250, got 1"),
        ("--cells five", "invalid int value: 'five'"),
        ("--test-cells 5,x", "--test-cells must be positive numbers"),
        ("--test-cells 1", "--test-cells must be from 2 to 250, got 1"),
        ("--width 0", "--width must be at least 1, got 0"),
        ("--iterations -2", "--iterations must be at least 1, got -2"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--seed -1", "--seed must be at least 0, got -1"),
        ("--threads 0", "--threads must be at least 1, got 0"),
        ("--longest 0", "--longest must be at least 1, got 0"),
        ("--learning-rate nan", "--learning-rate must be a positive number, got nan"),
        ("--compare-iterations 0", "--compare-iterations must be positive numbers"),
        ("--device gpu", "--device must be cpu, cuda or cuda:N, got 'gpu'"),
        ("--device cuda:99", "CUDA devices here"),
        ("--backend fast", "--backend must be one of auto, eager, cpu, triton, cuda, got 'fast'"),
        ("--checkpoint some", "--checkpoint must be auto, none, sqrt or a number of states, got 'some'"),
        ("--checkpoint sqrt --memory-budget 9", "give --checkpoint or --memory-budget, not both"),
        ("--memory-budget 0", "--memory-budget must be a positive number of bytes, got 0"),
        ("--memory-budget 10 --cells 3 --steps 1", "the smallest that fits this call is"),
        ("--load nowhere.pt", "there is no file nowhere.pt"),
        ("--load nowhere.pt --width 9", "--width can't be given with --load"),
        ("--solve nowhere.txt", "there is no file nowhere.txt"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_flags_are_sentences(words: str, expected: str, tmp_path: Path) -> None:
    assert expected in call([*words.split(), "--out", str(tmp_path)], 2)


def test_unavailable_backend_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdk, "backends", lambda: {"cuda": "no such card"})
    assert "--backend cuda is not available here: no such card" in call(["--backend", "cuda"], 2)


def test_network_file_gives_back_the_network(tmp_path: Path, finished: tuple[Path, str]) -> None:
    network = MazeNetwork(Architecture(5, 2, False, False, 4))
    save_network(tmp_path / "n.pt", network, {"steps": 0})
    back, about = load_network(tmp_path / "n.pt", backend="eager")
    assert back.architecture == network.architecture and about == {"steps": 0} and back.core.backend == "eager"
    assert all(map(torch.equal, weights(back), weights(network)))
    for content in (b"", b"nothing", (tmp_path / "n.pt").read_bytes()[:-50]):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.pt was not read: expected a whole file in the format"):
            load_network(tmp_path / "bad.pt")
    checkpoint = finished[0] / "checkpoint.pt"
    with pytest.raises(ValueError, match="was not read"):
        load_network(checkpoint)


def test_load_tests_the_saved_network_without_training(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    net = str(folder.parent / "net.pt")
    words = ["--load", net, "--test-mazes", "40", "--longest", "8", "--no-comparison", "--out", str(tmp_path)]
    output = call(words)
    assert "network loaded from" in output and "40 training steps" in output and "  step " not in output
    (file,) = tmp_path.glob("*/result.json")
    assert json.loads(file.read_text())["accuracy"] == json.loads((folder / "result.json").read_text())["accuracy"]


def test_no_maze_of_a_loaded_network_was_trained_on(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another seed, test mazes of 3 cells would be among the 640 training mazes; those are drawn again and left out."""
    test = frozenset(mazes.generate(3, 40, seed=0, stream=1).keys())
    trained = mazes.generate(3, 40 * 16, seed=0, stream=2, exclude=test)
    steps = Training(options.parse([*TINY, "--steps", "40"]), test).mazes
    assert steps.of_step(39)[1].equal(torch.from_numpy(trained.targets()[-16:]).long())
    known = set(trained.keys())
    assert known & set(mazes.generate(3, 300, seed=7, stream=1).keys())
    tested: list[mazes.MazeSet] = []
    curve = evaluation.curve
    monkeypatch.setattr(evaluation, "curve", lambda net, one, *rest: (tested.append(one), curve(net, one, *rest))[1])
    net = str(finished[0].parent / "net.pt")
    words = ["--load", net, "--seed", "7", "--test-mazes", "300", "--test-cells", "3", "--longest", "3"]
    call([*words, "--no-comparison", "--out", str(tmp_path)])
    assert len(tested[0]) == 300 and not known & set(tested[0].keys())


def test_a_network_of_unknown_training_is_refused_but_solves(tmp_path: Path) -> None:
    net = tmp_path / "net.pt"
    save_network(net, MazeNetwork(Architecture(5, 2, True, True, 3)), {"steps": 0})
    words = ["--load", str(net), "--out", str(tmp_path / "out")]
    assert "does not say which mazes the network was trained on" in call(words, 2)
    (tmp_path / "mine.txt").write_text(SOLVABLE)
    call([*words, "--solve", str(tmp_path / "mine.txt")])


def test_nothing_solved_is_said(tmp_path: Path) -> None:
    output = call([*TINY, "--steps", "1", "--out", str(tmp_path), "--no-comparison", "--test-cells", "6"])
    assert "none of the unseen mazes of 6×6 cells was solved for good; the first of them:" in output
    assert "the one that took longest" not in output
    assert "not run so long" in output and "can't run so long" not in output


@pytest.mark.parametrize("kind", ["text", "png"])
def test_solve_runs_the_network_on_a_maze_of_the_user(kind: str, finished: tuple[Path, str], tmp_path: Path) -> None:
    net = str(finished[0].parent / "net.pt")
    file = tmp_path / f"mine.{kind}"
    if kind == "text":
        file.write_text(SOLVABLE)
    else:
        images.imsave(file, mazes.generate(3, 1).images(4, 40)[0].transpose(1, 2, 0).astype(np.float32))
    output = call(["--load", net, "--solve", str(file), "--longest", "6", "--out", str(tmp_path / "out")])
    assert "units, shortest path" in output and "iteration 1" in output
    assert ("solved: every pixel is right" in output) != ("NOT solved within 6 iterations" in output)
    (picture,) = (tmp_path / "out").glob("*/solved-mine.png")
    assert images.imread(picture).shape[0] > 100


def test_a_terminal_shows_a_bar_and_an_animation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "SECONDS_PER_FRAME", 0.0)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, highlight=False)
    parsed = options.parse([*TINY, "--steps", "3", "--out", str(tmp_path), "--no-comparison"])
    assert run.run(parsed, console) == 0
    assert "/3 steps" in shown.getvalue() and "\x1b[" in shown.getvalue() and "iteration 1" in shown.getvalue()


@pytest.mark.slow
def test_the_default_demo_reaches_its_goals(tmp_path: Path) -> None:
    """The README's first command, all settings as they come."""
    call(["--out", str(tmp_path), "--no-comparison"])
    (file,) = tmp_path.glob("*/result.json")
    result = json.loads(file.read_text())
    assert [goal["reached"] for goal in result["goals"]] == [True, True]
    seven = result["accuracy"]["7"]["by_iteration"]
    assert max(seven[6:]) > seven[5] + 0.1  # more iterations than trained help on mazes never trained on
