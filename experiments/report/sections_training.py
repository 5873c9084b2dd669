"""Sections made of training results alone: Tables 1 and 2, Figures 2 and 5, claims C4, C9 and C10; called by report.write."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.configs import EXPERIMENTS
from experiments.estimate import RATES, estimate
from experiments.report import paper, pictures
from experiments.report.section import Grid, Section, setting, sources, statistic
from experiments.settings import LABELS, Run, as_dict, differences

KINDS = {True: "recurrent", False: "feed_forward"}


class Evidence(NamedTuple):
    """All that was recorded."""

    runs: pd.DataFrame
    analyses: dict[tuple[str, str], dict[str, Any]]
    pictures: Path

    def of(self, name: str) -> Iterator[tuple[str, float, pd.DataFrame]]:
        """The recorded runs of an experiment, apart by scale, schedule and what was overridden; the paper's own first.

        The column `changed` of a group says in one text what differs from the preset, or nothing.
        """
        for scale in ("full", "laptop"):
            presets = {(run.home, *_kind(run)): run for run in EXPERIMENTS[name].runs_at(scale)}
            rows = []
            for row in self.runs.to_dict("records"):
                preset = presets.get((row["home"], *_row_kind(row))) if row["scale"] == scale else None
                if preset is not None:
                    rows.append({**row, "changed": _changed(row, preset)})
            if rows:
                groups = pd.DataFrame(rows).groupby(["schedule", "changed"])
                for (schedule, _), part in sorted(groups, key=lambda pair: (-float(pair[0][0]), pair[0][1])):
                    yield scale, float(schedule), part


def _changed(row: dict[str, Any], preset: Run) -> str:
    if row["schedule"] != 1:
        preset = preset.replaced(train=preset.train.scaled(row["schedule"]))
    one, other = (
        {k: v for k, v in settings.items() if k not in LABELS} for settings in (row["settings"], as_dict(preset))
    )
    return "; ".join(differences(one, other))


def _kind(run: Run) -> tuple[Any, ...]:
    model = run.model
    return (
        model.family,
        run.data.name,
        run.data.cells,
        model.depth,
        model.recurrent,
        model.dilation,
        model.sharing,
        run.seed,
    )


def _row_kind(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("family", "data", "cells", "depth", "recurrent", "dilation", "sharing", "seed"))


def missing(name: str, evidence: Evidence) -> str:
    """What of the paper's own runs nobody has run, with what it would take."""
    entry = EXPERIMENTS[name]
    runs = entry.runs()
    if not runs:
        return ""
    known = set() if evidence.runs.empty else set(evidence.runs["key"])
    left = [run for run in runs if run.key not in known]
    if not left:
        return ""
    hours = sum(estimate(run, RATES["cuda"]).hours for run in left)
    needs = ", ".join(entry.needs_data) + " under --data-root, " if entry.needs_data else ""
    return (
        f"not run: {len(left)} of {len(runs)} runs at the paper's own size; needs {needs}about {hours:.3g} h on one GPU "
        f"(arithmetic at {RATES['cuda'].tflops:g} TFLOP/s, no measurement)"
    )


def section(name: str, evidence: Evidence) -> Section:
    """The section of an experiment that is made of runs."""
    entry = EXPERIMENTS[name]
    found = Section(name, entry.title, paper.CLAIMS[name], missing=missing(name, evidence))
    for scale, schedule, runs in evidence.of(name):
        changed = runs["changed"].iloc[0]
        if changed:
            found.remarks.append(f"The next {len(runs)} runs were made with {changed}.")
        BUILDERS[name](found, runs, evidence, scale, schedule)
        found.sources += sources(runs)
    return found


def table_1(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, schedule: float) -> None:
    rows = []
    for (data, family, depth, recurrent), part in runs.groupby(["data", "family", "depth", "recurrent"]):
        name = pictures.DATA_NAMES[str(data)]
        net = "ResNet-18" if family == "resnet18" else f"{pictures.KINDS[recurrent]} {depth}"
        printed = paper.TABLE_1.get(name, {}).get("ResNet-18" if family == "resnet18" else "recurrent")
        compared = scale == "full" and printed is not None and (recurrent or family == "resnet18")
        theirs = f"{printed[0]:.2f} ± {printed[1]:.2f} ({printed[2]})" if compared and printed else "–"
        difference = f"{part['test_accuracy'].mean() - printed[0]:+.2f}" if compared and printed else "–"
        rows.append(
            [name, net, statistic(part["test_accuracy"]), theirs, difference, f"{part['parameters'].iloc[0]:,}"]
        )
    note = "The paper does not say the recurrent nets' depth; 15 is the deepest that rounds to both printed parameter counts."
    found.grids.append(
        Grid(
            ["data", f"net ({setting(scale, schedule, runs)})", "test %", "paper", "difference", "parameters"],
            rows,
            note,
        )
    )
    if scale == "full":
        found.ours = "; ".join(
            f"{row[0]} {row[1]}: {row[2]}" for row in rows if row[1] in ("recurrent 15", "ResNet-18")
        )


def table_2(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, schedule: float) -> None:
    for dilation, chosen in runs.groupby("dilation"):
        rows = []
        for depth, part in chosen.groupby("depth"):
            row = [str(depth)]
            for recurrent, kind in KINDS.items():
                values = part[part["recurrent"] == recurrent]["test_accuracy"]
                theirs = paper.TABLE_2[kind].get(int(depth))  # type: ignore[call-overload]
                row += [statistic(values), f"{theirs}" if theirs else "–"]
                row.append(f"{values.mean() - theirs:+.2f}" if theirs and len(values) else "–")
            rows.append(row)
        headings = ["depth", "recurrent %", "paper", "difference", "feed-forward %", "paper", "difference"]
        found.grids.append(Grid(headings, rows, f"Dilation variant {dilation}; {setting(scale, schedule, runs)}."))
        if dilation == "A":
            found.ours = found.ours or "; ".join(f"depth {row[0]}: R {row[1]}, FF {row[4]}" for row in rows)


def figure_2(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, schedule: float) -> None:
    by = "cells" if set(runs["data"]) == {"mazes"} else "panel"
    several = runs["family"].nunique() > 1
    runs = runs.assign(panel=[_panel(row, several) for row in runs.itertuples()])
    changed = runs["changed"].iloc[0]
    variant = ("" if schedule == 1 else f".x{schedule:g}") + (f".{zlib.crc32(changed.encode()):08x}" if changed else "")
    picture = f"{found.name}.{scale}{variant}"
    label = "% of mazes solved" if by == "cells" else "test accuracy, %"
    pictures.accuracy_against_depth(evidence.pictures / picture, runs, by, label)
    found.pictures.append(picture)
    verdicts = []
    for panel, chosen in runs.groupby(by):
        panel_name = pictures.DATA_NAMES.get(str(panel), str(panel))
        rows = []
        for depth, part in chosen.groupby("depth"):
            r, f = (part[part["recurrent"] == kind]["test_accuracy"] for kind in (True, False))
            gap = r.mean() - f.mean() if len(r) and len(f) else float("nan")
            error = (r.sem(ddof=1) ** 2 + f.sem(ddof=1) ** 2) ** 0.5 if len(r) > 1 and len(f) > 1 else float("nan")
            alike = "" if pd.isna(gap) else "yes" if abs(gap) <= 1 or abs(gap) <= 2 * error else "no"
            verdicts += [alike == "yes"] if alike else []
            gap_text = "–" if pd.isna(gap) else f"{gap:+.2f}"
            rows.append([str(depth), statistic(r), statistic(f), gap_text, alike])
        note = f"{panel_name}; {setting(scale, schedule, runs)}. Alike: within 1 point or 2 standard errors."
        found.grids.append(Grid(["depth", "recurrent %", "feed-forward %", "difference", "alike"], rows, note))
        found.remarks += _trend(chosen, panel_name)
    if verdicts:
        if scale == "laptop":
            found.remarks.append(
                "With one iteration the recurrent net is the feed-forward one: equal seeds give equal numbers."
            )
        found.remarks.append(
            f"Recurrent and feed-forward are alike at {sum(verdicts)} of {len(verdicts)} depths ({setting(scale, schedule, runs)})."
        )
        prefix = "" if scale == "full" and schedule == 1 else f"{setting(scale, schedule, runs)}: "
        verdict = f"alike at {sum(verdicts)} of {len(verdicts)} depths"
        found.ours = found.ours or f"{prefix}{verdict} (n ≤ {runs['seed'].nunique()})"
    else:
        found.ours = found.ours or f"{len(runs)} runs, no pair yet"
    if by == "cells":
        found.remarks += _sizes(runs)


def _panel(row: Any, several: bool) -> str:
    name = pictures.DATA_NAMES[row.data]
    return f"{row.family}, {name}" if several else name


def _trend(chosen: pd.DataFrame, panel: str) -> list[str]:
    """Rank correlation of mean accuracy with depth; a claim of a rise is called shown from 0.6 on."""
    lines = []
    for recurrent, part in chosen.groupby("recurrent"):
        mean = part.groupby("depth")["test_accuracy"].mean()
        if len(mean) > 2 and mean.nunique() > 1:
            depths = pd.Series(mean.index, index=mean.index)
            rank = mean.rank().corr(depths.rank())
            shown = "rises with depth" if rank >= 0.6 else "a rise with depth does not show here"
            lines.append(
                f"{panel}, {pictures.KINDS[bool(recurrent)]}: rank correlation of accuracy with depth {rank:+.2f}; {shown}."
            )
    return lines


def _sizes(runs: pd.DataFrame) -> list[str]:
    """Figure 5's order of sizes at equal depth."""
    table = runs.pivot_table(index=["depth", "recurrent"], columns="cells", values="test_accuracy").dropna()
    if table.shape[1] < 2 or table.empty:
        return []
    ordered = (table.diff(axis=1).iloc[:, 1:] < 0).all(axis=1)
    return [f"Larger mazes are harder at {int(ordered.sum())} of {len(ordered)} nets that were trained on all sizes."]


def claim_4(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, schedule: float) -> None:
    rows = []
    for sharing, part in runs.groupby("sharing"):
        theirs = paper.CLAIM_4.get("none" if sharing == "none" else "shared")
        count = f"{part['parameters'].iloc[0]:,}"
        difference = f"{part['test_accuracy'].mean() - float(theirs or 0):+.2f}"
        rows.append([str(sharing), count, statistic(part["test_accuracy"]), str(theirs), difference])
    found.grids.append(Grid(["sharing", "parameters", "test %", "paper", "difference"], rows))
    found.ours = "; ".join(f"{row[0]}: {row[2]}" for row in rows)


def claim_9(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, schedule: float) -> None:
    rows = []
    for (depth, recurrent), part in runs.groupby(["depth", "recurrent"]):
        dilated, plain = (part[part["dilation"] == kind]["test_accuracy"] for kind in ("A", "none"))
        if len(dilated) and len(plain):
            gain = f"{dilated.mean() - plain.mean():+.2f}"
            rows.append([str(depth), pictures.KINDS[bool(recurrent)], statistic(dilated), statistic(plain), gain])
    if rows:
        found.grids.append(
            Grid(["depth", "net", "dilated %", "undilated %", "gain"], rows, setting(scale, schedule, runs))
        )
        found.ours = "gain " + ", ".join(f"{row[4]} (depth {row[0]}, {row[1]})" for row in rows)


def claim_10(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, schedule: float) -> None:
    rows = []
    for (home, source), part in runs.groupby(["home", "source"]):
        hours = part["seconds"] / 3600
        rows.append([str(home), str(source), str(len(part)), f"{hours.mean():.3g}", f"{hours.sum():.3g}"])
    note = "The paper's recipe." if scale == "full" else "Laptop scale."
    found.grids.append(Grid(["experiment", "device", "runs", "hours per run", "hours"], rows, note))
    if scale == "full":
        found.ours = f"{runs['seconds'].sum() / 3600:.3g} h for {len(runs)} runs"


BUILDERS = dict.fromkeys(("F2", "F2a", "F2b", "F2b-wide", "F2c", "F2d", "F5", "F5-adam", "T1-depths"), figure_2)
BUILDERS |= {"T1": table_1, "T2": table_2, "C4": claim_4, "C9": claim_9, "C10": claim_10}
