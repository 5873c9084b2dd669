"""The command line of the experiments, its records and its report."""

from __future__ import annotations

import json
import math
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
from experiments.report import BEGIN, END, write
from experiments.report.sections_training import BUILDERS
from experiments.settings import Run, as_dict

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


def result(run: Run, accuracy: float, **more: Any) -> dict[str, Any]:
    metrics = {"test_accuracy": accuracy, "test_loss": 1.0, "train_accuracy": 99.0, "train_loss": 0.1}
    return {
        "home": run.home,
        "scale": run.scale,
        "schedule": run.schedule,
        "key": run.key,
        "settings": as_dict(run),
        "metrics": metrics,
        "parameters": 1,
        "steps": 1,
        "seconds": 3600.0,
        "backend": "eager",
        "device": "test device",
        "commit": "abc",
        "date": "2026-01-02 00:00 UTC",
        **more,
    }


def test_records_keep_one_line_per_run(tmp_path: Path) -> None:
    runs = experiment("F2a").runs()[:3]
    for run in [*runs, runs[0]]:
        records.add_run(result(run, 50.0 + run.model.depth), tmp_path)
    records.add_run(result(runs[0], 77.0), tmp_path)
    found = records.runs(tmp_path)
    assert len(found) == 3 and [
        entry["metrics"]["test_accuracy"] for entry in found if entry["key"] == runs[0].key
    ] == [77.0]


def test_the_report_computes_what_it_prints(tmp_path: Path) -> None:
    """Means, standard errors, differences to the paper, what is missing: from records with known numbers."""
    accuracies = {0: 94.0, 1: 95.0, 2: 97.0}
    for run in experiment("T2").runs():
        if run.model.depth == 8 and run.model.dilation == "A" and run.model.recurrent:
            records.add_run(result(run, accuracies[run.seed]), tmp_path)
    for run in experiment("F2c").runs_at("laptop"):
        records.add_run(result(run, 90.0 + run.model.depth / 10 + run.seed / 100), tmp_path)
    scaled = experiment("F2c").runs()[0]
    scaled = scaled.replaced(schedule=0.25, train=scaled.train.scaled(0.25).replaced(dtype="bfloat16"))
    records.add_run(result(scaled, 88.8), tmp_path)
    for name in ("F1", "F3", "C1"):
        assert main(["run", name, "--results", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 0
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    markdown, html, _ = write(tmp_path, readme)
    text = markdown.read_text()
    mean, error = 286 / 3, math.sqrt(((94 - 286 / 3) ** 2 + (95 - 286 / 3) ** 2 + (97 - 286 / 3) ** 2) / 2 / 3)
    assert f"| 8 | {mean:.2f} ± {error:.2f} (n=3) | 75.07 | {mean - 75.07:+.2f} |" in text
    assert "not run: 29 of 32 runs at the paper's own size; needs about" in text
    assert "| 7 | 90.71 ± 0.01 (n=3) | 90.71 ± 0.01 (n=3) | +0.00 | yes |" in text
    assert "rank correlation of accuracy with depth +1.00; rises with depth" in text
    assert "schedule × 0.25, with train.dtype: bfloat16, not float32" in text and "88.80 (n=1)" in text
    assert "11,815,434 and 30,689,802" in text and "test device" in text and "commit abc" in text
    assert (
        "old" not in readme.read_text() and readme.read_text().startswith("before") and "| C1 |" in readme.read_text()
    )
    assert html.read_text().count("data:image/png;base64") == text.count("![")
    for picture in ("F1", "F3", "F2c.laptop"):
        for ending in (".png", ".pdf"):
            assert (tmp_path / "pictures" / f"{picture}{ending}").stat().st_size > 1000


def test_a_report_without_records_says_not_run(tmp_path: Path) -> None:
    text = write(tmp_path, None)[0].read_text()
    assert text.count("| not run |") == len(EXPERIMENTS)


def test_every_experiment_made_of_runs_has_its_part_of_the_report(tmp_path: Path) -> None:
    """One record of each kind of net and data that a preset holds is enough for its table or picture."""
    for name in BUILDERS:
        for run in experiment(name).runs():
            if run.seed == 0:
                records.add_run(result(run, 60.0 + run.model.depth / 10), tmp_path)
    text = write(tmp_path, None)[0].read_text()
    for name in BUILDERS:
        part = text.split(f"## {name}: ")[1].split("\n## ")[0]
        assert "| " in part, name
        assert f"| {name} | {EXPERIMENTS[name].title} | `run {name}` | not run |" not in text, name
    assert "small mazes, recurrent: rank correlation of accuracy with depth +1.00" in text


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
