"""The time budget and resumption of `benchmarks gpu`, and its summary; its tests: test_benchmarks_gpu_tests.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_cases import switches
from record_cases import FIXED

from benchmarks import agenda, cli, gpu, gpu_tests, libraries, records, run, suites
from benchmarks.agenda import Agenda
from benchmarks.records import Record
from benchmarks.suites import Task
from benchmarks.worker import Trouble
from benchmarks.workloads import Case

assert switches  # a fixture of every test here

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
        self.asked.append((what.part, seconds))
        self.contenders.append(what.contenders)
        self.now += min(self.takes[what.part], seconds)
        if self.takes[what.part] > seconds:
            return Trouble(f"it took longer than {seconds:.0f} s and was stopped", late=True)
        trouble = self.troubles.get(what.part)
        if trouble and (trouble.contender is None or trouble.contender in what.contenders):
            return trouble
        records.append(self.path, gpu._failed(what, "a stand-in", ABOUT))
        return None


ABOUT: dict[str, Any] = {
    "device": "d", "device_type": "cuda", "driver": "1", "threads": 1, "torch": "2", "triton": "3", "python": "3.12", "rdk": "0",
    "commit": "c", "dirty": None, "tree": "t", "hardware": "A GPU",
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
    assert [name for name, _ in fake.asked] == ["a", "c", "d"] and [t.part for t in plan.open] == ["b"]


def test_a_task_that_hangs_fails_and_one_that_the_deadline_cuts_off_is_left_for_the_next_run(tmp_path: Path) -> None:
    fake = FakeMeasurer(tmp_path / "r.jsonl", {"a": 1e6, "b": 45.0})
    plan = Agenda([task("a", 10), task("b", 10)], [], 190.0, fake.clock)
    carried_out(plan, fake)
    assert fake.now <= 190.0 and fake.asked == [("a", 150.0), ("b", 40.0)]
    found = records.read(fake.path)
    assert {r["status"] for r in found} == {"failed"} and "took longer than 150 s" in found[0]["note"]
    assert [r["contender"] for r in found] == ["eager", "rdk eager"] and [t.part for t in plan.open] == ["b"]
    fake.now = 0.0
    again = Agenda([task("a", 10), task("b", 10)], {r["task"] for r in found}, 480.0, fake.clock)
    carried_out(again, fake)
    assert again.open == [] and records.read(fake.path)[2]["note"] == "a stand-in"


def test_what_crashes_before_the_deadline_cuts_the_task_off_is_tried_again(tmp_path: Path) -> None:
    fake = FakeMeasurer(tmp_path / "r.jsonl", {"a": 39.5}, {"a": Trouble("illegal address", "rdk eager")})
    plan = Agenda([task("a", 10)], [], 40.0, fake.clock)
    carried_out(plan, fake)
    assert records.read(fake.path) == [] and plan.open == [task("a", 10)]


def test_a_contender_that_crashes_is_left_alone_after_two_times(tmp_path: Path) -> None:
    takes = dict.fromkeys("abc", 1.0)
    fake = FakeMeasurer(tmp_path / "r.jsonl", takes, {name: Trouble("illegal address", "rdk eager") for name in "abc"})
    carried_out(Agenda([task(name, 10) for name in "abc"], [], 1000.0, fake.clock), fake)
    assert fake.contenders == [("eager", "rdk eager"), ("eager",), ("eager", "rdk eager"), ("eager",), ("eager",)]
    notes = [r["note"] for r in records.read(fake.path) if r["contender"] == "rdk eager"]
    assert notes[:2] == ["illegal address"] * 2 and "not tried" in notes[2] and len(notes) == 3
    assert [r["note"] for r in records.read(fake.path) if r["contender"] == "eager"] == ["a stand-in"] * 3


def test_one_that_is_only_under_way_when_a_task_takes_too_long_is_not_blamed_for_later_ones(tmp_path: Path) -> None:
    late = Trouble("it took longer than 150 s and was stopped", "rdk eager", late=True)
    fake = FakeMeasurer(tmp_path / "r.jsonl", dict.fromkeys("abc", 1.0), dict.fromkeys("abc", late))
    carried_out(Agenda([task(name, 10) for name in "abc"], [], 1000.0, fake.clock), fake)
    assert fake.contenders == [("eager", "rdk eager"), ("eager",)] * 3
    notes = [r["note"] for r in records.read(fake.path) if r["contender"] == "rdk eager"]
    assert notes == [late.reason] * 3


class Unlucky(FakeMeasurer):
    """Each attempt of a part ends by the next of its troubles, after 45 s, until there are none left."""

    def __init__(self, path: Path, troubles: list[Trouble]) -> None:
        super().__init__(path, {"a": 1.0, "b": 1.0})
        self.left = troubles

    def ask(self, what: Task, seconds: float) -> Trouble | None:
        if not self.left:
            return super().ask(what, seconds)
        self.contenders.append(what.contenders)
        self.now += 45.0
        return self.left.pop(0)


def test_all_forms_of_a_backend_that_hangs_are_left_alone_and_teach_no_estimate(tmp_path: Path) -> None:
    forms = ("rdk cuda", "rdk cuda graph", "rdk cuda sqrt")
    tasks = [replace(task(name, 10), contenders=("eager", "rdk triton", *forms)) for name in "ab"]
    fake = Unlucky(tmp_path / "r.jsonl", [Trouble("no sign of life", name) for name in forms[:2]])
    plan = Agenda(tasks, [], 1000.0, fake.clock)
    carried_out(plan, fake)
    rest = ("eager", "rdk triton")
    assert fake.contenders == [(*rest, *forms), (*rest, *forms[1:]), rest, rest]
    found = records.read(fake.path)
    assert [r["note"] for r in found if r["contender"] == "rdk cuda sqrt"] == [
        "not tried: rdk cuda ended or broke the measuring process 2 times before"
    ] * 2
    assert plan.scale == {"a": pytest.approx(0.55), "b": pytest.approx(0.55)}


def test_a_task_of_which_nothing_but_failures_is_there_is_open_again() -> None:
    spoiled, partly = (gpu._failed(task(name, 1), "the device is unusable", ABOUT) for name in "ab")
    partly[0]["status"] = "ok"
    assert gpu._done([*spoiled, *partly, {"task": "ceilings", "suite": "ceilings"}]) == {"ceilings", task("b", 1).name}


def test_estimates_follow_what_a_part_takes() -> None:
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
    covered = {what.case.label for what in plan if what.case and what.part == "core" and what.precision == "bf16"}
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
    assert sum(what.seconds for what in plan if what.part == "core" and what.precision == "bf16") < 900


def test_tasks_travel_as_json() -> None:
    for what in agenda.plan("cuda")[:40]:
        assert Task.from_json(json.loads(json.dumps(what.as_json()))) == what


def test_control_c_ends_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __init__(self, *arguments: object) -> None: ...

        def ask(self, what: Task, seconds: float) -> Trouble | None:
            raise KeyboardInterrupt

        def stop(self) -> None: ...

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu.environment, "describe", lambda *a: ABOUT | {"hardware": "A GPU"})
    monkeypatch.setattr(libraries, "build", lambda *a: None)
    monkeypatch.setattr(libraries, "logged", lambda command, *a, **kw: pytest.fail(f"{command} was started"))
    monkeypatch.setattr(gpu_tests, "PACKAGES", ("no_such_package",))
    monkeypatch.setattr(gpu.contenders, "ours", lambda device_type: ["triton"])
    monkeypatch.setattr(gpu, "Worker", Interrupted)
    monkeypatch.setenv("RDK_LIBRARY_FOLDER", "auto")
    assert cli.main(["gpu", "--out", str(tmp_path), "--minutes", "8"]) == 130
    assert "Not reached in this run: ceilings bf16, W1" in (tmp_path / "summary.md").read_text()
    assert [r["suite"] for r in records.read(tmp_path / "records.jsonl")] == ["tests"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As if a GPU were here, with nothing to build, to test or to measure; what is done about tables."""
    tables: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu.environment, "describe", lambda *a: ABOUT)
    monkeypatch.setattr(libraries, "build", lambda *a: None)
    monkeypatch.setattr(gpu_tests, "PACKAGES", ("no_such_package",))
    monkeypatch.setattr(agenda, "plan", lambda device_type: [])
    monkeypatch.setattr(gpu, "_tables", lambda *a: tables.append("asked for"))
    monkeypatch.setenv("RDK_LIBRARY_FOLDER", "auto")
    return tables


def test_a_short_run_measures_no_tables(machine: list[str], tmp_path: Path) -> None:
    assert gpu.run(tmp_path, 8, False, None, lambda text: None) == 0 and machine == []
    assert gpu.run(tmp_path, 20, False, None, lambda text: None) == 0 and machine == ["asked for"]


def test_an_error_while_measuring_leaves_a_summary(
    machine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(gpu, "carry_out", fail)
    said: list[str] = []
    assert gpu.run(tmp_path, 8, False, None, said.append) == 1
    assert "Traceback" in "".join(said)
    assert "the measuring ended early: RuntimeError: nobody thought of this" in (tmp_path / "summary.md").read_text()


def test_a_comparison_without_eager_is_told() -> None:
    found = [json.loads(json.dumps(record)) for record in FIXED if record["contender"] != "eager"][:1]
    found[0]["contender"] = "rdk cuda"
    assert found[0]["status"] == "ok" and "no eager to compare with" in run.lines(found)[-1]


def test_what_newer_records_have_mended_does_not_decide_the_status(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"

    def wrong(tree: str, date: str, status: str) -> None:
        (record,) = gpu._failed(replace(task("a", 1), contenders=("rdk triton",)), "it differs", ABOUT | {"tree": tree})
        records.append(path, [record | {"status": status, "date": date, "group": date}])

    def status() -> int:
        nothing = Agenda([], [], 0.0, lambda: 0.0)
        return gpu.close(tmp_path, path, nothing, None, ABOUT, lambda text: None)

    wrong("older", "2026-01-01", "wrong")
    assert status() == 0 and "Wrong results" not in (tmp_path / "summary.md").read_text()
    wrong("t", "2026-01-02", "wrong")
    assert status() == 1 and "it differs" in (tmp_path / "summary.md").read_text()
    wrong("t", "2026-01-03", "left out")
    assert status() == 0


def test_the_summary_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    plan = Agenda([task("late", 10)], [], 0.0, lambda: 0.0)
    records.append(path, gpu._failed(task("a", 1), "no kernel image", ABOUT))
    tests: Record = {
        "format": 1, "suite": "tests", "group": "g", "task": "tests", "date": "2026", "status": 1, "result": "1 failed, 2 passed",
        "failures": ["tests/test_a.py::test_b"], "seconds": 1.0, "measured_on": ABOUT,
    }  # fmt: skip
    records.append(path, [tests])
    said: list[str] = []
    assert gpu.close(tmp_path, path, plan, "there was no nvcc", ABOUT, said.append) == 1
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
