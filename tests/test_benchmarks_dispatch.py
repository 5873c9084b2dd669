"""The CPU's rule for batches, and the tables that dispatch decides by: what the program writes is what rdk reads."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_cases import CONV, CPU, FP32, NORM, RESIDUAL, broken, switches, wrong_output

from benchmarks import dispatch, environment, measure, suites, workloads
from benchmarks.contenders import CONTENDERS
from rdk import arguments, functional, measured

assert switches  # a fixture of every test here


def test_the_batch_is_cut_until_an_eager_step_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = suites.Executor(CPU)
    monkeypatch.setattr(
        executor, "_step_seconds", lambda case, precision, training: 0.01 * case.batch * case.iterations
    )
    case = workloads.WORKLOADS["W1"].case(5)
    assert executor.fitted(case, FP32, True) == (case.with_batch(16), None)  # 0.8 s; 32 would be 1.6 s
    assert suites.Executor(CPU, step_seconds=9.0)._fitted == {}
    short, reason = executor.fitted(workloads.WORKLOADS["W7"].case(64), FP32, True)
    assert reason is None and short.batch == 1  # 0.64 s
    monkeypatch.setattr(executor, "_step_seconds", lambda case, precision, training: 0.1 * case.batch * case.iterations)
    _, reason = executor.fitted(workloads.WORKLOADS["W7"].case(16), FP32, True)
    assert reason is None
    executor._rates.clear(), executor._fitted.clear()
    _, reason = executor.fitted(workloads.WORKLOADS["W7"].case(64), FP32, True)
    assert reason is not None and "takes about 6.4 s" in reason


def test_a_batch_with_a_norm_keeps_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = suites.Executor(CPU)
    monkeypatch.setattr(executor, "_step_seconds", lambda case, precision, training: 0.3 * case.batch * case.iterations)
    assert executor.fitted(workloads.WORKLOADS["W3"].case(3), FP32, True)[0].batch == 2


def test_the_grid_holds_the_benchmarks_own_shapes_and_no_long_ones() -> None:
    for device_type, quick in itertools.product(("cpu", "cuda"), (False, True)):
        cases = dispatch.grid(device_type, quick)
        assert len(cases) > 20 and len({dispatch._identity(case) for case in cases}) == len(cases)
        assert {case.kind for case in cases} == {"conv", "residual"} and {case.norm for case in cases} == {True, False}
    assert any(case.shape == (1, 128, 32, 32) and case.iterations == 30 for case in dispatch.grid("cpu", False))


def test_a_dispatch_table_is_what_rdk_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "eager_cpu.json"
    said: list[str] = []
    status = dispatch.run("eager", CPU, ["fp32"], True, said.append, [CONV, NORM], target)
    assert status == 0 and len(said) == 5
    table = json.loads(target.read_text())
    assert table["format"] == measured.FORMAT and table["device"] == measured.device_name(CPU)
    assert {"torch", "commit", "date", "hardware", "threads", "driver"} <= table["measured_on"].keys()
    assert table["measured_on"]["finished"] is True
    assert [(r["pass"], r["norm"], r["stages"]) for r in table["records"]] == [
        ("forward", False, 1), ("training", False, 1), ("forward", True, 4), ("training", True, 4)
    ]  # fmt: skip
    assert all(r["speedup_in_layout"] >= r["speedup"] and r["layout"] == "contiguous" for r in table["records"])
    assert all(r["speedup"] > 0 and r["samples"] >= 3 and r["error"] < 1e-5 for r in table["records"])
    # and it decides: the record of a problem is the nearest to that problem
    for record, speedup in zip(table["records"], (2.0, 0.5, 1.0, 1.0), strict=True):
        record["speedup"] = speedup
    monkeypatch.setattr(measured, "tables", lambda: [table])
    module: Any = CONV.module()
    x = torch.randn(CONV.shape)

    def slower() -> str | None:
        call = arguments.prepare(x, module.functional_stages(), 3, 0, None, False, "none", None, "test")
        return measured.slower_than_eager("eager", functional.problem_of(call))

    with torch.no_grad():
        assert slower() is None
    assert "eager was faster (0.50 times)" in str(slower())


def test_a_stopped_dispatch_run_keeps_what_it_has(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    said: list[str] = []

    def stop_after_two(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            raise KeyboardInterrupt

    dispatch.run("eager", CPU, ["fp32"], True, stop_after_two, [CONV, RESIDUAL], target)
    table = json.loads(target.read_text())
    assert len(table["records"]) == 2 and table["measured_on"]["finished"] is False
    assert (
        dispatch.run("eager", CPU, ["fp32"], True, said.append, [CONV, RESIDUAL], tmp_path / "none.json", seconds=-1)
        == 1
    )
    assert not (tmp_path / "none.json").exists() and "no table is written" in said[-1]


def test_a_table_is_written_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "WRITE_EVERY", 0.0)
    target, there = tmp_path / "new" / "table.json", []

    def look(text: str) -> None:
        there.append(len(json.loads(target.read_text())["records"]))

    dispatch.run("eager", CPU, ["fp32"], True, look, [CONV], target)
    assert there == [1, 2, 2]


def test_a_table_that_cannot_be_written_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "compare", lambda *a, **kw: pytest.fail("it was measured"))
    with pytest.raises(ValueError, match="is a folder; the name of a file is needed"):
        dispatch.run("eager", CPU, ["fp32"], True, lambda text: None, [CONV], tmp_path)
    monkeypatch.setattr(environment.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"t.json cannot be written"):
        dispatch.run("eager", CPU, ["fp32"], True, lambda text: None, [CONV], tmp_path / "t.json")


def test_a_wrong_backend_gets_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, "rdk eager", broken("rdk eager", wrong_output))
    said: list[str] = []
    assert dispatch.run("eager", CPU, ["fp32"], True, said.append, [CONV], tmp_path / "table.json") == 1
    assert not (tmp_path / "table.json").exists()
    assert "wrong: the output differs" in said[0]
