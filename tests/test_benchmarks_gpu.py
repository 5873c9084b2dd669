"""The time budget and resumption of `benchmarks gpu`, its tests and summary, and its worker process with CPU contenders."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_cases import raising, switches

from benchmarks import agenda, gpu, libraries, records, suites, worker
from benchmarks.agenda import Agenda
from benchmarks.peers import Peer
from benchmarks.records import Record
from benchmarks.suites import Executor, Task
from benchmarks.worker import Trouble
from benchmarks.workloads import Case

assert switches  # a fixture of every test here

CPU = torch.device("cpu")
TINY = Case("grid", "conv", 2, 16, 5, 5, 2)


def task(name: str, seconds: float, case: Case = TINY) -> Task:
    return Task("workloads", "fp32", case, "forward", ("eager", "rdk eager"), "quick", False, seconds, name)


class FakeMeasurer:
    """A clock that each task moves by a given number of seconds, and the records of its contenders."""

    def __init__(self, path: Path, takes: dict[str, float], troubles: dict[str, Trouble] | None = None) -> None:
        self.path, self.takes, self.troubles = path, takes, troubles or {}
        self.now = 0.0
        self.asked: list[tuple[str, float]] = []
        self.contenders: list[tuple[str, ...]] = []

    def clock(self) -> float:
        return self.now

    def ask(self, what: Task, seconds: float) -> Trouble | None:
        self.asked.append((what.stage, seconds))
        self.contenders.append(what.contenders)
        self.now += min(self.takes[what.stage], seconds)
        if self.takes[what.stage] > seconds:
            return Trouble(f"it took longer than {seconds:.0f} s and was stopped")
        trouble = self.troubles.get(what.stage)
        if trouble and (trouble.contender is None or trouble.contender in what.contenders):
            return trouble
        records.append(self.path, gpu._failed(what, "a stand-in", ABOUT))
        return None


ABOUT: dict[str, Any] = {
    "device": "d", "device_type": "cuda", "driver": "1", "threads": 1, "torch": "2", "triton": "3", "python": "3.12", "rdk": "0",
    "commit": "c", "dirty": None, "tree": "t",
}  # fmt: skip


def carried_out(plan: Agenda, fake: FakeMeasurer) -> list[str]:
    said: list[str] = []
    gpu.carry_out(plan, fake, fake.path, lambda what, why: gpu._failed(what, why, ABOUT), said.append)
    return said


def test_tasks_run_in_order_of_value_while_they_fit(tmp_path: Path) -> None:
    fake = FakeMeasurer(tmp_path / "r.jsonl", {"a": 10, "b": 50, "c": 30, "d": 5})
    plan = Agenda([task("a", 10), task("b", 50), task("c", 30), task("d", 5)], [], 60.0, fake.clock)
    carried_out(plan, fake)
    assert [name for name, _ in fake.asked] == ["a", "b"] and fake.now == 60.0
    fake = FakeMeasurer(tmp_path / "r2.jsonl", {"a": 10, "b": 50, "c": 30, "d": 5})
    plan = Agenda([task("a", 10), task("b", 50), task("c", 30), task("d", 5)], [], 50.0, fake.clock)
    carried_out(plan, fake)
    assert [name for name, _ in fake.asked] == ["a", "c", "d"] and [t.stage for t in plan.open] == ["b"]


def test_no_task_outlives_the_deadline_however_long_it_takes(tmp_path: Path) -> None:
    fake = FakeMeasurer(tmp_path / "r.jsonl", {"a": 1e6, "b": 1e6})
    plan = Agenda([task("a", 10), task("b", 10)], [], 100.0, fake.clock)
    carried_out(plan, fake)
    assert fake.now <= 100.0 and fake.asked[0] == ("a", 60.0) and fake.asked[1][1] <= 40.0
    found = records.read(fake.path)
    assert {r["status"] for r in found} == {"failed"} and "took longer than 60 s" in found[0]["note"]
    assert [r["contender"] for r in found[:2]] == ["eager", "rdk eager"]


def test_a_contender_that_crashes_is_left_alone_after_two_times(tmp_path: Path) -> None:
    takes = dict.fromkeys("abc", 1.0)
    fake = FakeMeasurer(tmp_path / "r.jsonl", takes, {name: Trouble("illegal address", "rdk eager") for name in "abc"})
    carried_out(Agenda([task(name, 10) for name in "abc"], [], 1000.0, fake.clock), fake)
    assert fake.contenders == [("eager", "rdk eager"), ("eager",), ("eager", "rdk eager"), ("eager",), ("eager",)]
    notes = [r["note"] for r in records.read(fake.path) if r["contender"] == "rdk eager"]
    assert notes[:2] == ["illegal address"] * 2 and "not tried" in notes[2] and len(notes) == 3
    assert [r["note"] for r in records.read(fake.path) if r["contender"] == "eager"] == ["a stand-in"] * 3


def test_estimates_follow_what_a_stage_takes() -> None:
    plan = Agenda([task("a", 10, replace(TINY, iterations=n)) for n in (1, 2, 3)], [], 100.0, lambda: 0.0)
    first = plan.next()
    assert first is not None
    plan.learn(first, 50.0)
    assert plan.estimate(plan.open[0]) == pytest.approx(30.0)
    plan.learn(first, 50.0)
    assert plan.estimate(plan.open[0]) == pytest.approx(40.0)
    assert plan.estimate(task("b", 10)) == 10.0


def test_what_an_earlier_run_has_done_is_not_done_again(tmp_path: Path) -> None:
    fake = FakeMeasurer(
        tmp_path / "r.jsonl", {"a": 10, "b": 10, "c": 10}, {"b": Trouble("the measuring process ended with status -11")}
    )
    tasks = [task(name, 10) for name in "abc"]
    carried_out(Agenda(tasks, [], 25.0, fake.clock), fake)
    assert [name for name, _ in fake.asked] == ["a", "b"]
    fake.now = 0.0
    again = Agenda(tasks, {r["task"] for r in records.read(fake.path)}, 100.0, fake.clock)
    assert again.skipped == 2
    carried_out(again, fake)
    assert [name for name, _ in fake.asked] == ["a", "b", "c"]
    assert "status -11" in records.read(fake.path)[2]["note"]


def test_records_of_other_sources_or_devices_do_not_count() -> None:
    (record, _) = gpu._failed(task("a", 1), "x", ABOUT)
    assert gpu._same(record, ABOUT)
    for name in ("device", "driver", "torch", "triton", "tree"):
        assert not gpu._same(record, ABOUT | {name: "other"})


def test_the_plan_puts_the_targets_first_and_repeats_no_task() -> None:
    plan = agenda.plan("cuda")
    names = [what.name for what in plan]
    assert len(set(names)) == len(names) and names[0] == "ceilings bf16"
    first = [what.case.workload for what in plan[1:12] if what.case]
    assert set(first) >= {"W1", "W4s", "W4"}
    covered = {what.case.label for what in plan if what.case and what.stage == "core" and what.precision == "bf16"}
    assert covered == {case.label for workload in suites.all_workloads(None) for case in workload.cases()}
    used = {name for what in plan for name in what.contenders}
    assert used >= {
        "eager graph",
        "cudnn graphs",
        "compile",
        "compile graph",
        "max-autotune graph",
        "checkpoint",
        "compile budget",
    }
    assert all(what.contenders[0] == "eager" for what in plan if what.case)
    assert sum(what.seconds for what in plan if what.stage == "core" and what.precision == "bf16") < 900


def test_tasks_travel_as_json() -> None:
    for what in agenda.plan("cuda")[:40]:
        assert Task.from_json(json.loads(json.dumps(what.as_json()))) == what


def test_pytests_last_line_is_read() -> None:
    text = "....\nFAILED tests/test_a.py::test_b - no\n== 1 failed, 12 passed, 3 skipped in 8.10s =="
    assert gpu.result_of(text, 1, 10) == "1 failed, 12 passed, 3 skipped in 8.10s"
    assert gpu.result_of("", None, 90) == "stopped after 90 s"
    assert gpu.result_of("Segmentation fault", -11, 90) == "pytest ended with status -11"


def test_the_summary_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    plan = Agenda([task("late", 10)], [], 0.0, lambda: 0.0)
    records.append(path, gpu._failed(task("a", 1), "no kernel image", ABOUT | {"hardware": "A GPU"}))
    tests: Record = {
        "format": 1, "suite": "tests", "group": "g", "task": "tests", "date": "2026", "status": 1, "result": "1 failed, 2 passed",
        "failures": ["tests/test_a.py::test_b"], "seconds": 1.0, "measured_on": ABOUT,
    }  # fmt: skip
    records.append(path, [tests])
    said: list[str] = []
    assert gpu.close(tmp_path, path, plan, "there was no nvcc", said.append) == 1
    text = (tmp_path / "summary.md").read_text()
    for part in (
        "Tests: 1 failed, 2 passed",
        "test_a.py::test_b",
        "no kernel image",
        "there was no nvcc",
        "Not reached in this run",
    ):
        assert part in text
    assert len(list(tmp_path.iterdir())) <= 8


# --- the worker


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
    breaking = Peer("rdk eager", raising(RuntimeError("an illegal memory access was encountered")).make)
    monkeypatch.setitem(suites.peers.PEERS, "rdk eager", breaking)
    monkeypatch.setattr(worker, "_device_is_broken", lambda device: True)
    out, path = io.StringIO(), tmp_path / "r.jsonl"
    assert worker.serve([json.dumps(task("a", 1).as_json())] * 2, Executor(CPU, quick=True), path, out) == 1
    answer = json.loads(out.getvalue().splitlines()[-1].removeprefix(worker.BROKEN))
    assert answer["contender"] == "rdk eager" and "illegal memory access" in answer["note"] and not path.exists()


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
    assert "took longer than 1 s" in str(child.ask(task("d", 1), 1))
    assert time.monotonic() - began < 20 and child.process is None


def test_a_real_worker_process_measures(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    child = worker.Worker(["--device", "cpu", "--records", str(path), "--commit", "abc"], tmp_path / "log")
    try:
        assert child.ask(task("a", 5), 120) is None, (tmp_path / "log").read_text()
    finally:
        child.stop()
    assert [r["status"] for r in records.read(path)] == ["ok", "ok"]


def test_a_worker_takes_the_libraries_from_the_folder_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "_build_info.json").write_text('{"left_out": {"_cpu": "this folder has none"}}')
    code = "import rdk; print(rdk.backends()['cpu'])"
    command = [sys.executable, "-c", code]
    assert libraries.logged(command, tmp_path / "log", 60, RDK_LIBRARY_FOLDER=str(tmp_path)) == 0
    assert "_cpu.so is not there: this folder has none" in (tmp_path / "log").read_text()


def test_the_folder_of_a_build_is_that_of_its_sources() -> None:
    assert libraries.folder_for_these_sources() == libraries.folder_for_these_sources()


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


def test_a_build_says_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def setup(command: list[str], log: Path, seconds: float, **variables: str) -> int:
        assert command[1:3] == ["setup.py", "build_ext"] and variables == {"RDK_BUILD": "auto"}
        (tmp_path / "rdk").mkdir()
        (tmp_path / "rdk" / "_build_info.json").write_text('{"left_out": {"_cuda": "there was no nvcc"}}')
        return 0

    monkeypatch.setattr(libraries, "logged", setup)
    assert libraries.build(tmp_path, tmp_path / "log", 1) == "_cuda is left out: there was no nvcc"
    assert libraries.build(tmp_path, tmp_path / "log", 1) is None  # found again, not built again
    monkeypatch.setattr(libraries, "logged", lambda *a, **kw: None)
    assert "took longer than 9 s" in str(libraries.build(tmp_path / "other", tmp_path / "log", 9))
