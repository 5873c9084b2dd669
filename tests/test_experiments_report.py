"""The records and the report that is made of them: every number, heading and remark from records with known values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from experiments import records
from experiments.cli import main
from experiments.configs import EXPERIMENTS, experiment
from experiments.report import BEGIN, END, write
from experiments.report.section import Section
from experiments.report.sections_analysis import claim_5
from experiments.report.sections_training import BUILDERS
from experiments.settings import Run, as_dict

pytest.importorskip("sklearn")
pytest.importorskip("tyro")


def result(run: Run, accuracy: float, **more: Any) -> dict[str, Any]:
    metrics = {"test_accuracy": accuracy, "test_loss": 1.0, "train_accuracy": 99.0, "train_loss": 0.1}
    return {
        "home": run.home,
        "scale": run.scale,
        "schedule": run.schedule,
        "key": run.key,
        "settings": as_dict(run),
        "metrics": metrics,
        "parameters": 1,
        "steps": 1,
        "seconds": 3600.0,
        "backend": "eager",
        "device": "test device",
        "commit": "abc",
        "date": "2026-01-02 00:00 UTC",
        **more,
    }


def test_records_keep_one_line_per_run(tmp_path: Path) -> None:
    runs = experiment("F2a").runs()[:3]
    for run in [*runs, runs[0]]:
        records.add_run(result(run, 50.0 + run.model.depth), tmp_path)
    records.add_run(result(runs[0], 77.0), tmp_path)
    found = records.runs(tmp_path)
    assert len(found) == 3 and [
        entry["metrics"]["test_accuracy"] for entry in found if entry["key"] == runs[0].key
    ] == [77.0]


def test_the_report_computes_what_it_prints(tmp_path: Path) -> None:
    """Means, standard errors, differences to the paper, what is missing: from records with known numbers."""
    accuracies = {0: 94.0, 1: 95.0, 2: 97.0}
    for run in experiment("T2").runs():
        if run.model.depth == 8 and run.model.dilation == "A" and run.model.recurrent:
            records.add_run(result(run, accuracies[run.seed]), tmp_path)
    for run in experiment("F2c").runs_at("laptop"):
        records.add_run(result(run, 90.0 + run.model.depth / 10 + run.seed / 100), tmp_path)
    scaled = experiment("F2c").runs()[0]
    scaled = scaled.replaced(schedule=0.25, train=scaled.train.scaled(0.25).replaced(dtype="bfloat16"))
    records.add_run(result(scaled, 88.8), tmp_path)
    for name in ("F1", "F3", "C1"):
        assert main(["run", name, "--results", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 0
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    markdown, html, _ = write(tmp_path, readme)
    text = markdown.read_text()
    mean, error = 286 / 3, math.sqrt(((94 - 286 / 3) ** 2 + (95 - 286 / 3) ** 2 + (97 - 286 / 3) ** 2) / 2 / 3)
    assert f"| 8 | {mean:.2f} ± {error:.2f} (n=3) | 75.07 | {mean - 75.07:+.2f} |" in text
    assert "not run: 29 of 32 runs at the paper's own size; needs about" in text
    assert "| 7 | 90.71 ± 0.01 (n=3) | 90.71 ± 0.01 (n=3) | +0.00 ± 0.01 | same net |" in text
    assert "| 11 | 91.11 ± 0.01 (n=3) | 91.11 ± 0.01 (n=3) | +0.00 ± 0.01 | yes |" in text
    assert "rank correlation of accuracy with depth +1.00; rises with depth" in text
    assert "schedule × 0.25, with train.dtype: bfloat16, not float32" in text and "88.80 (n=1)" in text
    assert "11,815,434 and 30,689,802" in text and "test device" in text and "commit abc" in text
    assert (
        "old" not in readme.read_text() and readme.read_text().startswith("before") and "| C1 |" in readme.read_text()
    )
    assert html.read_text().count("data:image/png;base64") == text.count("![")
    for picture in ("F1", "F3", "F2c.laptop"):
        for ending in (".png", ".pdf"):
            assert (tmp_path / "pictures" / f"{picture}{ending}").stat().st_size > 1000


def test_a_report_without_records_says_not_run(tmp_path: Path) -> None:
    text = write(tmp_path, None)[0].read_text()
    assert text.count("| not run |") == len(EXPERIMENTS)


def test_every_experiment_made_of_runs_has_its_part_of_the_report(tmp_path: Path) -> None:
    """One record of each kind of net and data that a preset holds is enough for its table or picture."""
    for name in BUILDERS:
        for run in experiment(name).runs():
            if run.seed == 0:
                records.add_run(result(run, 60.0 + run.model.depth / 10), tmp_path)
    text = write(tmp_path, None)[0].read_text()
    for name in BUILDERS:
        part = text.split(f"## {name}: ")[1].split("\n## ")[0]
        assert "| " in part, name
        assert f"| {name} | {EXPERIMENTS[name].title} | `run {name}` | not run |" not in text, name
    assert "small mazes, recurrent: rank correlation of accuracy with depth +1.00" in text


def similarity(value: float) -> dict[str, Any]:
    return {"penultimate biased": {"mean": value, "deviation": 0.001, "n": 9}}


def test_a_part_of_claim_5_gives_no_verdict() -> None:
    found = Section("C5", "", "")
    claim_5(found, {"images": 7, "FF8-R8": similarity(0.9), "FF7-R7": similarity(0.8)}, None, "full")  # type: ignore[arg-type]
    assert "FF8-R8 and FF8-FF4 are not both there" in found.remarks[-1] and not found.ours
    assert [row[0] for row in found.grids[0].rows] == ["FF8-R8", "FF7-R7"]


def part_of(text: str, name: str) -> str:
    return text.split(f"## {name}: ")[1].split("\n## ")[0]


def row_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_the_papers_recipe_makes_the_headline(tmp_path: Path) -> None:
    """Runs with another schedule or an override come after it, in tables whose notes say so."""
    for name in ("T1", "T2", "C4", "F2c"):
        for run in experiment(name).runs():
            records.add_run(result(run, 80.0), tmp_path)
            quarter = run.replaced(schedule=0.25, train=run.train.scaled(0.25))
            records.add_run(result(quarter, 40.0), tmp_path)
            records.add_run(result(run.replaced(train=run.train.replaced(dtype="bfloat16", lr=7.0)), 20.0), tmp_path)
    text = write(tmp_path, None)[0].read_text()
    for name, row in (("T1", "recurrent 15"), ("T2", "| 8 |"), ("C4", "| none |")):
        ours = row_of(text, name).split(" | ")[3]
        assert "80.00" in ours and "40.00" not in ours and "20.00" not in ours, ours
        tables = [entry for entry in part_of(text, name).split("\n\n") if entry.startswith("| ")]
        assert sum(row in table for table in tables) >= 3
        notes = part_of(text, name)
        assert "schedule × 0.25" in notes and "the paper's recipe, with train." in notes and "next" not in notes
    hours = row_of(text, "C10").split(" | ")[3]
    assert (
        hours
        == f"{sum(run.home in ('T1', 'T2', 'F2c') for run in experiment('C10').runs())} h for "
        + hours.split(" h for ")[1]
    )
    assert "Runs: schedule × 0.25." in part_of(text, "C10")


@pytest.mark.parametrize("name", ["T1", "T2", "C4", "C9", "C10"])
def test_other_recipes_are_named_in_the_headline(name: str, tmp_path: Path) -> None:
    for run in experiment(name).runs():
        records.add_run(result(run.replaced(schedule=0.25, train=run.train.scaled(0.25)), 40.0), tmp_path)
    assert row_of(write(tmp_path, None)[0].read_text(), name).split(" | ")[3].startswith("schedule × 0.25: ")


def test_pairs_of_one_iteration_do_not_count_as_alike(tmp_path: Path) -> None:
    """Depth 8 is one net; 12 is alike; 16 only because two runs lie far apart; 20 is not alike."""
    values = {8: (50.0, 50.0), 12: (60.0, 60.5), 16: (70.0, 75.0), 20: (80.0, 90.0)}
    for run in experiment("F5").runs_at("laptop"):
        if run.data.cells == 5 and run.model.depth <= 20:
            spread = 10.0 if run.model.depth == 16 and run.model.recurrent else 0.1
            accuracy = values[run.model.depth][not run.model.recurrent] + spread * run.seed
            more = {"test_accuracy_unmasked": accuracy - 33}
            found = result(run, accuracy)
            records.add_run({**found, "metrics": {**found["metrics"], **more}}, tmp_path)
    text = write(tmp_path, None)[0].read_text()
    assert "alike at 2 of 3 depths, at 1 of them by the standard error alone (n ≤ 2)" in row_of(text, "F5")
    part = part_of(text, "F5")
    assert [
        line.split(" | ")[4] for line in part.splitlines() if line.startswith(("| 8 ", "| 12 ", "| 16 ", "| 20 "))
    ] == [
        "same net",
        "yes",
        "by the error",
        "no",
    ]
    assert "| 27.05 ± 0.05 (n=2) | 27.55 ± 0.05 (n=2) |" in part  # depth 12, walls not forced to 0
    assert "those pairs are not counted" in part


def test_one_run_of_each_net_is_no_verdict(tmp_path: Path) -> None:
    for run in experiment("T1-depths").runs_at("laptop"):
        if run.seed == 0 and run.model.depth == 19:
            records.add_run(result(run, 99.0), tmp_path)
    text = write(tmp_path, None)[0].read_text()
    assert "1 depths with one run of each net, too few for a verdict" in row_of(text, "T1-depths")
    assert "pairs are not counted" not in part_of(text, "T1-depths")


def test_a_gain_has_its_error(tmp_path: Path) -> None:
    for run in experiment("C9").runs():
        records.add_run(result(run, (70.0 if run.model.dilation == "A" else 60.0) + run.seed), tmp_path)
    error = math.sqrt(1 / 3 + 0.5 / 2)  # seeds 0, 1, 2 against seeds 0, 1
    assert f"+10.50 ± {error:.2f}" in part_of(write(tmp_path, None)[0].read_text(), "C9")
