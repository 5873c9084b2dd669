"""rdk.tune with a stopwatch that the test holds: the fastest right tile is written, a wrong one never."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from rdk import tune
from rdk.backends.triton import build, configurations, launch
from rdk.backends.triton.configurations import ConvTile, WeightGradientTile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONV = [ConvTile(16, 16, 16, 4, 2), ConvTile(32, 16, 16, 4, 2), ConvTile(64, 16, 16, 4, 2)]
WEIGHTS = [WeightGradientTile(16, 64, 16, 4, 2), WeightGradientTile(16, 32, 32, 4, 2)]
PROBLEM = tune.TuningProblem((1, 3, 4, 4), torch.float32, "ieee")


def stopwatch(times: list[float]) -> Callable[[Callable[[], None]], float]:
    remaining = iter(times)

    def timer(run: Callable[[], None]) -> float:
        run()
        return next(remaining)

    return timer


LIMIT = 100_000


def built(launch: launch.Launch, shared_bytes: int = LIMIT, spilled: int = 0) -> build.Built:
    return build.Built(launch.kernel.fn.__name__, 90, 64, 0, spilled, shared_bytes, {}, {})


def own() -> configurations.Device:
    return configurations.device_named("interpreter", (0, 0))


def test_the_fastest_tile_is_kept_and_the_file_can_be_read_back() -> None:
    said: list[str] = []
    timer = stopwatch([3.0, 1.0, 2.0, 5.0, 4.0])
    tuned = tune.tune(own(), DEVICE, [PROBLEM], timer, built, LIMIT, CONV, WEIGHTS, said.append)
    entry = configurations.nearest(tuned.conv, "ieee", 3, 16)
    assert (entry.tile, entry.origin, entry.pixels) == (CONV[1], "measured", 16)
    assert configurations.nearest(tuned.weight_gradient, "ieee", 3, 16).tile == WEIGHTS[1]
    assert len(said) == 2 and "1.0000 ms" in said[0]
    text = tune.written(configurations.devices(), tuned)
    read = configurations.parse(json.loads(text))
    assert read[0] == tuned and len(read) == len(configurations.devices())
    again = tune.tune(
        tuned, DEVICE, [PROBLEM], stopwatch([1.0, 2.0, 3.0, 1.0, 2.0]), built, LIMIT, CONV, WEIGHTS, said.append
    )
    assert len(again.conv) == len(tuned.conv)  # replaced, not added
    assert configurations.nearest(again.conv, "ieee", 3, 16).tile == CONV[0]


def test_a_problem_is_saved_before_the_next_is_begun() -> None:
    left, saved = [3.0, 1.0, 2.0, 5.0, 4.0], []

    def timer(run: Callable[[], None]) -> float:
        if not left:
            raise KeyboardInterrupt
        return left.pop(0)

    with pytest.raises(KeyboardInterrupt):
        tune.tune(
            own(), DEVICE, [PROBLEM, PROBLEM], timer, built, LIMIT, CONV, WEIGHTS, lambda line: None, saved.append
        )
    assert len(saved) == 1 and configurations.nearest(saved[0].conv, "ieee", 3, 16).tile == CONV[1]


def test_after_its_minutes_no_problem_is_begun_and_what_is_left_is_said() -> None:
    """Two and a half minutes at one a problem: the third is still measured, the fourth is not."""
    said: list[str] = []
    saved: list[configurations.Device] = []
    now = 0.0
    problems = [PROBLEM._replace(shape=(batch, 3, 4, 4)) for batch in (1, 2, 3, 4)]

    def save(tuned: configurations.Device) -> None:
        nonlocal now
        now += 60.0
        saved.append(tuned)

    tuned = tune.tune(
        own(), DEVICE, problems, lambda run: 1.0, built, LIMIT, CONV[:1], WEIGHTS[:1], said.append, save,
        minutes=2.5, clock=lambda: now,
    )  # fmt: skip
    assert len(saved) == 3 and tuned == saved[-1]
    measured = [entry.pixels for entry in tuned.conv if entry.origin == "measured" and entry.channels == 3]
    assert sorted(measured) == [16, 32, 48]
    assert said[-2:] == ["2.5 minutes are over; 1 of 4 problems are left:", f"  {problems[3]}"]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon"])
def test_minutes_must_be_above_zero(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main(["--minutes", text])
    assert f"--minutes: expected a number of minutes above 0, got {text}" in capsys.readouterr().err


def test_a_fault_that_shows_after_the_launch_leaves_a_tile_out(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [RuntimeError("CUDA error: misaligned address")]

    def timer(run: Callable[[], None]) -> float:
        if faults:
            raise faults.pop()
        return 1.0

    said: list[str] = []
    tuned = tune.tune(own(), DEVICE, [PROBLEM], timer, built, LIMIT, CONV, WEIGHTS, said.append)
    assert "does not run: RuntimeError: CUDA error: misaligned address" in said[0]
    assert configurations.nearest(tuned.conv, "ieee", 3, 16).tile == CONV[1]


def test_a_wrong_tile_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = launch.Launch.run

    def run(self: launch.Launch) -> None:
        if self.constants.get("BLOCK_P") != 32:
            right(self)

    monkeypatch.setattr(launch.Launch, "run", run)
    tuned = tune.tune(
        own(), DEVICE, [PROBLEM], stopwatch([3.0, 2.0, 1.0]), built, LIMIT, CONV, WEIGHTS, lambda line: None
    )
    assert configurations.nearest(tuned.conv, "ieee", 3, 16).tile == CONV[2]
    assert configurations.nearest(tuned.weight_gradient, "ieee", 3, 16).tile == WEIGHTS[0]


def test_a_tile_that_one_use_cannot_take_is_left_out() -> None:
    """The fastest asks for too much shared memory where a gradient goes through a norm, the next spills in another use."""

    def compiler(launched: launch.Launch) -> build.Built:
        through_norm = launched.arguments.get("coefficient_ptr") is not None
        if launched.constants["BLOCK_P"] == 64 and through_norm:
            return built(launched, shared_bytes=LIMIT + 1)
        if launched.constants["BLOCK_P"] == 32 and launched.arguments.get("statistics_ptr") is not None:
            return built(launched, spilled=3)
        return built(launched)

    said: list[str] = []
    timer = stopwatch([3.0, 2.0, 1.0, 1.0, 2.0])
    tuned = tune.tune(own(), DEVICE, [PROBLEM], timer, compiler, LIMIT, CONV, WEIGHTS, said.append)
    assert configurations.nearest(tuned.conv, "ieee", 3, 16).tile == CONV[0]
    assert "input gradient through a norm takes 100001 bytes" in said[0] and "measuring spills" in said[1]


def test_tiles_that_do_not_compile_are_left_out_and_the_entry_stays_where_none_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from triton.runtime.errors import PTXASError

    right = launch.Launch.run

    def run(self: launch.Launch) -> None:
        if self.constants.get("BLOCK_P") == 64:
            raise PTXASError("ptxas: out of registers")
        right(self)

    def compiler(launched: launch.Launch) -> build.Built:
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(launch.Launch, "run", run)
    said: list[str] = []
    timer = stopwatch([2.0, 1.0, 1.0, 2.0])
    tuned = tune.tune(own(), DEVICE, [PROBLEM], timer, compiler, LIMIT, CONV, WEIGHTS, said.append)
    assert tuned == own()
    assert "out of registers" in said[0] and "forward does not compile: RuntimeError: PassManager" in said[1]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="about a machine without a GPU")
def test_without_a_gpu_nothing_is_written(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    assert tune.main(["--output", f"{tmp_path}/file.json"]) == 1
    assert "PyTorch sees no GPU here" in capsys.readouterr().err
    from pathlib import Path

    assert not Path(f"{tmp_path}/file.json").exists()


def test_problems_cover_the_product_of_what_is_asked() -> None:
    found = tune.problems_of([64, 128], [4096, 65536], ["bfloat16", "tf32"])
    assert len(found) == 8 and found[0] == tune.TuningProblem((16, 64, 16, 16), torch.bfloat16, "exact")
