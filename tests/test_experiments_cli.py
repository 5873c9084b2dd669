"""The command line of the experiments."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments import cluster, records
from experiments.cli import main
from experiments.configs import EXPERIMENTS, experiment
from experiments.engine import Place
from experiments.estimate import RATES, Rate, estimate

pytest.importorskip("sklearn")
pytest.importorskip("tyro")


def run_here(tmp_path: Path, *words: str) -> int:
    return main(
        ["run", *words, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--threads", "1"]
    )


SMOKED = ["F2", "F5", "T2", "T1-depths", "T3", "T6", "T7", "F6", "F8", "F9", "F10", "F11", "C5", "C11", "F2d"]


@pytest.mark.parametrize("name", SMOKED)
def test_smoke(name: str, tmp_path: Path) -> None:
    """Every kind of preset trains and is analysed in seconds."""
    assert run_here(tmp_path, name, "--smoke") == 0
    runs = experiment(name).runs_at("smoke")
    assert all((tmp_path / "runs" / run.home / run.key / "result.json").exists() for run in runs)
    assert not (tmp_path / "results" / "runs").exists()  # smoke is no evidence
    if EXPERIMENTS[name].analysis:
        values = json.loads((tmp_path / "results" / f"{name}.smoke.json").read_text())
        assert values["runs"] == [run.key for run in runs] and values["device"] and values["commit"] and values["date"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not name.startswith("F2")])
def test_smoke_of_every_preset(name: str, tmp_path: Path) -> None:
    assert run_here(tmp_path, name, "--smoke") == 0


def test_list_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in EXPERIMENTS)
    assert main(["status", "--runs", str(tmp_path)]) == 0
    assert "Nothing was run yet" in capsys.readouterr().out
    run = experiment("F2a").runs_at("laptop")[0]
    folder = tmp_path / run.home / run.key
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    assert main(["status", "--runs", str(tmp_path)]) == 0
    assert "F2a" in capsys.readouterr().out


def test_dry_run_counts_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ["F2c", "--dry-run", "--only", "data.name=cifar10", "seed=0", "--tflops", "300", "--step-ms", "0.5"]
    assert run_here(tmp_path, *words) == 0
    printed = capsys.readouterr().out
    assert "8 runs at 300 TFLOP/s" in printed and "2.75 hours to go" in printed
    assert not (tmp_path / "runs").exists()


def test_estimates_agree_with_the_papers_arithmetic() -> None:
    """PFLOP and steps of one trial of a sweep, and the floor of a step."""
    small = [run for run in experiment("F5").runs() if run.data.cells == 5 and run.seed == 0]
    found = [estimate(run, RATES["cuda"]) for run in small]
    assert sum(entry.pflop for entry in found) == pytest.approx(2544, rel=1e-3)
    assert sum(entry.steps for entry in found) == 2_790_000
    mlp = experiment("F2a").runs()[0]
    assert estimate(mlp, Rate(300, 0.5)).hours == pytest.approx(78_000 * 0.5e-3 / 3600)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["F2q"], "unknown experiment 'F2q'. Did you mean F2"),
        (["F2c", "--smoke", "--model.depth", "9"], "can have depth 7, 11, 15"),
        (["F2c", "--only", "model.dept=3"], "Did you mean model.depth"),
        (["F2c", "--only", "seed=77"], "no run of F2c is left"),
        (["T2", "--laptop"], "T2 has no runs at --laptop"),
        (["F2c", "--smoke", "--laptop"], "exclude each other"),
        (
            ["F2b", "--only", "data.name=cifar10", "--data-root", "/nowhere"],
            "CIFAR-10: the file data_batch_1 .*is missing",
        ),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert run_here(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_unknown_fields_have_neighbours(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_here(tmp_path, "F2a", "--smoke", "--train.epoks", "3")
    assert stopped.value.code == 2 and "--train.epochs" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "experiments",
        "run",
        "F2a",
        "--smoke",
        "--train.epochs",
        "100000",
        "--train.lr",
        "0.0001",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*words, "--runs", str(tmp_path)], stderr=subprocess.PIPE, env=environment, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("F2a/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on: python -m experiments run F2a --smoke" in error
    assert len(list(tmp_path.glob("F2a/*/checkpoint.pt"))) == 1


@pytest.mark.slow
def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    assert run_here(tmp_path, "F2a", "--smoke", "--jobs", "2") == 0
    assert len(list((tmp_path / "runs").glob("F2a/*/result.json"))) == 2


def test_slurm_jobs_through_submitit(tmp_path: Path) -> None:
    """submitit's debug executor runs the job in this process."""
    pytest.importorskip("submitit")
    from rich.console import Console

    runs = experiment("F2a").runs_at("smoke")[:1]
    slurm = cluster.Slurm(partition="any", cluster="debug", gpus=0)
    place = Place(runs=tmp_path)
    (job,) = cluster.submit(runs, slurm, place, Console(quiet=True))
    assert job.result()["key"] == runs[0].key
    again = cluster.RunJob(runs[0], place).checkpoint()
    assert again.function.run == runs[0]


def test_other_runs_than_the_presets_leave_its_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Record and pictures go aside, with what was changed; those of the preset stand."""
    results = tmp_path / "results"
    (results / "pictures").mkdir(parents=True)
    kept = [results / "C11.smoke.json", results / "T7.smoke.json", results / "pictures" / "F8.smoke.recurrent.png"]
    for file in kept:
        file.write_text("kept")
    assert run_here(tmp_path, "F8", "--smoke", "--only", "model.recurrent=true") == 0
    assert run_here(tmp_path, "T7", "--smoke", "--train.lr", "0.02") == 0
    printed = capsys.readouterr().out
    assert all(file.read_text() == "kept" for file in kept) and not (results / "F8.smoke.json").exists()
    for name, changed in (("F8", "--only model.recurrent=true"), ("T7", "--train.lr 0.02")):
        (file,) = results.glob(f"changed/{name}.*/{name}.smoke.json")
        assert json.loads(file.read_text())["changed"] == [changed]
        assert f"{name}: {file} (not the preset's own runs: {changed})" in printed
    assert len(list(results.glob("changed/F8.*/pictures/F8.smoke.recurrent.png"))) == 1


def test_finished_runs_are_recorded_with_their_source(tmp_path: Path) -> None:
    words = [
        "F2a",
        "--laptop",
        "--seeds",
        "1",
        "--only",
        "model.depth=3",
        "--train.epochs",
        "1",
        "--train.steps-per-epoch",
        "2",
    ]
    assert run_here(tmp_path, *words) == 0
    found = records.runs(tmp_path / "results")
    assert len(found) == 2 and {entry["settings"]["seed"] for entry in found} == {0}
    assert all(entry["device"] and entry["commit"] and entry["date"] and entry["backend"] for entry in found)
