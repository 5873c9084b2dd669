"""The worker process of `benchmarks gpu` with CPU contenders, and the commands and builds that run beside a log."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark_cases import CPU, raising, switches
from test_benchmarks_gpu import task

from benchmarks import libraries, records, worker
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.problem import Prepared, Problem
from benchmarks.suites import Executor

assert switches  # a fixture of every test here

EAGER_MAKE = CONTENDERS["eager"].make


def test_the_worker_answers_each_task_with_records(tmp_path: Path) -> None:
    tasks = [task("a", 1), replace(task("b", 1), contenders=("eager", "rdk cuda"))]
    lines = [json.dumps(what.as_json()) for what in tasks]
    out = io.StringIO()
    assert worker.serve(lines, Executor(CPU, quick=True), tmp_path / "r.jsonl", out) == 0
    assert [line for line in out.getvalue().splitlines() if not line.startswith(worker.AT)] == [worker.DONE] * 2
    assert "## at checking rdk eager\n" in out.getvalue()
    found = records.read(tmp_path / "r.jsonl")
    assert [r["status"] for r in found] == ["ok", "ok", "ok", "left out"] and found[3]["note"]
    assert found[0]["group"] == found[1]["group"] != found[2]["group"] and found[0]["task"] == tasks[0].name


def test_a_broken_device_names_its_contender_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking = Contender("rdk eager", raising(RuntimeError("an illegal memory access was encountered")).make)
    monkeypatch.setitem(CONTENDERS, "rdk eager", breaking)
    monkeypatch.setattr(worker, "_device_is_broken", lambda device: True)
    out, path = io.StringIO(), tmp_path / "r.jsonl"
    assert worker.serve([json.dumps(task("a", 1).as_json())] * 2, Executor(CPU, quick=True), path, out) == 1
    answer = json.loads(out.getvalue().splitlines()[-1].removeprefix(worker.BROKEN))
    assert answer["contender"] == "rdk eager" and "illegal memory access" in answer["note"] and not path.exists()


def test_the_contender_that_fails_first_is_the_one_that_broke_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access every call raises, also of those whose results were right."""
    is_broken = [False]

    def make(problem: Problem, training: bool) -> Prepared:
        prepared = EAGER_MAKE(problem, training)
        once = prepared.step

        def step() -> torch.Tensor:
            if is_broken[0]:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return once()

        prepared.step = step
        return prepared

    def breaking(problem: Problem, training: bool) -> Prepared:
        prepared = make(problem, training)
        calls = iter([False, False, False])

        def step() -> torch.Tensor:
            is_broken[0] = next(calls, True)
            return prepared._once() if not is_broken[0] else prepared.problem.x / "illegal"  # type: ignore[operator]

        prepared.step = step
        return prepared

    monkeypatch.setitem(CONTENDERS, "eager", Contender("eager", make))
    monkeypatch.setitem(CONTENDERS, "rdk eager", Contender("rdk eager", breaking))
    monkeypatch.setattr(worker, "_device_is_broken", lambda device: is_broken[0])
    out, path = io.StringIO(), tmp_path / "r.jsonl"
    assert worker.serve([json.dumps(task("a", 1).as_json())], Executor(CPU, quick=True), path, out) == 1
    assert json.loads(out.getvalue().splitlines()[-1].removeprefix(worker.BROKEN))["contender"] == "rdk eager"
    assert not path.exists()


def test_a_worker_that_dies_or_hangs_costs_one_task(tmp_path: Path) -> None:
    child = worker.Worker([], tmp_path / "log")
    answer = f"import sys\nfor line in sys.stdin:\n    print('compiler talk'); print('{worker.DONE}', flush=True)\n"
    child.command = [sys.executable, "-c", answer]
    assert child.ask(task("a", 1), 30) is None
    assert child.process is not None
    child.process.kill()
    child.process.wait()
    assert child.ask(task("b", 1), 30) is None  # a new process was started
    child.stop()
    dying = f"import sys, os; sys.stdin.readline(); print('{worker.AT}checking rdk cuda', flush=True); os._exit(7)"
    child.command = [sys.executable, "-c", dying]
    trouble = child.ask(task("c", 1), 30)
    assert trouble and "ended with status 7" in trouble.reason and trouble.contender == "rdk cuda"
    child.command = [sys.executable, "-c", "import time; time.sleep(60)"]
    began = time.monotonic()
    late = child.ask(task("d", 1), 1)
    assert late and late.late and "took longer than 1 s" in late.reason
    assert time.monotonic() - began < 20 and child.process is None


def test_how_long_a_process_may_be_silent() -> None:
    assert worker.quiet("rdk cuda graph") == worker.QUIET < worker.quiet("rdk triton") < worker.quiet("compile")
    assert worker.quiet(None) == worker.quiet("eager") == math.inf


@pytest.mark.parametrize("what", ["checking", "warming up", "timing", "weighing"])
def test_a_contender_of_ours_that_gives_no_sign_of_life_is_not_waited_for(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "QUIET", 2.0)
    child = worker.Worker([], tmp_path / "log")
    hang = "import sys, time; sys.stdin.readline(); print('{}{} rdk cuda graph', flush=True); time.sleep(600)"
    child.command = [sys.executable, "-c", hang.format(worker.AT, what)]
    trouble = child.ask(task("a", 1), 300)
    assert trouble and not trouble.late and trouble.contender == "rdk cuda graph"
    assert trouble.reason == "it gave no sign of life for 2 s and was stopped"
    talks = (
        "import sys, time; sys.stdin.readline(); print('{}checking compile', flush=True); time.sleep(4); print('{}')"
    )
    child.command = [sys.executable, "-c", talks.format(worker.AT, worker.DONE)]
    assert child.ask(task("b", 1), 300) is None  # others may compile for long


def test_a_capture_that_was_never_closed_makes_the_device_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    device, streams = torch.device("cuda", 0), {"current": 1}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch, "zeros", lambda *a, **kw: torch.ones(1))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams["current"])
    assert not worker._device_is_broken(device)
    streams["current"] = 2  # that of the capture
    assert worker._device_is_broken(device)
    streams["current"] = 1

    def refuse() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    assert worker._device_is_broken(device)
    assert not worker._device_is_broken(torch.device("cpu"))


def test_a_real_worker_process_measures(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    child = worker.Worker(["--device", "cpu", "--records", str(path), "--commit", "abc"], tmp_path / "log")
    try:
        assert child.ask(task("a", 5), 300) is None, (tmp_path / "log").read_text()
    finally:
        child.stop()
    assert [r["status"] for r in records.read(path)] == ["ok", "ok"]


def test_a_worker_takes_the_libraries_from_the_folder_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "_build_info.json").write_text('{"left_out": {"_cpu": "this folder has none"}}')
    code = "import rdk; print(rdk.backends()['cpu'])"
    command = [sys.executable, "-c", code]
    assert libraries.logged(command, tmp_path / "log", 300, RDK_LIBRARY_FOLDER=str(tmp_path)) == 0
    assert "_cpu.so is not there: this folder has none" in (tmp_path / "log").read_text()


def test_the_folder_of_a_build_is_that_of_its_sources_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "setup.py").write_text("")
    monkeypatch.setattr(libraries, "ROOT", tmp_path)
    monkeypatch.setattr(libraries.tempfile, "gettempdir", lambda: str(tmp_path))
    found = [libraries.folder_for_these_sources(), libraries.folder_for_these_sources()]
    assert found[0] == found[1] and found[0].stat().st_mode & 0o077 == 0
    (tmp_path / "csrc" / "a.cpp").write_text("1")
    found.append(libraries.folder_for_these_sources())
    (tmp_path / "csrc" / "a.cpp").rename(tmp_path / "csrc" / "b.cpp")
    found.append(libraries.folder_for_these_sources())
    for name, value in (("__version__", "2.99"), ("version", SimpleNamespace(cuda="99.0"))):
        monkeypatch.setattr(torch, name, value)
        found.append(libraries.folder_for_these_sources())
    monkeypatch.setattr(libraries, "_nvcc_version", lambda: "release 99.0")
    found.append(libraries.folder_for_these_sources())
    assert len(set(found)) == len(found) - 1
    monkeypatch.setattr(libraries.os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to somebody else; set TMPDIR"):
        libraries.folder_for_these_sources()


def test_a_command_that_takes_too_long_is_stopped_with_its_children(tmp_path: Path) -> None:
    log, mark = tmp_path / "log", tmp_path / "alive"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys; print('here', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    assert libraries.logged([sys.executable, "-c", parent], log, 1.5) is None
    time.sleep(3)
    assert log.read_text() == "here\n" and not mark.exists()
    assert (
        libraries.logged([sys.executable, "-c", "import os, sys; sys.exit(int(os.environ['X']))"], log, 30, X="3") == 3
    )


def test_a_command_that_may_finish_writes_what_it_has(tmp_path: Path) -> None:
    code = "import time\ntry:\n    print('here')\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('written')"
    assert libraries.logged([sys.executable, "-c", code], tmp_path / "log", 8, grace=30) is None
    assert (tmp_path / "log").read_text() == "here\nwritten\n"


def test_a_build_says_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def setup(command: list[str], log: Path, seconds: float, **variables: str) -> int:
        assert command[1:3] == ["setup.py", "build_ext"] and variables.keys() == {"RDK_BUILD", "PATH"}
        assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)  # where ninja lies
        (tmp_path / "rdk").mkdir()
        (tmp_path / "rdk" / "_build_info.json").write_text('{"left_out": {"_cuda": "there was no nvcc"}}')
        return 0

    monkeypatch.setattr(libraries, "logged", setup)
    assert libraries.build(tmp_path, tmp_path / "log", 1) == "_cuda is left out: there was no nvcc"
    monkeypatch.setattr(libraries, "logged", lambda *a, **kw: 3)
    assert "failed (status 3)" in str(libraries.build(tmp_path, tmp_path / "log", 1))  # what failed is tried again
    (tmp_path / "rdk" / "_build_info.json").write_text('{"left_out": {"_cpu": "nobody asked for it"}}')
    monkeypatch.setattr(libraries, "logged", lambda *a, **kw: pytest.fail("it was built again"))
    assert libraries.build(tmp_path, tmp_path / "log", 1) is None
    monkeypatch.setattr(libraries, "logged", lambda *a, **kw: None)
    assert "took longer than 9 s" in str(libraries.build(tmp_path / "other", tmp_path / "log", 9))
