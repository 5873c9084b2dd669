"""`benchmarks run` and the command line: errors are sentences, an interruption keeps the records, a CPU shows only ratios."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_cases import CPU, broken, switches, wrong_output
from test_benchmarks_gpu import TINY, task

from benchmarks import cli, gpu, libraries, records, run
from benchmarks.contenders import CONTENDERS
from benchmarks.environment import ROOT
from benchmarks.suites import Executor

assert switches  # a fixture of every test here


def test_a_run_that_is_stopped_keeps_its_records(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    said: list[str] = []

    def stop_at_the_second(text: str) -> None:
        said.append(text)
        if text.startswith("[2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.carry_out([task("a", 1), task("b", 1)], Executor(CPU, quick=True), path, stop_at_the_second)
    assert [r["contender"] for r in records.read(path)] == ["eager", "rdk eager"]


def test_a_shape_that_does_not_fit_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = replace(task("huge", 1), case=replace(TINY, batch=2**34))
    executor = Executor(CPU)
    monkeypatch.setattr(executor, "fitted", lambda case, precision, training: (case, None))
    assert run.carry_out([huge, task("a", 1)], executor, tmp_path / "r.jsonl", lambda text: None) == 0
    found = records.read(tmp_path / "r.jsonl")
    assert [r["status"] for r in found] == ["out of memory", "out of memory", "ok", "ok"]


def test_a_wrong_result_of_ours_is_the_runs_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, "rdk eager", broken("rdk eager", wrong_output))
    said: list[str] = []
    assert run.carry_out([task("a", 1)], Executor(CPU, quick=True), tmp_path / "r.jsonl", said.append) == 1
    line = next(text for text in said if "rdk eager" in text)
    assert "wrong: the output differs" in line and "×" not in line and "ms" not in line


def test_terminal_lines_show_only_ratios_on_a_cpu(tmp_path: Path) -> None:
    said: list[str] = []
    run.carry_out([task("a", 1)], Executor(CPU, quick=True), tmp_path / "r.jsonl", said.append)
    shown = [text for text in said if "eager's speed" in text]
    assert len(shown) == 2 and all(" ms" not in text and "samples" in text and "error" in text for text in shown)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "--workload", "W44"], "unknown workload 'W44'; the nearest are W4"),
        (["run", "--device", "tpu"], "unknown device 'tpu'; expected cpu or cuda"),
        (["run", "--threads", "4096"], "--threads must be between 1 and"),
        (["run", "--contender", "compil", "--suite", "curves"], "unknown contender 'compil'; the nearest are compile"),
        (["run", "--workload", "W1", "--suite", "shapes"], "the suite 'shapes' has none of them"),
        (["dispatch", "--backend", "tritn"], "unknown backend 'tritn'; expected cpu, triton or cuda"),
        (["profile", "W0"], "unknown workload 'W0'"),
        (["profile", "W4", "--iterations", "-1"], "--iterations must be at least 1, got -1"),
        (["profile", "W4", "--iterations", "0"], "--iterations must be at least 1, got 0"),
        (["profile", "W4", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["profile", "W4", "--dtype", "tf32"], "tf32 is arithmetic of NVIDIA GPUs"),
        (["run", "--dtype", "fp32", "--dtype", "tf32"], "tf32 is arithmetic of NVIDIA GPUs"),
        (["dispatch", "--backend", "cpu", "--dtype", "tf32"], "tf32 is arithmetic of NVIDIA GPUs"),
        (["run", "--out", "tests"], "tests is a folder; the name of a file is needed"),
        (["report", "--results", "no/such/folder"], "no/such/folder: no such folder"),
        (["run", "--device", "cuda"], "no NVIDIA GPU can be used here"),
        (["gpu", "--out", "x"], "no NVIDIA GPU can be used here"),
        (["dispatch", "--backend", "triton"], "no NVIDIA GPU can be used here"),
    ],
)
def test_errors_are_sentences(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cli, "_pinned", lambda device, threads: cli.environment.pin(threads) if threads > 1000 else None
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err and len(shown.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["profile", "W4", "--quick"],
        ["profile", "W4", "--commit", "c"],
        ["report", "--commit", "c"],
        ["tidy", "--commit", "c"],
        ["list", "--commit", "c"],
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_minutes_must_be_positive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="--minutes must be positive, got 0"):
        gpu.run(tmp_path, 0, False, None)


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "W4r",
        "roll-out",
        "max-autotune graph",
        "cudnn graphs",
        "inductor's freezing on, inference only",
        "rdk cuda sqrt",
        "devices",
        "backends of rdk",
    ):
        assert word in shown


def test_a_reader_that_has_enough_gets_no_traceback() -> None:
    """`python -m benchmarks list | head -1`"""
    command = [sys.executable, "-m", "benchmarks", "list"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_broken_pipe_elsewhere_is_an_error_like_others() -> None:
    program = (
        "import sys\nfrom benchmarks import cli\n"
        "def fail(arguments): raise BrokenPipeError('a worker is gone')\n"
        "cli.COMMANDS['list'] = cli.COMMANDS['list']._replace(function=fail)\n"
        "sys.exit(cli.main(['list']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "benchmarks: a worker is gone\n"


def test_control_c_on_the_command_line_keeps_the_records(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "benchmarks", "run", "--workload", "W4s", "--quick", "--contender", "rdk eager"]
    with libraries.interrupts_heeded():
        process = subprocess.Popen(
            [*command, "--out", str(path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[2/"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "stopped; the records so far are kept" in err and "Traceback" not in err
    assert [r["suite"] for r in records.read(path)] == ["ceilings"]
