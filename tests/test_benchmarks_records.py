"""Records: round trip, validation, interruptions; and what they say: ratios of one comparison, the newest, growth curves."""

from __future__ import annotations

import copy
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from record_cases import FIXED, GPU, ON_CPU, ONE_THREAD, W1, curve, group, ok

from benchmarks import environment, records, report, summary, workloads
from benchmarks.check import Errors
from benchmarks.measure import Outcome
from benchmarks.records import RecordError
from benchmarks.timing import Timing

# --- records


@given(
    st.sampled_from(["ok", "wrong", "failed", "out of memory", "left out"]),
    st.floats(1e-3, 1e4),
    st.integers(1, 100),
    st.floats(1e-9, 1e-1),
    st.none() | st.integers(0, 2**40),
    st.text(max_size=30),
)
def test_an_outcome_survives_the_file(
    tmp_path_factory: Any, status: str, median: float, samples: int, error: float, peak: int | None, note: str
) -> None:
    timing = Timing(median, median, 2 * median, median, samples) if status == "ok" else None
    errors = Errors(error, None) if status in ("ok", "wrong") else None
    outcome = Outcome("rdk cpu", status, timing, errors, peak if status == "ok" else None, note)
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    records.append(path, group([outcome]))
    (found,) = records.read(path)
    assert {name: found[name] for name in ("contender", "status", "peak_bytes", "note")} == {
        "contender": outcome.contender, "status": status, "peak_bytes": outcome.peak_bytes, "note": note
    }  # fmt: skip
    assert found["error"] == (errors and {"output": error, "gradient": None, "worst_gradient": None})
    assert records.case_of(found) == W1
    if timing:
        assert found["median_ms"] == pytest.approx(median, rel=1e-4) and found["samples"] == samples


def test_every_record_says_where_it_was_measured() -> None:
    about = environment.describe(torch.device("cpu"))
    assert set(records._ABOUT) <= about.keys() and about["torch"] == torch.__version__
    assert len(about["commit"]) >= 7 and about["dirty"] in (True, False, None)
    assert json.loads(json.dumps(about)) == about


def test_a_run_after_another_is_of_the_same_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    results = tmp_path / "benchmarks" / "results" / "cpu.jsonl"
    code = tmp_path / "code.py"
    results.parent.mkdir(parents=True)
    for path in (results, code):
        path.write_text("1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "c"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    found = []
    for path in (results, code):
        path.write_text("2\n")
        found.append(environment.commit.__wrapped__()[1])
    assert found == [False, True]


def test_a_record_names_what_holds_a_processor_to_less(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RDK_CPU_ISA", "RDK_CPU_KEPT_MIB", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert environment.describe(torch.device("cpu"))["held_to"] == {}
    monkeypatch.setenv("RDK_CPU_ISA", "avx2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    held_to = environment.describe(torch.device("cpu"))["held_to"]
    assert held_to == {"RDK_CPU_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_a_copy_without_git_takes_the_commit_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.commit.__wrapped__("given") == ("given", None)
    assert environment.commit.__wrapped__() == ("unknown", None)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 2}, "format must be 1"),
        ({"suite": "other"}, "suite must be one of"),
        ({"status": "fine"}, "status must be one of"),
        ({"pass": "backward"}, "pass must be one of"),
        ({"contender": None}, "contender must be str"),
        ({"error": None}, "a figure needs the error that was checked before it"),
        ({"median_ms": 1e9}, "do not fit together"),
        ({"least_ms": 0.0}, "do not fit together"),
        ({"samples": 0}, "do not fit together"),
        ({"status": "wrong"}, "has no figures"),
        ({"measured_on": {}}, "measured_on lacks 'device'"),
        ({"case": {"workload": "W1", "size": 3}}, "unexpected keyword"),
    ],
)
def test_records_that_cannot_be_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    record = copy.deepcopy(FIXED[0]) | change
    with pytest.raises((RecordError, TypeError), match=message):
        records.append(tmp_path / "r.jsonl", [record])
    assert not (tmp_path / "r.jsonl").exists()
    (tmp_path / "w.jsonl").write_text(json.dumps(FIXED[0]) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(RecordError, match=r"w.jsonl, line 2: .*"):
        records.read(tmp_path / "w.jsonl")


def test_a_line_cut_short_is_skipped_and_the_next_group_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, FIXED[:2])
    whole = path.read_text()
    path.write_text(whole + whole[:100])
    assert len(records.read(path)) == 2
    inner = whole.index("}")  # torn just behind an inner object
    path.write_text(whole + whole[: inner + 1])
    assert len(records.read(path)) == 2
    path.write_text(whole + whole[:100])
    records.append(path, FIXED[2:4])
    assert [r["contender"] for r in records.read(path)] == [
        "eager",
        "eager channels_last",
        "compile graph",
        "checkpoint",
    ]
    path.write_text("{not json}\n")
    with pytest.raises(RecordError, match="line 1: not JSON"):
        records.read(path)
    assert records.read(tmp_path / "none.jsonl") == []


def test_cases_of_records_keep_every_field() -> None:
    for workload in workloads.WORKLOADS.values():
        case = workload.case(workload.iterations[0])
        (record,) = group([ok("eager", 1.0)], case)
        assert records.case_of(record) == case and record["case"] == asdict(case) | {"stages": case.stages}


def test_the_records_in_the_tree_are_valid() -> None:
    for path in records.FOLDER.glob("*.jsonl"):
        assert records.read(path)


# --- what records say


def test_ratios_are_those_of_one_comparison() -> None:
    row = summary.rows(FIXED, GPU)[0]
    assert row.case == W1
    assert row.eager["training"] == summary.Versus(2.0, "rdk triton", "eager channels_last")
    assert row.best["training"].theirs == "compile graph"
    assert row.best["training"].ratio == pytest.approx(1.5 / 0.9)
    assert row.memory == summary.Versus(4.0, "rdk triton sqrt", "eager")
    assert row.scheduled and row.scheduled.ratio == pytest.approx(2.0 / 1.6)


def test_the_newest_comparison_counts_and_a_stronger_other_elsewhere_too() -> None:
    newer = group([ok("eager", 3.0), ok("rdk triton", 1.0)], date="2026-11-25T00:00:00Z")
    elsewhere = group([ok("eager", 3.0), ok("max-autotune", 0.5), ok("rdk triton", 1.0)], part="autotune")
    row = summary.rows([*FIXED, *elsewhere, *newer], GPU)[0]
    assert row.eager["training"].ratio == 3.0
    assert row.best["training"] == summary.Versus(0.5, "rdk triton", "max-autotune")
    assert row.memory and row.memory.ratio == 4.0  # the newer one did not measure a schedule


def test_auto_stands_for_rdk_where_it_took_part() -> None:
    found = group([ok("eager", 1.0), ok("rdk cpu", 4.0), ok("rdk auto", 1.02)])
    assert summary.rows(found, GPU)[0].eager["training"].ours == "rdk auto"


def test_a_cut_batch_belongs_to_the_row_of_the_whole_one() -> None:
    found = group(
        [ok("eager", 1.0), ok("rdk cpu", 0.5)], replace(W1, batch=8), about=ON_CPU, precision="fp32", uncut=128
    )
    row = summary.rows(found, ONE_THREAD)[0]
    assert row.case.batch == 128 and row.batches == {8}
    assert report.name_of(row) == "W1 n=5, C64 28x28, batch 8 of 128"


def test_curves_follow_one_axis() -> None:
    found = curve("iterations", (1, 10, 100)) + curve("batch", (1, 8)) + curve("height", (8, 16, 32))
    cut = replace(workloads.CURVE_BASE["cpu"], iterations=30)
    found += group([ok("eager", 9.0)], cut, about=ON_CPU, precision="fp32", suite="curves", uncut=4)
    lines = summary.curves(found, ONE_THREAD, "iterations")
    assert [(p.x, p.milliseconds) for p in lines["eager"]][0::2] == [(1, 2.0), (100, 200.0)]
    assert [p.x for p in lines["rdk cpu"]] == [1, 10, 100]
    assert [p.x for p in summary.curves(found, ONE_THREAD, "height")["eager"]] == [8, 16, 32]
    assert [p.x for p in summary.curves(found, ONE_THREAD, "batch")["eager"]] == [1, 8]
