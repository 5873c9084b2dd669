"""The pictures of a report as PNG and SVG: speed-up, growth with iterations, batch, channels and map, roofline; for report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import environment, floors, labels, records, summary
from benchmarks.contenders import EAGER
from benchmarks.labels import Label
from benchmarks.problem import PRECISIONS
from benchmarks.records import Record, Setting
from benchmarks.summary import Point
from benchmarks.workloads import CURVE_BASE

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "svg.hashsalt": "rdk",
    "svg.fonttype": "none",
}
OURS, TRAINING = "#1f5fbf", "#e07b00"
BACKENDS = {"auto": OURS, "cpu": "#c2418f", "triton": "#00838f", "cuda": "#6a3fb5"}
COLOURS = {"eager": "#444444", "eager channels_last": "#8c8c8c", "checkpoint": "#2a9d5c", "checkpoint sqrt": "#8fd19e"}
OTHERS = ("#e07b00", "#b0413e", "#8657b3", "#c2a000")


def draw_all(found: Sequence[Record], folder: Path) -> list[Path]:
    """Every picture that the records allow; the PNG's path of each."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with plt.rc_context(STYLE):
        for setting in summary.settings(found):
            for name, draw in (
                ("speedup", speedup),
                ("iterations", iterations),
                ("growth", growth),
                ("roofline", roofline),
            ):
                figure = draw(found, setting)
                if figure is None:
                    continue
                stem = environment.file_stem(name, setting.name)
                for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
                    figure.savefig(folder / f"{stem}{suffix}", dpi=150, bbox_inches="tight", metadata=metadata)
                plt.close(figure)
                drawn.append(folder / f"{stem}.png")
    return drawn


def _plain(axis: Any) -> None:
    """Numbers as people write them on a logarithmic axis, also where it spans less than a decade."""
    low, high = sorted(axis.get_view_interval())
    if high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def speedup(found: Sequence[Record], setting: Setting) -> Figure | None:
    """Bars per headline case: forward and training step, against eager (filled) and against the best other (a black mark). A
    case without figures says why."""
    rows = [row for row in summary.rows(found, setting) if row.eager or row.why]
    if not any(row.eager for row in rows):
        return None
    figure, axes = plt.subplots(figsize=(7.5, 0.62 * len(rows) + 1.4))
    height = 0.36
    for number, row in enumerate(rows):
        for offset, name, colour in ((-height / 2, "forward", OURS), (height / 2, "training", TRAINING)):
            place = number + offset
            if name not in row.eager:
                axes.text(0.02, place, row.why.get(name, ""), va="center", fontsize=8, style="italic", color="#666666")
                continue
            ratio = row.eager[name].ratio
            axes.barh(place, ratio, height * 0.92, color=colour, alpha=0.9)
            axes.text(ratio * 1.02, place, f"{ratio:.2f}×", va="center", fontsize=8)
            if name in row.best:
                axes.plot(
                    [row.best[name].ratio] * 2, [place - height * 0.46, place + height * 0.46], color="black", lw=2
                )
    axes.axvline(1, color="#b00020", lw=1.2)
    axes.set_yticks(range(len(rows)), [f"{row.case.label}\n{row.batch}" for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("times faster than eager in its faster memory layout")
    most = max(versus.ratio for row in rows for versus in row.eager.values())
    axes.set_xlim(0, 1.15 * max(most, 1))
    handles: list[Any] = [Rectangle((0, 0), 1, 1, color=colour) for colour in (OURS, TRAINING)]
    handles.append(Line2D([], [], color="black", lw=2, marker="|", ls="none", ms=10, mew=2))
    names = ["forward (W4r: roll-out)", "training step", "against the best of all others"]
    axes.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(0, 1 + 0.4 / len(rows)),
        ncols=3,
        fontsize=9,
        columnspacing=1.2,
    )
    axes.set_title(f"rdk against PyTorch, {setting.name}", loc="left")
    return figure


def _colour(name: str, others: dict[str, str]) -> str:
    if name.startswith("rdk "):
        return BACKENDS.get(name.split()[1], OURS)
    return COLOURS.get(name) or others.setdefault(name, OTHERS[len(others) % len(OTHERS)])


def _line(axes: Axes, pairs: Sequence[tuple[float, float | None]], name: str, others: dict[str, str]) -> None:
    """A contender's; with a schedule in its colour, thin and dashed. "auto" is a band below the backend that it chose."""
    style, width = ("--", 1.2) if name.endswith(" sqrt") else ("-", 1.8)
    look: dict[str, Any] = {"marker": "o", "ms": 4, "lw": width}
    if name.startswith("rdk auto"):
        look = {"marker": "o", "ms": 8, "lw": 4 * width, "alpha": 0.35, "zorder": 1.5}
    axes.plot(*zip(*pairs, strict=True), style, color=_colour(name, others), label=name, **look)


def _lines(axes: Axes, curves: dict[str, list[Point]], value: Callable[[Point], float | None]) -> None:
    others: dict[str, str] = {}
    for name, points in curves.items():
        pairs = [(point.x, value(point)) for point in points if value(point)]
        if pairs:
            _line(axes, pairs, name, others)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis)
    _plain(axes.yaxis)


def iterations(found: Sequence[Record], setting: Setting) -> Figure | None:
    """Time and peak memory of a training step against the number of iterations; on a CPU the time relative to eager's least."""
    curves = summary.curves(found, setting, "iterations")
    if max((len(points) for points in curves.values()), default=0) < 2:
        return None
    on_cpu = setting.device_type == "cpu"
    unit = (
        min((points[0].milliseconds for name, points in curves.items() if name in EAGER), default=1.0)
        if on_cpu
        else 1.0
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.3), layout="constrained")
    _lines(left, curves, lambda point: point.milliseconds / unit)
    _lines(right, curves, lambda point: (point.peak_bytes or 0) / 2**20)
    left.set_ylabel("time / eager's with one iteration" if on_cpu else "ms")
    right.set_ylabel("peak memory of the step, MiB")
    for axes in (left, right):
        axes.set_xlabel("iterations")
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    left.set_title(f"A training step against depth, {setting.name}: {_base(setting)}", loc="left")
    return figure


def _base(setting: Setting) -> str:
    case = CURVE_BASE[setting.device_type]
    return f"C{case.channels} {case.height}x{case.width}, batch {case.batch}"


def growth(found: Sequence[Record], setting: Setting) -> Figure | None:
    """How many times faster than the faster eager layout, and how much leaner, along batch, channels and map."""
    axes_of = (("batch", "batch"), ("channels", "channels"), ("height", "map: height = width"))
    curves = {axis: summary.curves(found, setting, axis) for axis, _ in axes_of}
    if not any(len(points) > 1 for lines in curves.values() for points in lines.values()):
        return None
    figure, grid = plt.subplots(2, 3, figsize=(10.5, 6.0), layout="constrained", sharex="col")
    for column, (axis, label) in enumerate(axes_of):
        speed, memory = grid[0][column], grid[1][column]
        for axes, value in ((speed, lambda p: p.milliseconds), (memory, lambda p: p.peak_bytes)):
            _relative(axes, curves[axis], value)
            axes.axhline(1, color="#b00020", lw=1.2)
        memory.set_xlabel(label)
        memory.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    grid[0][0].set_ylabel("times faster than eager")
    grid[1][0].set_ylabel("times less peak memory")
    figure.legend(*grid[0][0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=6)
    grid[0][0].set_title(f"A training step, {setting.name}, others as {_base(setting)}, n = 10", loc="left")
    return figure


def _relative(axes: Axes, curves: dict[str, list[Point]], value: Callable[[Point], float | None]) -> None:
    """Eager's least over each other contender's, at each place."""
    least: dict[int, float] = {}
    for name in EAGER:
        for point in curves.get(name, []):
            cost = value(point)
            if cost:
                least[point.x] = min(cost, least.get(point.x, cost))
    others: dict[str, str] = {}
    for name, points in curves.items():
        pairs = [(p.x, least[p.x] / cost) for p in points if p.x in least and (cost := value(p))]
        if pairs and name not in EAGER:
            _line(axes, pairs, name, others)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, max(1.1, 1.05 * axes.get_ylim()[1]))
    axes.xaxis.set_minor_formatter(NullFormatter())


def roofline(found: Sequence[Record], setting: Setting) -> Figure | None:
    """Arithmetic achieved against arithmetic per byte, under the two ceilings measured on the device."""
    ceilings = summary.ceilings(found, setting)
    best = _achieved(found, setting)
    if ceilings is None or not best:
        return None
    flop, bandwidth = ceilings
    on_cpu = setting.device_type == "cpu"
    unit = flop if on_cpu else 1e12
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    places = [point.intensity for point in best]
    low, high = min([*places, flop / bandwidth]) / 3, max([*places, flop / bandwidth]) * 3
    axes.plot(
        [low, flop / bandwidth, high], [low * bandwidth / unit, flop / unit, flop / unit], color="#b00020", lw=1.5
    )
    for who, pass_name in sorted({(point.who, point.pass_name) for point in best}):
        of_both = [point for point in best if (point.who, point.pass_name) == (who, pass_name)]
        points = [(point.intensity, point.rate / unit) for point in of_both]
        colour = OURS if who == "rdk" else "#444444"
        marker = {"training": "^", "forward": "o", "rollout": "s"}[pass_name]
        filled = colour if who == "rdk" else "none"
        axes.plot(*zip(*points, strict=True), marker, ms=7, mfc=filled, mec=colour, label=f"{who}, {pass_name}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.set_xlabel("FLOP of the direct convolutions per byte of the floor")
    axes.set_ylabel("of the matrix product's FLOP/s" if on_cpu else "TFLOP/s")
    note = "FLOP are those of a direct convolution:\na Winograd transform does fewer,\nand may stand above the line"
    axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="#666666")
    figure.legend(fontsize=8, loc="outside right upper")
    axes.set_title(f"Roofline, {setting.name}", loc="left")
    ours = [Label(point.label, point.intensity, point.rate / unit) for point in best if point.who == "rdk"]
    labels.put(axes, ours, [(point.intensity, point.rate / unit) for point in best], OURS, size=6)
    return figure


class Achieved(NamedTuple):
    """What rdk, or eager, reached in one headline case and pass."""

    who: str
    pass_name: str
    label: str
    intensity: float  # FLOP per byte
    rate: float  # FLOP per second


def _achieved(found: Sequence[Record], setting: Setting) -> list[Achieved]:
    """From the newest comparison of every headline case and pass; for rdk what the tables show, "auto" where it took part."""
    headline = {row.case for row in summary.rows(found, setting)}
    newest: dict[tuple[Any, ...], list[Record]] = {}
    for group in sorted(records.groups(found), key=lambda group: group[0]["date"]):
        first = group[0]
        whole = records.uncut_case_of(first)
        if first["suite"] == "workloads" and records.setting_of(first) == setting and whole in headline:
            newest[(whole, first["pass"])] = group
    itemsize = PRECISIONS[setting.precision].dtype.itemsize
    points = []
    for (_, pass_name), group in newest.items():
        case = records.case_of(group[0])
        floor = floors.floor(case, pass_name == "training", itemsize)
        good = [record for record in group if record["status"] == "ok"]
        calls = [r for r in good if summary.is_ours(r) and not summary.has_schedule(r) and not summary.is_graph(r)]
        for who, side in (
            ("rdk", summary.shown(calls)),
            ("eager", [r for r in good if r["contender"] in EAGER]),
        ):
            if side:
                seconds = min(record["median_ms"] for record in side) / 1e3
                points.append(Achieved(who, pass_name, case.label, floor.intensity, floor.flop / seconds))
    return points
