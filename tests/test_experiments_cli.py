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
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console

from experiments import cluster, records, runner
from experiments import estimate as estimate_module
from experiments.cli import main
from experiments.configs import EXPERIMENTS, experiment
from experiments.data.base import Where
from experiments.engine import Place
from experiments.estimate import RATES, Rate, estimate
from experiments.folders import RunFolder
from experiments.settings import as_dict

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
    other = run.replaced(epoch_scale=0.25, train=run.train.scaled(0.25))
    changed = RunFolder(tmp_path, other)
    with changed.locked():
        changed.write_json(changed.path / "run.json", as_dict(other))
        assert main(["status", "--runs", str(tmp_path)]) == 0
    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["F2a", "laptop", "1", "0", "0", "48"] in shown
    assert ["F2a, changed", "laptop × 0.25", "0", "0", "1", ""] in shown


def test_the_help_of_an_override_is_that_of_its_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--model.depth {None}|INT as the paper's figures print it; the ConvNets' true depth is one more" in printed
    assert "--data.posts {None,closed,authors_v1} mazes only: closed posts make solutions unique" in printed


def test_dry_run_counts_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ["F2c", "--dry-run", "--only", "data.name=cifar10", "seed=0", "--tflops", "300", "--step-ms", "0.5"]
    assert run_here(tmp_path, *words) == 0
    printed = capsys.readouterr().out
    assert "8 runs at 300 TFLOP/s" in printed and "2.75 hours to go" in printed
    assert not (tmp_path / "runs").exists()


def test_older_words_of_the_command_line_still_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    printed = []
    for scale, rule, wanted in (
        ("--epoch-scale", "--train.lr-rule", "train.lr_rule=steps"),
        ("--schedule-scale", "--train.schedule", "train.schedule=steps"),
    ):
        words = ["F2a", "--dry-run", f"{scale}=0.5", rule, "cosine", "--only", wanted, "seed=0", "data.name=svhn"]
        assert run_here(tmp_path, *words) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "16 runs at" in printed[0]


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
        (["C9", "--laptop"], "C9 has no runs at --laptop"),
        (["F5-adam", "--laptop"], "F5-adam has no runs at --laptop"),
        (["F2a", "--seeds", "-1"], "--seeds must be at least 0, got -1"),
        (["F2a", "--smoke", "--train.steps-per-epoch", "-1"], "steps_per_epoch must be at least 0 .* got -1"),
        (["F5", "--smoke", "--data.test-count", "0"], "data.test_count must be positive, got 80 and 0"),
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


def test_files_in_place_of_folders_are_a_sentence(tmp_path: Path, capsys: Any) -> None:
    assert main(["run", "F2a", "--smoke", "--runs", __file__, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(r"F2a/\w+ cannot be made \(Not a directory\)", error)
    for words in (["run", "F2a", "--smoke", "--runs", str(tmp_path)], ["report"]):
        assert main([*words, "--results", __file__]) == 2
        assert f"--results names {__file__}, which is a file" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_a_sentence(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run_here(tmp_path, "F2a", "--smoke", "--device", "cuda") == 2
    assert "PyTorch sees 0 here" in capsys.readouterr().err


def test_settings_that_cannot_be_read_are_a_sentence(tmp_path: Path, capsys: Any) -> None:
    contents = {"none": None, "broken": "{", "foreign": "[1]", "other": '{"colour": 1}'}
    for name, content in contents.items():
        file = tmp_path / name
        if content is not None:
            file.write_text(content)
        assert main(["one", str(file), "--runs", str(tmp_path / "runs")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{file} holds no settings of a run" in error


def test_without_torchvision_what_needs_it_says_so(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, name, None)
    for part in ("torchvision", "torchvision.models", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, part, None)
    estimate_module._macs.cache_clear()
    for words in (["T1", "--dry-run"], ["C2"], ["F2a", "--only", "data.name=cifar10", "--data-root", str(tmp_path)]):
        assert run_here(tmp_path, *words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "this needs torchvision, which can't be imported here" in error
    assert main(["report", "--results", str(tmp_path / "results")]) == 0
    assert "hours that can't be estimated without torchvision" in (tmp_path / "results" / "REPORT.md").read_text()


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
    runs = experiment("F2a").runs_at("smoke")[:1]
    slurm = cluster.Slurm(partition="any", cluster="debug", gpus=0)
    place = Place(runs=tmp_path)
    (job,) = cluster.submit(runs, slurm, place, "cpu", Console(quiet=True))
    assert job.result()["key"] == runs[0].key
    again = cluster.RunJob(runs[0], place, "cpu").checkpoint()
    assert again.function.run == runs[0]


def test_slurm_jobs_choose_their_own_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login node has no GPU; what is queued there holds the word of --device, and is requeued often."""
    submitit = pytest.importorskip("submitit")
    queued: list[Any] = []
    executor = submitit.AutoExecutor
    monkeypatch.setattr(
        submitit,
        "AutoExecutor",
        lambda folder, cluster, **more: (queued.append(more), executor(folder=folder, cluster="debug"))[1],
    )
    monkeypatch.setattr(executor, "submit", lambda self, job: queued.append(job))
    for device in ("auto", "cuda"):
        words = ["--slurm.partition", "any", "--device", device, "--only", "model.recurrent=true"]
        assert run_here(tmp_path, "F2a", "--smoke", *words) == 0
    asked: list[str] = []
    monkeypatch.setattr("experiments.distributed.local_device", lambda name: asked.append(name) or torch.device("cpu"))
    monkeypatch.setattr(cluster, "train", lambda run, place: {"key": run.key})
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: SimpleNamespace(num_tasks=1))
    limits, jobs = queued[::2], queued[1::2]
    assert [job()["key"] for job in jobs] == [jobs[0].run.key] * 2 and asked == ["auto", "cuda"]
    assert all(limit["slurm_max_num_timeout"] >= 100 for limit in limits)


class Child:
    """In place of a process; remembers its command and environment."""

    made: ClassVar[list[Child]] = []

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.words, self.env, self.returncode = words, env, 1
        self.made.append(self)

    def poll(self) -> int:
        return 1


@pytest.mark.parametrize(("visible", "expected"), [("2,3", ["2", "3", "2"]), (None, ["0", "1", "0"])])
def test_jobs_take_the_visible_gpus(visible: str | None, expected: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("experiments.runner.subprocess.Popen", Child)
    monkeypatch.setattr(Child, "made", [])
    place = Place(where=Where(device=torch.device("cuda")), runs=tmp_path)
    outcome = runner.train_over_devices(experiment("F2a").runs()[:3], 3, place, Console(quiet=True), tmp_path)
    assert [child.env["CUDA_VISIBLE_DEVICES"] for child in Child.made] == expected and len(outcome.failures) == 3


def test_jobs_on_a_cpu_share_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr("experiments.runner.subprocess.Popen", Child)
    monkeypatch.setattr(Child, "made", [])
    runner.train_over_devices(experiment("F2a").runs()[:2], 3, Place(runs=tmp_path), Console(quiet=True), tmp_path)
    assert [child.words[child.words.index("--threads") + 1] for child in Child.made] == ["2", "2"]


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
