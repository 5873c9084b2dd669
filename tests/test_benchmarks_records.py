"""Records: round trip, validation, interruptions; and the report made from fixed ones: ratios, tables, README, pictures, page."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import environment, records, report, standing, summary, workloads
from benchmarks.check import Errors
from benchmarks.measure import Outcome
from benchmarks.records import Record, RecordError, Setting
from benchmarks.suites import Task
from benchmarks.timing import Timing
from benchmarks.workloads import Case

ABOUT = {
    "device": "NVIDIA H200", "device_type": "cuda", "hardware": "NVIDIA H200", "driver": "580.1", "threads": 1, "torch": "2.11.0",
    "python": "3.12.3", "rdk": "0.1.0", "commit": "abc123", "dirty": False, "tree": "t1",
}  # fmt: skip
ON_CPU = ABOUT | {"device": "cpu avx512", "device_type": "cpu", "hardware": "A Xeon", "driver": None}
GPU, ONE_THREAD = Setting("NVIDIA H200", "bf16", None), Setting("cpu avx512", "fp32", 1)
W1 = workloads.WORKLOADS["W1"].case(5)
W4R = workloads.WORKLOADS["W4r"].case(100)


def ok(name: str, milliseconds: float, peak: int | None = None, error: float = 1e-3) -> Outcome:
    timing = Timing(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 0.8 * milliseconds, 9)
    return Outcome(name, "ok", timing, Errors(error, 2 * error, "gradient of weight 0"), peak)


def group(
    outcomes: list[Outcome],
    case: Case = W1,
    pass_name: str = "training",
    date: str = "2026-11-24T00:00:00Z",
    about: dict[str, Any] = ABOUT,
    precision: str = "bf16",
    suite: str = "workloads",
    uncut: int | None = None,
    stage: str = "core",
) -> list[Record]:
    name = Task(suite, precision, case, pass_name, stage=stage).name
    return [
        records.of_outcome(
            outcome, case, pass_name, precision, suite=suite, group=f"{date} {case} {pass_name} {stage}",
            task=name, uncut_batch=uncut or case.batch, date=date, measured_on=about,
        )
        for outcome in outcomes
    ]  # fmt: skip


FIXED = group(
    [
        ok("eager", 4.0, 800), ok("eager channels_last", 2.0, 900), ok("compile graph", 1.5), ok("checkpoint", 5.0, 300),
        ok("rdk triton", 1.0, 700), ok("rdk triton graph", 0.9), ok("rdk triton sqrt", 1.6, 200),
        Outcome("max-autotune", "failed", note="RuntimeError: no"),
    ]
)  # fmt: skip


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
    back = records.outcome_of(found)
    assert (back.contender, back.status, back.errors, back.peak_bytes, back.note) == (
        outcome.contender, outcome.status, outcome.errors, outcome.peak_bytes, outcome.note
    )  # fmt: skip
    assert records.case_of(found) == W1
    if timing:
        assert (
            back.timing
            and back.timing.median == pytest.approx(timing.median, rel=1e-4)
            and back.timing.samples == samples
        )


def test_every_record_says_where_it_was_measured() -> None:
    about = environment.describe(torch.device("cpu"))
    assert set(records._ABOUT) <= about.keys() and about["torch"] == torch.__version__
    assert len(about["commit"]) >= 7 and about["dirty"] in (True, False, None)
    assert json.loads(json.dumps(about)) == about
    assert environment.commit("given")[0] != "given" or environment.commit("given")[1] is None


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


# --- what records say


def test_ratios_are_those_of_one_comparison() -> None:
    row = summary.rows(FIXED, GPU)[0]
    assert row.case == W1
    assert row.eager["training"] == summary.Versus(2.0, "rdk triton", "eager channels_last")
    assert row.best["training"].theirs == "compile graph"
    assert row.best["training"].ratio == pytest.approx(1.5 / 0.9)
    assert row.memory == summary.Versus(4.0, "rdk triton sqrt", "eager")
    assert row.scheduled and row.scheduled.ratio == pytest.approx(2.0 / 1.6)
    assert row.notes == ["max-autotune, training: failed: RuntimeError: no"]


def test_the_newest_comparison_counts_and_a_stronger_other_elsewhere_too() -> None:
    newer = group([ok("eager", 3.0), ok("rdk triton", 1.0)], date="2026-11-25T00:00:00Z")
    elsewhere = group([ok("eager", 3.0), ok("max-autotune", 0.5), ok("rdk triton", 1.0)], stage="autotune")
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


def curve(axis: str, values: tuple[int, ...]) -> list[Record]:
    base = workloads.CURVE_BASE["cpu"]
    found = []
    for value in values:
        moved = {"height": value, "width": value} if axis == "height" else {axis: value}
        case = replace(base, **moved)
        outcomes = [
            ok("eager", 2.0 * value, 1000 * value),
            ok("rdk cpu", 1.0 * value, 500),
            ok("rdk cpu sqrt", 1.5 * value, 90),
        ]
        found += group(outcomes, case, about=ON_CPU, precision="fp32", suite="curves")
    return found


def test_curves_follow_one_axis() -> None:
    found = curve("iterations", (1, 10, 100)) + curve("batch", (1, 8)) + curve("height", (8, 16, 32))
    cut = replace(workloads.CURVE_BASE["cpu"], iterations=30)
    found += group([ok("eager", 9.0)], cut, about=ON_CPU, precision="fp32", suite="curves", uncut=4)
    lines = summary.curves(found, ONE_THREAD, "iterations")
    assert [(p.x, p.milliseconds) for p in lines["eager"]][0::2] == [(1, 2.0), (100, 200.0)]
    assert [p.x for p in lines["rdk cpu"]] == [1, 10, 100]
    assert [p.x for p in summary.curves(found, ONE_THREAD, "height")["eager"]] == [8, 16, 32]
    assert [p.x for p in summary.curves(found, ONE_THREAD, "batch")["eager"]] == [1, 8]


# --- the report


def test_rows_that_nobody_has_measured_say_so() -> None:
    text = report.markdown(FIXED)
    lines = [line for line in text.splitlines() if line.startswith("| W")]
    assert len(lines) == sum(len(w.headline) * len(w.maps) for w in workloads.WORKLOADS.values())
    assert "| **2.00×** | **1.67×** compile graph | 4.0× less (**1.25×**) | 1e-03 / 1e-03 |" in lines[0]
    assert lines[0].count(summary.NOT_MEASURED) == 2 and lines[1].count(summary.NOT_MEASURED) == 6
    assert all(line.count("|") == 8 for line in lines)
    assert "NVIDIA H200, bf16: torch 2.11.0, driver 580.1, commit abc123, 2026-11-24" in text


def test_without_any_record_the_table_is_there_and_empty() -> None:
    text = report.markdown([])
    assert "nobody has measured it yet" in text and text.count("| W7") == 3
    assert (
        report.markdown(group([ok("eager", 1.0)], about=ON_CPU, precision="fp32")).count("nobody has measured it yet")
        == 1
    )


def shape(
    number: int, pass_name: str, milliseconds: dict[str, float], threads: int = 1, date: str = "2026-11-24T00:00:00Z"
) -> list[Record]:
    case = (*workloads.CPU_SHAPES, *workloads.MAZE_SHAPES)[number]
    outcomes = [ok(name, value) for name, value in milliseconds.items()]
    about = ON_CPU | {"threads": threads}
    return group(outcomes, case, pass_name, date, about, "fp32", "shapes", stage=f"{threads}")


def test_the_shapes_table_shows_medians_least_times_and_geometric_means() -> None:
    found = shape(0, "forward", {"eager": 4.0, "eager channels_last": 6.0, "compile frozen": 3.0, "rdk auto": 1.0})
    found += shape(7, "forward", {"eager": 1.0, "rdk cpu": 0.5, "rdk auto": 1.0})
    found += shape(0, "training", {"eager": 1.0, "compile": 2.0, "rdk auto": 2.0})
    for record in found:
        if record["contender"] == "rdk auto" and record["pass"] == "forward":
            record["least_ms"] /= 2
    one = report.markdown(found)
    lines = {line.split(" | ")[0]: line for line in one.splitlines() if line.startswith(("| C", "| geometric"))}
    assert len(lines) == len(workloads.CPU_SHAPES) + len(workloads.MAZE_SHAPES) + 1
    name = "| C64 28x28, batch 128, 1 conv, n = 5"
    assert lines[name] == (
        f"{name} | **4.00×** | **8.00×** | **3.00×** compile frozen | 0.50× (slower) | 0.50× (slower) | 0.50× (slower) eager |"
    )
    name = "| C128 9x9, batch 10, 4 convs, n = 5"
    assert lines[name] == f"{name} | 1.00×; `cpu` 2.00× | **2.00×** | 1.00× eager{' | not measured' * 3} |"
    name = "| geometric mean of 2 shapes"
    assert (
        lines[name]
        == f"{name} | **2.00×** | **4.00×** | **1.73×** | 0.50× (slower) | 0.50× (slower) | 0.50× (slower) |"
    )


def test_tiny_calls_and_linear_layers_have_tables_of_their_own() -> None:
    found = shape(0, "forward", {"eager": 1.0, "rdk auto": 1.0})
    assert "Tiny calls" not in report.markdown(found) and "RecurrentLinear" not in report.markdown(found)
    for suite, case in (("shapes", workloads.TINY_SHAPES[0]), ("linear", workloads.LINEAR_SHAPES[-1])):
        found += group(
            [ok("eager", 3.0), ok("rdk auto", 1.0)], case, "forward", about=ON_CPU, precision="fp32", suite=suite
        )
    text = report.markdown(found)
    shapes, rest = text.split("**Tiny calls, whole batches, ")
    tiny, linear = rest.split("**RecurrentLinear, whole batches, ")
    assert "geometric mean of 1 shape | 1.00×" in shapes and "| C8 4x4, batch 1, 1 conv, n = 1 | **3.00×**" in tiny
    assert "| 500 features, batch 128, n = 10 | **3.00×**" in linear


def test_another_number_of_threads_is_another_table() -> None:
    found = shape(0, "forward", {"eager": 4.0, "rdk auto": 1.0})
    found += shape(0, "forward", {"eager": 3.0, "rdk auto": 1.0}, threads=2, date="2026-11-25T00:00:00Z")
    text = report.markdown(found)
    assert text.count("CPU shapes") == 2 and "A Xeon, 1 thread)" in text and "A Xeon, 2 threads)" in text
    assert "n = 5 | **4.00×** |" in text.split("CPU shapes")[1] and "n = 5 | **3.00×** |" in text.split("CPU shapes")[2]
    assert standing.standing(found) == found


# --- what stands


def test_a_newer_comparison_of_a_task_supersedes_the_older() -> None:
    old = group([ok("eager", 4.0), ok("compile", 2.0), ok("rdk cpu", 1.0)])
    new = group([ok("eager", 8.0), ok("rdk cpu", 1.0)], date="2026-11-25T00:00:00Z")
    again = group([ok("eager", 9.0), ok("rdk cpu", 1.0)], W1.with_batch(7), date="2026-11-26T00:00:00Z", uncut=W1.batch)
    other_pass = group([ok("eager", 1.0)], pass_name="forward")
    # the first stands for compile, which no newer one holds; the last counts although its batch was cut elsewhere
    assert standing.standing([*old, *new, *again, *other_pass]) == [*old, *again, *other_pass]
    assert standing.standing([*again, *new, *old, *other_pass]) == [*again, *old, *other_pass]
    assert standing.standing([*old, *new]) == [*old, *new]
    elsewhere = group([ok("eager", 1.0), ok("rdk cpu", 1.0)], about=ON_CPU, precision="fp32")
    assert standing.standing([*elsewhere, *new]) == [*elsewhere, *new]


def test_points_of_other_growth_curves_are_superseded() -> None:
    base = replace(workloads.CURVE_BASE["cpu"], batch=4)
    old = group([ok("eager", 1.0)], replace(base, iterations=1), about=ON_CPU, precision="fp32", suite="curves")
    cut = group(
        [ok("eager", 1.0)], replace(base, batch=1), about=ON_CPU, precision="fp32", suite="curves", uncut=4, stage="cut"
    )
    today = curve("batch", (1, 4))
    assert standing.standing([*old, *cut, *today]) == today


def test_superseded_records_are_on_no_page_and_tidy_drops_them(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    new = group([ok("eager", 77.125), ok("rdk cpu", 1.0)], date="2026-11-25T00:00:00Z")
    path = tmp_path / "gpu.jsonl"
    records.append(path, [*group([ok("eager", 33.125), ok("rdk cpu", 1.0)]), *new])
    assert report.run(tmp_path, None, True, lambda text: None) == 0
    page = (tmp_path / "report.html").read_text()
    assert "77.125 ms" in page and "33.125 ms" not in page and "<p>2 records." in page
    said: list[str] = []
    assert standing.tidy(tmp_path, said.append) == 0
    assert records.read(path) == new and "2 records stand, 2 superseded" in said[0]
    assert sorted(entry.name for entry in tmp_path.glob("*.jsonl*")) == ["gpu.jsonl"]
    before = path.stat().st_mtime_ns
    standing.tidy(tmp_path, said.append)
    assert path.stat().st_mtime_ns == before and "2 records stand, 0 superseded" in said[1]


def test_losses_are_shown_as_such() -> None:
    found = group([ok("eager", 1.0, 100), ok("rdk triton", 1.25, 150), ok("rdk triton sqrt", 2.0, 200)])
    found += group([ok("eager", 1.0), ok("rdk triton", 0.98)], W4R, "rollout")
    lines = {line.split(",")[0]: line for line in report.markdown(found).splitlines() if line.startswith("| W")}
    assert "0.80× (slower)" in lines["| W1 n=5"] and "2.0× more (0.50× (slower))" in lines["| W1 n=5"]
    assert "| 1.02× | 1.02× eager | – | – | – |" in lines["| W4r n=100"]


def test_a_backend_that_wins_by_name_only_is_named() -> None:
    found = group([ok("eager", 1.0), ok("rdk cpu", 0.4), ok("rdk auto", 1.02)])
    assert "| 0.98×; `cpu` 2.50× | 0.98× eager |" in report.markdown(found)
    found = group([ok("eager", 1.0), ok("rdk cpu", 0.4), ok("rdk auto", 0.5)])
    assert "`cpu`" not in report.markdown(found)


def test_a_case_without_figures_says_why() -> None:
    names = ("eager", "rdk triton")
    found = group([Outcome(name, "out of memory", note="no") for name in names])
    line = next(line for line in report.markdown(found).splitlines() if line.startswith("| W1 n=5"))
    assert line.count("out of memory") == 3 and line.count(summary.NOT_MEASURED) == 3


def test_the_readme_is_rewritten_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.rewrite(readme, "new") and not report.rewrite(readme, "new")
    assert readme.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="needs the lines <!-- benchmarks:begin -->"):
        report.rewrite(readme, "new")


def test_a_report_draws_pictures_and_a_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    found = curve("iterations", (1, 10, 100)) + curve("batch", (1, 8)) + curve("height", (8, 16, 32))
    found += group([ok("eager", 1.0, 10), ok("rdk cpu", 0.5, 9)], about=ON_CPU, precision="fp32")
    found += group([ok("eager", 1.0), ok("rdk cpu", 0.4)], pass_name="forward", about=ON_CPU, precision="fp32")
    ceilings = {key: found[0][key] for key in ("format", "group", "task", "date", "measured_on")}
    found.append(
        ceilings | {"suite": "ceilings", "precision": "fp32", "flop_per_second": 1e11, "bytes_per_second": 1e10}
    )
    records.append(
        tmp_path / "cpu.jsonl", [*found, *group([Outcome("eager", "failed", note="<b>no</b>")], W4R, "rollout")]
    )
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}{report.END}")
    said: list[str] = []
    assert report.run(tmp_path, readme, True, said.append) == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    stems = {f"{kind}_cpu_avx512_fp32" for kind in ("speedup", "iterations", "growth", "roofline")}
    assert names == {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg")}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4 and "&lt;b&gt;no&lt;/b&gt;" in page and "<b>no</b>" not in page
    assert 'class="win"' in page and "not measured" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons", ""
    )
    assert "2.00×" in readme.read_text()


def test_cases_of_records_keep_every_field() -> None:
    for workload in workloads.WORKLOADS.values():
        case = workload.case(workload.iterations[0])
        (record,) = group([ok("eager", 1.0)], case)
        assert records.case_of(record) == case and record["case"] == asdict(case) | {"stages": case.stages}


def test_the_records_in_the_tree_are_valid() -> None:
    for path in records.FOLDER.glob("*.jsonl"):
        assert records.read(path)
