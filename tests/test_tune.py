"""rdk.tune with a stopwatch that the test holds: the fastest right tile is written, a wrong one never."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from rdk import tune
from rdk.backends.triton import configurations, launch
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


def own() -> configurations.Device:
    return configurations.device_named("interpreter", (0, 0))


def test_the_fastest_tile_is_kept_and_the_file_can_be_read_back() -> None:
    said: list[str] = []
    timer = stopwatch([3.0, 1.0, 2.0, 5.0, 4.0])
    tuned = tune.tune(own(), DEVICE, [PROBLEM], timer, CONV, WEIGHTS, said.append)
    entry = configurations.nearest(tuned.conv, "ieee", 3, 16)
    assert (entry.tile, entry.origin, entry.pixels) == (CONV[1], "measured", 16)
    assert configurations.nearest(tuned.weight_gradient, "ieee", 3, 16).tile == WEIGHTS[1]
    assert len(said) == 2 and "1.0000 ms" in said[0]
    text = tune.written(configurations.devices(), tuned)
    read = configurations.parse(json.loads(text))
    assert read[0] == tuned and len(read) == len(configurations.devices())
    again = tune.tune(tuned, DEVICE, [PROBLEM], stopwatch([1.0, 2.0, 3.0, 1.0, 2.0]), CONV, WEIGHTS, said.append)
    assert len(again.conv) == len(tuned.conv)  # replaced, not added
    assert configurations.nearest(again.conv, "ieee", 3, 16).tile == CONV[0]


def test_a_wrong_tile_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = launch.Launch.run

    def run(self: launch.Launch) -> None:
        if self.constants.get("BLOCK_P") != 32:
            right(self)

    monkeypatch.setattr(launch.Launch, "run", run)
    tuned = tune.tune(own(), DEVICE, [PROBLEM], stopwatch([3.0, 2.0, 1.0]), CONV, WEIGHTS, lambda line: None)
    assert configurations.nearest(tuned.conv, "ieee", 3, 16).tile == CONV[2]
    assert configurations.nearest(tuned.weight_gradient, "ieee", 3, 16).tile == WEIGHTS[0]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="about a machine without a GPU")
def test_without_a_gpu_nothing_is_written(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    assert tune.main(["--output", f"{tmp_path}/file.json"]) == 1
    assert "PyTorch sees no GPU here" in capsys.readouterr().err
    from pathlib import Path

    assert not Path(f"{tmp_path}/file.json").exists()


def test_problems_cover_the_product_of_what_is_asked() -> None:
    found = tune.problems_of([64, 128], [4096, 65536], ["bfloat16", "tf32"])
    assert len(found) == 8 and found[0] == tune.TuningProblem((16, 64, 16, 16), torch.bfloat16, "exact")
