"""The suite of CPU shapes: what is planned and that whole batches are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_cases import switches

from benchmarks import cli, records, suites, workloads
from benchmarks.suites import Task

assert switches  # a fixture of every test here


def test_the_shapes_are_measured_whole_by_their_own_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [replace(case, batch=2, channels=8, height=4, width=4, iterations=1) for case in workloads.CPU_SHAPES[:1]]
    monkeypatch.setattr(suites, "CPU_SHAPES", small)
    monkeypatch.setattr(suites, "MAZE_SHAPES", [replace(small[0], kind="residual", recall=True)])
    monkeypatch.setattr(suites.Executor, "fitted", lambda *a, **kw: pytest.fail("no batch of a shape is cut"))
    monkeypatch.setattr(cli, "_pinned", lambda device, threads: None)
    path = tmp_path / "r.jsonl"
    command = ["run", "--suite", "shapes", "--quick", "--contender", "rdk eager", "--out", str(path)]
    assert cli.main(command) == 0
    found = records.read(path)
    assert {(r["suite"], r["pass"], r["status"]) for r in found} == {
        ("shapes", "forward", "ok"), ("shapes", "training", "ok")
    }  # fmt: skip
    assert len({r["task"] for r in found}) == 4 and len(found) == 12
    assert "[4/4] shape C8 4x4, batch 2, 5 convs, recall, n = 1 training fp32" in capsys.readouterr().out


def test_the_plan_of_shapes() -> None:
    plan = suites.plan_shapes("cpu", ["fp32"], quick=False)
    assert len(plan) == 2 * (len(workloads.CPU_SHAPES) + len(workloads.MAZE_SHAPES)) == len({t.name for t in plan})
    patience = suites.PATIENCE[plan[0].patience]
    assert patience.seconds == 3.0 and patience.least >= 7
    for found in plan:
        compiled = "compile frozen" if found.pass_name == "forward" else "compile"
        assert found.contenders[:3] == ("eager", "eager channels_last", compiled)
        assert set(found.contenders[3:]) <= {"rdk cpu", "rdk auto"} and found.case is not None
        assert not found.memory and Task.from_json(json.loads(json.dumps(found.as_json()))) == found
