"""The report made from fixed records: tables, what stands, the README, pictures, the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from record_cases import FIXED, GPU, ON_CPU, ONE_THREAD, OTHER_CPU, W1, W4R, curve, group, ok, shape

from benchmarks import plots, records, report, standing, summary, workloads
from benchmarks.measure import Outcome


def test_rows_that_nobody_has_measured_say_so() -> None:
    text = report.markdown(FIXED)
    lines = [line for line in text.splitlines() if line.startswith("| W")]
    assert len(lines) == sum(len(w.headline) * len(w.maps) for w in workloads.WORKLOADS.values())
    assert "| **2.00×** | **2.00×** | **1.67×** compile graph | 4.0× less (**1.25×**) | 1e-03 / 1e-03 |" in lines[0]
    assert lines[0].count(summary.NOT_MEASURED) == 3 and lines[1].count(summary.NOT_MEASURED) == 8
    assert all(line.count("|") == 10 for line in lines)
    assert "NVIDIA H200, bf16: torch 2.11.0, driver 580.1, commit abc123 of 2026-11-24" in text


def test_without_any_record_the_table_is_there_and_empty() -> None:
    text = report.markdown([])
    assert "nobody has measured it yet" in text and text.count("| W7") == 3
    assert (
        report.markdown(group([ok("eager", 1.0)], about=ON_CPU, precision="fp32")).count("nobody has measured it yet")
        == 1
    )


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
        [ok("eager", 1.0)], replace(base, batch=1), about=ON_CPU, precision="fp32", suite="curves", uncut=4, part="cut"
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


def test_a_folder_without_records_leaves_the_readme_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\ntables\n{report.END}\n")
    (tmp_path / "empty").mkdir()
    for name, message in (("typo", "no such folder"), ("empty", r"no \*.jsonl has any")):
        with pytest.raises(ValueError, match=f"there are no records in .*{name}: {message}"):
            report.run(tmp_path / name, readme, True, lambda text: None)
    assert "tables" in readme.read_text() and sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "empty"]


def test_losses_are_shown_as_such() -> None:
    found = group([ok("eager", 1.0, 100), ok("rdk triton", 1.25, 150), ok("rdk triton sqrt", 2.0, 200)])
    found += group([ok("eager", 1.0), ok("rdk triton", 0.98)], W4R, "rollout")
    lines = {line.split(",")[0]: line for line in report.markdown(found).splitlines() if line.startswith("| W")}
    assert "0.80× (slower)" in lines["| W1 n=5"] and "2.0× more (0.50× (slower))" in lines["| W1 n=5"]
    assert "| 1.02× | 1.02× | 1.02× eager | – | – | – | – |" in lines["| W4r n=100"]


def test_a_backend_that_wins_by_name_only_is_named() -> None:
    found = group([ok("eager", 1.0), ok("rdk cpu", 0.4), ok("rdk auto", 1.02)])
    assert "| 0.98×; `cpu` 2.50× | 0.98× | 0.98× eager |" in report.markdown(found)
    found = group([ok("eager", 1.0), ok("rdk cpu", 0.4), ok("rdk auto", 0.5)])
    assert "`cpu`" not in report.markdown(found)


def test_a_case_without_figures_says_why() -> None:
    names = ("eager", "rdk triton")
    found = group([Outcome(name, "out of memory", note="no") for name in names])
    line = next(line for line in report.markdown(found).splitlines() if line.startswith("| W1 n=5"))
    assert line.count("out of memory") == 4 and line.count(summary.NOT_MEASURED) == 4


def test_a_title_names_every_commit_of_its_rows_and_the_machine() -> None:
    found = group([ok("eager", 2.0), ok("rdk cpu", 1.0)], about=ON_CPU, precision="fp32")
    later = ON_CPU | {"commit": "def456", "dirty": True}
    found += group([ok("eager", 2.0)], W4R, "rollout", "2026-11-25T00:00:00Z", later, "fp32")
    # a case of the suite that the table does not show, and one of another machine
    other = replace(W4R, iterations=7)
    assert other not in summary.headline()
    found += group([ok("eager", 2.0)], other, "rollout", about=ON_CPU | {"commit": "fed987"}, precision="fp32")
    found += group([ok("eager", 2.0)], W4R, "rollout", about=OTHER_CPU | {"commit": "fed987"}, precision="fp32")
    title = report.title(found, ONE_THREAD, "workloads", summary.headline())
    assert title.startswith("cpu avx512 (A Xeon, 1 thread), fp32: torch 2.11.0, commits ")
    assert title.endswith("commits abc123 of 2026-11-24, def456 with changes of 2026-11-25")


def test_each_processor_has_tables_pictures_and_standing_records_of_its_own(tmp_path: Path) -> None:
    """Also two of the same instruction set: one's figures neither mix with the other's nor supersede them."""
    found = group([ok("eager", 2.0), ok("rdk cpu", 1.0)], about=ON_CPU, precision="fp32")
    later = group(
        [ok("eager", 3.0), ok("rdk cpu", 1.0)], date="2026-11-25T00:00:00Z", about=OTHER_CPU, precision="fp32"
    )
    assert standing.standing([*found, *later]) == [*found, *later]
    titles = [title for title, _, _ in report.tables([*found, *later])]
    assert [name in title for title in titles[1:] for name in ("A Xeon", "Another(R)")] == [True, False, False, True]
    rows = {setting.name: summary.rows([*found, *later], setting)[0] for setting in summary.settings([*found, *later])}
    assert {name: row.eager["training"].ratio for name, row in rows.items()} == {
        "cpu avx512 (A Xeon), fp32": 2.0,
        "cpu avx512 (Another), fp32": 3.0,
    }
    assert [path.name for path in plots.draw_all([*found, *later], tmp_path)] == [
        "speedup_cpu_avx512_a_xeon_fp32.png",
        "speedup_cpu_avx512_another_fp32.png",
    ]


@pytest.mark.parametrize("samples, spread, text", [(100, 0.3, "**1.10×**"), (9, 0.3, "1.10×"), (4, 0.01, "**1.10×**")])
def test_a_difference_within_the_error_of_its_medians_is_a_tie(samples: int, spread: float, text: str) -> None:
    found = group([ok("eager", 1.1), ok("rdk triton", 1.0)])
    for record in found:
        record |= {"samples": samples, "p80_ms": record["p20_ms"] + spread * record["median_ms"]}
    versus = summary.rows(found, GPU)[0].eager["training"]
    assert report.ratio_text(versus) == text
    slower = replace(versus, ratio=1 / versus.ratio)
    assert report.ratio_text(slower) == ("0.91× (slower)" if "**" in text else "0.91×")


def test_memory_decides_the_colour_of_its_cell() -> None:
    page = pytest.importorskip("benchmarks.page")
    cells = (
        "4.0× less (0.50× (slower))",
        "2.0× more (**1.25×**)",
        "1.0× less (**1.25×**)",
        "**1.25×**",
        "not measured",
    )
    assert [page._cell(text)["verdict"] for text in cells] == ["win", "loss", "", "win", "missing"]


def test_the_page_says_of_every_comparison_where_and_when(tmp_path: Path) -> None:
    page = pytest.importorskip("benchmarks.page")
    found = group([ok("eager", 2.0)], W1.with_batch(8), about=ON_CPU, precision="fp32", uncut=128)
    found += group([ok("eager", 2.0)], W1, about=ON_CPU, precision="fp32", date="2026-11-25T10:20:00Z")
    text = page.write(found, [], tmp_path / "report.html").read_text()
    assert "batch 8, 1 conv, n = 5 (cut from 128); A Xeon, commit abc123, 2026-11-24 00:00</summary>" in text
    assert "batch 128, 1 conv, n = 5; A Xeon, commit abc123, 2026-11-25 10:20</summary>" in text
    assert "<h2>An NVIDIA GPU, bf16: nobody has measured it yet</h2>" in text


def test_the_pictures_show_cut_batches_what_is_left_out_and_the_headline_only() -> None:
    plots = pytest.importorskip("benchmarks.plots")
    outcomes = [ok("eager", 1.0), ok("rdk auto", 0.5), ok("rdk cpu", 0.4)]
    found = group(outcomes, W1.with_batch(8), about=ON_CPU, precision="fp32", uncut=128)
    found += group([Outcome("eager", "left out", note="long")], W4R, "rollout", about=ON_CPU, precision="fp32")
    other = workloads.WORKLOADS["W1"].case(32)
    found += group(outcomes, other, about=ON_CPU, precision="fp32")
    ceilings = {key: found[0][key] for key in ("format", "group", "task", "date", "measured_on")}
    found.append(
        ceilings | {"suite": "ceilings", "precision": "fp32", "flop_per_second": 1e11, "bytes_per_second": 1e10}
    )
    figure = plots.speedup(found, ONE_THREAD)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["W1 n=5\nbatch 8 of 128", "W4r n=100\nbatch 1"]
    assert "left out" in [text.get_text() for text in figure.axes[0].texts]
    points = plots._achieved(found, ONE_THREAD)
    assert [(point.who, point.label) for point in points] == [("rdk", "W1 n=5"), ("eager", "W1 n=5")]
    assert points[0].rate == pytest.approx(2 * points[1].rate)  # auto, not the faster backend asked for by name
    said = [text.get_text() for text in plots.roofline(found, ONE_THREAD).axes[0].texts]
    assert "a Winograd transform does fewer" in said[0] and said[1:] == ["W1 n=5"]


def test_the_lines_of_auto_and_of_the_backend_it_chose_are_both_seen() -> None:
    plots = pytest.importorskip("benchmarks.plots")
    axes = plots.plt.figure().add_subplot()
    for name in ("rdk cpu", "rdk auto"):
        plots._line(axes, [(1, 1.0), (10, 65.0)], name, {})
    cpu, auto = axes.lines
    assert auto.get_linewidth() > 2 * cpu.get_linewidth() and auto.get_zorder() < cpu.get_zorder()
    axes.set_yscale("log")
    plots._plain(axes.yaxis)
    low, high = axes.get_ylim()
    assert {1, 2, 5, 10, 20, 50} <= {round(tick) for tick in axes.yaxis.get_majorticklocs() if low <= tick <= high}


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
    stems = {f"{kind}_cpu_avx512_a_xeon_fp32" for kind in ("speedup", "iterations", "growth", "roofline")}
    assert names == {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg")}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4 and "&lt;b&gt;no&lt;/b&gt;" in page and "<b>no</b>" not in page
    assert 'class="win"' in page and "not measured" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons", ""
    )
    written = readme.read_text()
    assert "2.00×" in written and written.count("](pictures/") == 2
    assert report.run(tmp_path, readme, False, said.append) == 0
    assert readme.read_text() == written  # links to pictures that are there stay


def test_labels_of_neighbouring_points_hide_neither_one_another_nor_a_point() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    from matplotlib.text import Text

    from benchmarks import labels

    figure, axes = plt.subplots(figsize=(6, 4))
    points = [(1.0 + 0.08 * (number % 3), 1.0 + 0.08 * (number // 3)) for number in range(12)]
    axes.set_xlim(0.5, 2)
    axes.set_ylim(0.5, 2)
    labels.put(axes, [labels.Label(f"W{x:.2f} {y:.2f}", x, y) for x, y in points], points, "black", size=6)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == len(points)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not any(box.contains(*spot) for spot in axes.transData.transform(points))
    plt.close(figure)
