"""The records and the report that is made of them: every number, heading and remark from records with known values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from experiments import records, report
from experiments.analysis.halting import MODES
from experiments.cli import main
from experiments.configs import EXPERIMENTS, experiment
from experiments.report import BEGIN, END, pictures, write
from experiments.report.section import Section, frame
from experiments.report.sections_analysis import claim_5, halting, neurons, visualisation
from experiments.report.sections_training import BUILDERS, Evidence
from experiments.settings import Run, as_dict

pytest.importorskip("sklearn")
pytest.importorskip("tyro")


def result(run: Run, accuracy: float, **more: Any) -> dict[str, Any]:
    metrics = {"test_accuracy": accuracy, "test_loss": 1.0, "train_accuracy": 99.0, "train_loss": 0.1}
    return {
        "home": run.home,
        "scale": run.scale,
        "epoch_scale": run.epoch_scale,
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
    scaled = scaled.replaced(epoch_scale=0.25, train=scaled.train.scaled(0.25).replaced(dtype="bfloat16"))
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
    assert "| 7 | 90.71 ± 0.01 (n=3) | 90.71 ± 0.01 (n=3) | +0.00 | same net |" in text
    assert "| 11 | 91.11 ± 0.01 (n=3) | 91.11 ± 0.01 (n=3) | +0.00 ± 0.01 | yes |" in text
    assert "rank correlation of accuracy with depth +1.00; rises with depth" in text
    assert "epochs × 0.25, with train.dtype: bfloat16, not float32" in text and "88.80 (n=1)" in text
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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accuracy_against_depth", "active_neurons", "test_time_iterations"):
        monkeypatch.setattr(pictures, name, lambda *_: None)


def section_of(name: str, results: list[dict[str, Any]]) -> Section:
    """A preset's part of the report on those runs, without analyses."""
    return report._section(name, Evidence(frame(results), {}, Path("unused")))


def quarter(run: Run) -> Run:
    return run.replaced(epoch_scale=0.25, train=run.train.scaled(0.25))


@pytest.mark.parametrize("name", ["T1", "T2", "C4", "F2d", "C9", "C10"])
def test_the_papers_recipe_makes_the_headline(name: str, undrawn: None) -> None:
    """Runs with fewer epochs or an override come after it, in tables whose notes say so; alone, they are named."""
    results, others = [], []
    runs = experiment(name).runs() if name != "C10" else experiment("T2").runs()
    for run in runs:
        results.append(result(run, 80.0 + 5 * (run.model.dilation == "A"), seconds=3600.0))
        others.append(result(quarter(run), 40.0 + 7 * (run.model.dilation == "A"), seconds=7200.0))
        changed = run.replaced(train=run.train.replaced(dtype="float32", lr=7.0))
        results.append(result(changed, 20.0, seconds=7200.0))
    found = section_of(name, results + others)
    headline = {"C10": "32 h for 32 runs", "C9": "gain +5.00", "T2": "depth 8: R 85.00", "C4": "A: 80.00"}
    headline |= {"T1": "CIFAR-10 recurrent 15: 80.00", "F2d": "one run of each net at 3 of the depths"}
    assert found.ours.startswith(headline[name])
    notes = [grid.note for grid in found.grids]
    for words in ("the paper's recipe", "epochs × 0.25", "train.lr: 7.0, not "):
        assert any(words in note for note in notes), (words, notes)
    assert not any("next" in remark for remark in found.remarks)
    assert section_of(name, others).ours.startswith("epochs × 0.25: ")


def test_pairs_of_one_iteration_do_not_count_as_alike(undrawn: None) -> None:
    """Depth 8 is one net; 12 is alike; 16 only because two runs lie far apart; 20 is not alike."""
    values = {8: (50.0, 50.0), 12: (60.0, 60.5), 16: (70.0, 78.0), 20: (80.0, 90.0)}
    results = []
    for run in experiment("F5").runs_at("laptop"):
        if run.data.cells == 5 and run.model.depth <= 20:
            spread = 10.0 if run.model.depth == 16 and run.model.recurrent else 0.1
            accuracy = values[run.model.depth][not run.model.recurrent] + spread * run.seed
            results.append(result(run, accuracy))
            results[-1]["metrics"]["test_accuracy_unmasked"] = accuracy - 33
    found = section_of("F5", results)
    assert "alike at 2 of 3 depths, at 1 of them by the standard error alone (n ≤ 2)" in found.ours
    assert [row[4] for row in found.grids[0].rows] == ["same net", "yes", "by the error", "no"]
    assert found.grids[0].rows[1][5:] == ["27.05 ± 0.05 (n=2)", "27.55 ± 0.05 (n=2)"]  # walls not forced to 0
    assert any("those pairs are not counted" in remark for remark in found.remarks)


def test_one_run_of_each_net_is_no_verdict(undrawn: None) -> None:
    runs = [run for run in experiment("T1-depths").runs_at("laptop") if run.seed == 0 and run.model.depth == 19]
    found = section_of("T1-depths", [result(run, 99.0) for run in runs])
    assert found.ours.endswith("one run of each net at 1 of the depths, too few for a verdict")
    assert not any("pairs are not counted" in remark for remark in found.remarks)


def test_a_gain_has_its_error(undrawn: None) -> None:
    results = [result(run, (70.0 if run.model.dilation == "A" else 60.0) + run.seed) for run in experiment("C9").runs()]
    error = math.sqrt(1 / 3 + 0.5 / 2)  # seeds 0, 1, 2 against seeds 0, 1
    assert section_of("C9", results).grids[0].rows[0][4] == f"+10.50 ± {error:.2f}"


def test_pairs_of_nets_are_called_what_they_are() -> None:
    found = Section("C5", "", "")
    values = {
        "FF8-R8": similarity(0.9),
        "FF8-FF4": similarity(0.8),
        "R8-R4": similarity(0.7),
        "R8-FF4": similarity(0.7),
    }
    claim_5(found, {"images": 7, **values}, None, "full")  # type: ignore[arg-type]
    assert found.ours == "0.900 against 0.800 (9 pairs of 3 + 3 nets); the paper's order shows"
    assert any("R8-R4 and R8-FF4 are equal to every digit" in remark for remark in found.remarks)
    assert any("begin training with the same stem and head" in remark for remark in found.remarks)


def test_the_number_of_images_is_said(undrawn: None) -> None:
    net = {
        "seed": 0,
        "bins": 2,
        "histograms": [[1, 2]],
        "pairs": 360 * 32,
        "pairs_never_active": 0,
        "channels": 32,
        "share_of_pairs_active_twice": 1.0,
        "channels_active_twice": 3,
        "mean_ratio_elsewhere": 0.5,
    }
    found = Section("F9", "", "")
    nets = [{**net, "distance_to_trained": distance} for distance in (0.1, 0.2, 0.6)]
    evidence = Evidence(frame([]), {}, Path("unused"))
    neurons(found, {"nets": nets}, evidence, "full")
    halted = {"accuracy": dict.fromkeys(MODES, 1.0), "iterations": dict.fromkeys(MODES, 1.0), "images": 500}
    halting(found, {"nets": [{**halted, "cells": 5, "depth": 8, "seed": 0}]}, evidence, "laptop")
    assert found.ours == "total variation to trained 0.300 ± 0.153 (n=3)"
    assert found.grids[0].note.startswith("360 test images.") and "first 500 test mazes" in found.grids[1].note
    shown = Section("F8", "", "")
    nets = [{"kind": "recurrent", "picture": "p.png", "high_frequency": {"stem": 0.5}}]
    visualisation(shown, {"steps": 9, "batch": 12, "nets": nets}, evidence, "laptop")
    assert "12 images at once" in shown.grids[0].note and "The paper has 64" in shown.grids[0].note


def test_runs_of_no_preset_are_named(tmp_path: Path) -> None:
    run = experiment("F2a").runs()[0]
    known, other = run.replaced(seed=1), run.replaced(seed=9)
    for one in (known, other):
        records.add_run(result(one, 50.0), tmp_path)
    for file in write(tmp_path, None)[:2]:
        text = file.read_text()
        assert (
            f"1 recorded runs belong to no preset and stand in no table: {other.title} (F2a, full, {other.key})" in text
        )


def test_what_is_missing_counts_analyses_and_laptop_runs() -> None:
    done = [result(run, 50.0) for run in experiment("F6").runs()]
    some = [result(run, 50.0) for run in experiment("C5").runs_at("laptop")[:5]]
    assert "not analysed: the 1 runs at the paper's own size are recorded" in section_of("F6", done).missing
    assert "at laptop scale 5 of 18 runs are recorded" in section_of("C5", some).missing
    assert "at laptop scale" not in section_of("F10", some).missing
