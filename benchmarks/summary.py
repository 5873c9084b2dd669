"""From records to what they say: ratios within one comparison, one row per case; called by report, plots, page and standing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks import records
from benchmarks.contenders import EAGER
from benchmarks.records import Record, Setting
from benchmarks.workloads import CURVE_BASE, WORKLOADS, Case

# the least difference that is called one
TIE = 0.05
# twice the standard error of the median of n normal samples, in terms of p80 - p20: 2 · 1.253 / 1.683 · (p80 - p20) / √n.
# Of 89 comparisons of rdk with itself 4 were further apart, and 41 by more than 5 % (W1 to W7, one CPU thread)
ERROR = 1.5

# what a missing figure is called
NOT_MEASURED = "not measured"

AXES = ("iterations", "batch", "channels", "height")

Group = list[Record]


@dataclass(frozen=True)
class Versus:
    """Ours against the best of some contenders in one comparison: ratio > 1 means that rdk is better, by more than a tie where
    it `wins`."""

    ratio: float
    ours: str = ""
    theirs: str = ""
    tie: float = field(default=TIE, compare=False)  # the least difference that counts as one

    @property
    def wins(self) -> bool:
        return self.ratio > 1 + self.tie

    @property
    def loses(self) -> bool:
        return self.ratio * (1 + self.tie) < 1


@dataclass
class Row:
    """What is known of one case in one setting. A field that nobody has measured is None."""

    case: Case  # with the batch of the table of workloads
    batches: set[int] = field(default_factory=set)  # the batches measured; smaller where a CPU's step was too long
    eager: dict[str, Versus] = field(default_factory=dict)  # by pass: against the faster layout of eager
    named: dict[str, Versus] = field(default_factory=dict)  # by pass: as eager, of the best backend asked for by name
    least: dict[str, Versus] = field(default_factory=dict)  # by pass: as eager, least times instead of medians
    best: dict[str, Versus] = field(default_factory=dict)  # by pass: against the best of all others
    memory: Versus | None = None  # peak of a training step: eager's over ours with a schedule
    scheduled: Versus | None = None  # the training step's time then
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)  # by pass: ours and eager's, of the output
    why: dict[str, str] = field(default_factory=dict)  # by pass: why a comparison has no figures

    @property
    def batch(self) -> str:
        """batch 128; batch 4–8 of 50."""
        cut = sorted(self.batches - {self.case.batch})
        if not cut:
            return f"batch {self.case.batch}"
        return f"batch {cut[0]}" + (f"–{cut[-1]}" if len(cut) > 1 else "") + f" of {self.case.batch}"


def is_ours(record: Record) -> bool:
    return str(record["contender"]).startswith("rdk ")


def has_schedule(record: Record) -> bool:
    return is_ours(record) and str(record["contender"]).endswith(" sqrt")


def is_graph(record: Record) -> bool:
    return str(record["contender"]).endswith(" graph")


def settings(found: Iterable[Record], suite: str | None = None) -> list[Setting]:
    """What records (of the suite) exist for, GPUs first, then in the order of first appearance."""
    known = {records.setting_of(r): None for r in found if "precision" in r and suite in (None, r["suite"])}
    return sorted(known, key=lambda setting: setting.threads is not None)


def rows(found: Sequence[Record], setting: Setting | None) -> list[Row]:
    """One row per headline case of the workloads, in their order, from the newest comparisons; without a setting empty ones."""
    return _rows(_groups(found, "workloads", setting), headline())


def headline() -> list[Case]:
    """The cases of the workloads' table."""
    return [case for workload in WORKLOADS.values() for case in workload.cases(headline_only=True)]


def rows_of(found: Sequence[Record], setting: Setting, suite: str, cases: Sequence[Case]) -> list[Row]:
    """One row per case, from the newest comparisons of the suite."""
    return _rows(_groups(found, suite, setting), cases)


def _groups(found: Sequence[Record], suite: str, setting: Setting | None) -> list[Group]:
    """The comparisons of one suite in one setting, oldest first."""
    chosen = [
        group
        for group in records.groups(found)
        if group[0]["suite"] == suite and records.setting_of(group[0]) == setting
    ]
    return sorted(chosen, key=lambda group: str(group[0]["date"]))


def _rows(groups: Sequence[Group], cases: Sequence[Case]) -> list[Row]:
    by_case: dict[Case, list[Group]] = {}
    for group in groups:
        case = records.uncut_case_of(group[0])
        by_case.setdefault(case, []).append(group)
    return [_row(case, by_case.get(case, [])[::-1]) for case in cases]


def _row(case: Case, newest_first: list[Group]) -> Row:
    row = Row(case)
    seen: set[tuple[str, str]] = set()  # pass and contender: the newest comparison of each counts
    for group in newest_first:
        name = "forward" if group[0]["pass"] == "rollout" else group[0]["pass"]
        fresh = [record for record in group if (name, record["contender"]) not in seen]
        seen |= {(name, record["contender"]) for record in group}
        good = [record for record in group if record["status"] == "ok"]
        if not good:
            row.why.setdefault(name, group[-1]["status"])
        if good and fresh:
            row.batches.add(group[0]["case"]["batch"])
        plain = shown([r for r in good if is_ours(r) and not has_schedule(r)])
        eager = [r for r in good if r["contender"] in EAGER]
        if name not in row.eager:
            calls = [r for r in plain if not is_graph(r)]
            versus, least = faster(calls, eager), faster(calls, eager, "least_ms")
            if versus and least:
                row.eager[name], row.least[name] = versus, least
                mine = [r for r in good if is_ours(r) and not has_schedule(r) and not is_graph(r)]
                by_name = faster([r for r in mine if r["contender"] != "rdk auto"], eager)
                if by_name:
                    row.named[name] = by_name
                ours = next(r for r in plain if r["contender"] == versus.ours)
                row.errors[name] = (ours["error"]["output"], max(r["error"]["output"] for r in eager))
        versus = faster(plain, [r for r in fresh if r["status"] == "ok" and not is_ours(r)])
        # others may have been measured in several comparisons, each beside ours: the strongest of them counts
        if versus and (name not in row.best or versus.ratio < row.best[name].ratio):
            row.best[name] = versus
        scheduled = shown([r for r in good if has_schedule(r)])
        if row.memory is None and scheduled and name == "training":
            row.memory = leaner(scheduled, eager)
            row.scheduled = faster(scheduled, eager)
    return row


def shown(ours: list[Record]) -> list[Record]:
    """What stands for rdk: "auto", which is what a user gets, where it took part, else every backend named."""
    auto = [record for record in ours if record["contender"].startswith("rdk auto")]
    return auto or ours


def _versus(
    ours: Sequence[Record],
    theirs: Sequence[Record],
    cost: Callable[[Record], float],
    error: Callable[[Record], float] = lambda record: 0.0,
) -> Versus | None:
    if not ours or not theirs:
        return None
    mine, other = min(ours, key=cost), min(theirs, key=cost)
    tie = max(TIE, math.hypot(error(mine), error(other)))
    return Versus(cost(other) / cost(mine), mine["contender"], other["contender"], tie)


def faster(ours: Sequence[Record], theirs: Sequence[Record], figure: str = "median_ms") -> Versus | None:
    """Their least median time, or another figure, over ours."""
    return _versus(ours, theirs, lambda record: float(record[figure]), error_of_median)


def error_of_median(record: Record) -> float:
    """Twice its standard error, in parts of it."""
    return ERROR * float((record["p80_ms"] - record["p20_ms"]) / record["median_ms"] / record["samples"] ** 0.5)


def leaner(ours: Sequence[Record], theirs: Sequence[Record]) -> Versus | None:
    """Their least peak over ours."""
    measured = [[r for r in side if r["peak_bytes"]] for side in (ours, theirs)]
    return _versus(measured[0], measured[1], lambda record: float(record["peak_bytes"]))


@dataclass(frozen=True)
class Point:
    """One contender at one place of a growth curve."""

    x: int
    milliseconds: float
    peak_bytes: int | None


def curves(found: Sequence[Record], setting: Setting, axis: str) -> dict[str, list[Point]]:
    """By contender, its points along "iterations", "batch", "channels" or "height", from the newest comparison at each place.

    The cases of a curve are those that differ from CURVE_BASE along that axis alone.
    """
    lines: dict[str, dict[int, Point]] = {}
    for group in _groups(found, "curves", setting):
        case = records.case_of(group[0])
        if not is_on_curve(group[0], axis):
            continue
        for record in group:
            if record["status"] == "ok":
                point = Point(getattr(case, axis), record["median_ms"], record["peak_bytes"])
                lines.setdefault(record["contender"], {})[point.x] = point
    return {name: [points[x] for x in sorted(points)] for name, points in lines.items()}


def is_on_curve(record: Record, axis: str) -> bool:
    """Whether the growth curves of today go through the record's case; a batch that was cut lies on none."""
    case, base = records.case_of(record), CURVE_BASE[records.setting_of(record).device_type]
    return _moved(case, base, axis) == base and record["uncut_batch"] == case.batch


def _moved(case: Case, base: Case, axis: str) -> Case:
    """The case with its place on the axis replaced by the base's."""
    if axis == "height":
        return replace(case, height=base.height, width=base.width) if case.height == case.width else case
    return replace(case, **{axis: getattr(base, axis)})


def ceilings(found: Sequence[Record], setting: Setting) -> tuple[float, float] | None:
    """The newest FLOP/s and bytes/s measured on the device."""
    known = [record for record in found if record["suite"] == "ceilings" and records.setting_of(record) == setting]
    newest = max(known, key=lambda record: record["date"], default=None)
    return (newest["flop_per_second"], newest["bytes_per_second"]) if newest else None


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
