"""The suite of CPU shapes: what is planned and that whole batches are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_cases import CPU, FP32, ONCE, broken, switches, wrong_output

from benchmarks import cli, contenders, measure, records, suites, workloads
from benchmarks.contenders import CONTENDERS
from benchmarks.problem import Problem
from benchmarks.suites import Task
from benchmarks.workloads import Case

assert switches  # a fixture of every test here


def test_the_shapes_are_measured_whole_by_their_own_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [replace(case, batch=2, channels=8, height=4, width=4, iterations=1) for case in workloads.CPU_SHAPES[:1]]
    monkeypatch.setattr(suites, "CPU_SHAPES", small)
    monkeypatch.setattr(suites, "MAZE_SHAPES", [replace(small[0], kind="residual", recall=True)])
    monkeypatch.setattr(suites, "TINY_SHAPES", [])
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


def test_the_plan_of_linear_layers() -> None:
    plan = suites.plan_linear("cpu", ["fp32"], quick=False)
    assert [found.case.iterations for found in plan[::2] if found.case] == [1, 2, 5, 10]
    assert all(found.case and found.case.shape == (128, 500) for found in plan) and len({t.name for t in plan}) == 8
    assert plan[0].name == "linear 500 features, batch 128, n = 1 forward fp32"
    assert all(found.contenders[0] == "eager" and "rdk auto" in found.contenders for found in plan)
    assert all("rdk eager" in found.contenders for found in plan)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_linear_layers_are_checked_like_maps(training: bool, norm: bool) -> None:
    case = Case("grid", "linear", 6, 16, 1, 1, 3, norm=norm)
    names = ["eager", "eager channels_last", "rdk eager", "rdk auto", "rdk cpu", "checkpoint"]
    outcomes = {
        o.contender: o for o in measure.compare(Problem(case, FP32, CPU), training, contenders.named(names), ONCE)
    }
    assert [name for name, o in outcomes.items() if o.status == "ok"] == [
        "eager", "rdk eager", "rdk auto", *(["checkpoint"] if training else [])
    ]  # fmt: skip
    assert outcomes["eager channels_last"].note == "only maps have another memory layout"
    assert outcomes["rdk cpu"].status == "left out"
    wrong = measure.compare(Problem(case, FP32, CPU), False, [CONTENDERS["eager"], broken("rdk x", wrong_output)], ONCE)
    assert wrong[1].status == "wrong"


def test_states_of_linear_layers_neither_die_out_nor_overflow() -> None:
    for iterations in (1, 10, 300):
        problem = Problem(Case("grid", "linear", 8, 64, 1, 1, iterations), FP32, CPU)
        with torch.no_grad():
            out = problem.network(problem.x)
        assert 0.05 < float(out.norm() / problem.x.norm()) < 50 and float((out != 0).float().mean()) > 0.1


def test_the_plan_of_shapes() -> None:
    plan = suites.plan_shapes("cpu", ["fp32"], quick=False)
    cases = (*workloads.CPU_SHAPES, *workloads.MAZE_SHAPES, *workloads.TINY_SHAPES)
    assert len(plan) == 2 * len(cases) == len({t.name for t in plan})
    patience = suites.PATIENCE[plan[0].patience]
    assert patience.seconds == 3.0 and patience.least >= 7
    for found in plan:
        compiled = "compile frozen" if found.pass_name == "forward" else "compile"
        assert found.contenders[:3] == ("eager", "eager channels_last", compiled)
        layouts = {"rdk auto channels_last"} if found.case in workloads.TINY_SHAPES else set()
        assert layouts <= set(found.contenders[3:]) <= {"rdk cpu", "rdk auto"} | layouts and found.case is not None
        assert not found.memory and Task.from_json(json.loads(json.dumps(found.as_json()))) == found
