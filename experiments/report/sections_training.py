"""Sections of training results: Tables 1 and 2, Figures 2 and 5, claims C4, C9, C10; called by report.write, sections_analysis."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.configs import EXPERIMENTS
from experiments.estimate import RATES, estimate
from experiments.report import paper, pictures
from experiments.report.section import (
    PAPERS_RECIPE,
    Grid,
    Section,
    difference,
    gap_error,
    setting,
    sources,
    statistic,
)
from experiments.settings import DEPTHS, LABELS, Run, SettingsError, as_dict, differences, from_dict


class Evidence(NamedTuple):
    """All that was recorded."""

    runs: pd.DataFrame
    analyses: dict[tuple[str, str], dict[str, Any]]
    pictures: Path

    def of(self, name: str) -> Iterator[tuple[str, float, pd.DataFrame]]:
        """The recorded runs of an experiment, apart by scale, factor on the epochs and what was overridden; the paper's own first.

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
                groups = pd.DataFrame(rows).groupby(["epoch_scale", "changed"])
                for (epoch_scale, _), part in sorted(groups, key=lambda pair: (-float(pair[0][0]), pair[0][1])):
                    yield scale, float(epoch_scale), part

    def strays(self) -> list[str]:
        """The recorded runs that no preset holds, because an override made other nets or data of them."""
        if self.runs.empty:
            return []
        shown = {key for name in EXPERIMENTS for *_, part in self.of(name) for key in part["key"]}
        left = self.runs[~self.runs["key"].isin(shown)]
        return [
            f"{from_dict(Run, row.settings).title} ({row.home}, {row.scale}, {row.key})" for row in left.itertuples()
        ]


def _changed(row: dict[str, Any], preset: Run) -> str:
    if row["epoch_scale"] != 1:
        preset = preset.replaced(train=preset.train.scaled(row["epoch_scale"]))
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
    """What of the preset nobody has run or analysed, with what it would take."""
    entry = EXPERIMENTS[name]
    known = set() if evidence.runs.empty else set(evidence.runs["key"])
    full, laptop = entry.runs(), entry.runs_at("laptop")
    left = [run for run in full if run.key not in known]
    found = []
    if left:
        needs = ", ".join(entry.needs_data) + " under --data-root, " if entry.needs_data else ""
        found.append(
            f"not run: {len(left)} of {len(full)} runs at the paper's own size; needs {needs}{_hours(left)} on one GPU "
            f"(arithmetic at {RATES['cuda'].tflops:g} TFLOP/s, no measurement)"
        )
    elif full and entry.analysis and (name, "full") not in evidence.analyses:
        found.append(
            f"not analysed: the {len(full)} runs at the paper's own size are recorded, what is computed from them is not"
        )
    small = [run for run in laptop if run.key in known]
    if small and len(small) < len(laptop):
        found.append(f"at laptop scale {len(small)} of {len(laptop)} runs are recorded")
    return "; ".join(found)


def _hours(runs: list[Run]) -> str:
    try:
        return f"about {sum(estimate(run, RATES['cuda']).hours for run in runs):.3g} h"
    except SettingsError:  # its networks are torchvision's, which can't be imported here
        return "hours that can't be estimated without torchvision"


def section(name: str, evidence: Evidence) -> Section:
    """The section of an experiment that is made of runs."""
    entry = EXPERIMENTS[name]
    found = Section(name, entry.title, paper.CLAIMS[name], missing=missing(name, evidence))
    for scale, epoch_scale, runs in evidence.of(name):
        BUILDERS[name](found, runs, evidence, scale, epoch_scale)
        found.sources += sources(runs)
    return found


def table_1(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, epoch_scale: float) -> None:
    rows = []
    for (data, family, depth, recurrent), part in runs.groupby(["data", "family", "depth", "recurrent"]):
        name = pictures.DATA_NAMES[str(data)]
        net = "ResNet-18" if family == "resnet18" else f"{pictures.KINDS[recurrent]} {depth}"
        printed = paper.TABLE_1.get(name, {}).get("ResNet-18" if family == "resnet18" else "recurrent")
        compared = scale == "full" and printed is not None and (recurrent or family == "resnet18")
        theirs = f"{printed[0]:.2f} ± {printed[1]:.2f} ({printed[2]})" if compared and printed else "–"
        gap = f"{part['test_accuracy'].mean() - printed[0]:+.2f}" if compared and printed else "–"
        rows.append([name, net, statistic(part["test_accuracy"]), theirs, gap, f"{part['parameters'].iloc[0]:,}"])
    note = (
        f"Runs: {setting(scale, epoch_scale, runs)}. The paper does not say the recurrent nets' depth; 15 is the deepest that "
        f"rounds to both printed parameter counts."
    )
    found.grids.append(Grid(["data", "net", "test %", "paper", "difference", "parameters"], rows, note))
    main = [f"{row[0]} {row[1]}: {row[2]}" for row in rows if row[1] in ("recurrent 15", "ResNet-18")]
    if scale == "full" and main:
        _headline(found, "; ".join(main), scale, epoch_scale, runs)


def table_2(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, epoch_scale: float) -> None:
    for dilation, chosen in runs.groupby("dilation"):
        rows = []
        for depth, part in chosen.groupby("depth"):
            row = [str(depth)]
            for kind, values in zip(pictures.KINDS.values(), _twins(part, "test_accuracy"), strict=True):
                theirs = paper.TABLE_2[kind].get(int(depth))
                row += [statistic(values), f"{theirs}" if theirs else "–"]
                row.append(f"{values.mean() - theirs:+.2f}" if theirs and len(values) else "–")
            rows.append(row + _without_mask(part))
        headings = [
            "depth",
            "recurrent %",
            "paper",
            "difference",
            "feed-forward %",
            "paper",
            "difference",
            *WITHOUT_MASK,
        ]
        found.grids.append(
            Grid(headings[: len(rows[0])], rows, f"Dilation variant {dilation}; {setting(scale, epoch_scale, runs)}.")
        )
        if dilation == "A":
            text = "; ".join(f"depth {row[0]}: R {row[1]}, FF {row[4]}" for row in rows)
            _headline(found, text, scale, epoch_scale, runs)


def figure_2(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, epoch_scale: float) -> None:
    by = "cells" if set(runs["data"]) == {"mazes"} else "panel"
    several = runs["family"].nunique() > 1
    runs = runs.assign(panel=[_panel(row, several) for row in runs.itertuples()])
    changed = runs["changed"].iloc[0]
    variant = "" if epoch_scale == 1 else f".x{epoch_scale:g}"
    variant += f".{zlib.crc32(changed.encode()):08x}" if changed else ""
    picture = f"{found.name}.{scale}{variant}"
    label = "% of mazes solved" if by == "cells" else "test accuracy, %"
    pictures.accuracy_against_depth(evidence.pictures / picture, runs, by, label)
    found.pictures.append(picture)
    verdicts: list[str] = []
    for panel, chosen in runs.groupby(by):
        panel_name = pictures.DATA_NAMES.get(str(panel), str(panel))
        rows = []
        for depth, part in chosen.groupby("depth"):
            r, f = _twins(part, "test_accuracy")
            verdict = _verdict(r, f, _iterations(part))
            verdicts += [verdict] if verdict else []
            gap = f"{r.mean() - f.mean():+.2f}" if verdict == SAME_NET else difference(r, f)
            rows.append([str(depth), statistic(r), statistic(f), gap, verdict, *_without_mask(part)])
        note = f"{panel_name}; {setting(scale, epoch_scale, runs)}. Alike: within 1 point, or else within 2 standard errors."
        headings = ["depth", "recurrent %", "feed-forward %", "difference", "alike", *WITHOUT_MASK]
        found.grids.append(Grid(headings[: len(rows[0])], rows, note))
        found.remarks += _trend(chosen, panel_name)
    if SAME_NET in verdicts:
        found.remarks.append(
            "With one iteration the recurrent net is the feed-forward one: those pairs are not counted."
        )
    verdict = _counted(verdicts, int(runs["seed"].nunique()))
    recipe = setting(scale, epoch_scale, runs)
    found.remarks.append(f"Recurrent and feed-forward: {verdict or 'no pair yet'} ({recipe}).")
    _headline(found, verdict or f"{len(runs)} runs, no pair yet", scale, epoch_scale, runs)
    if by == "cells":
        found.remarks += _sizes(runs)


YES, BY_ERROR, NO, SAME_NET = "yes", "by the error", "no", "same net"
WITHOUT_MASK = ["recurrent %, walls not forced to 0", "feed-forward %, walls not forced to 0"]


def _twins(part: pd.DataFrame, column: str) -> tuple[pd.Series, pd.Series]:
    """That column of the recurrent runs and of the feed-forward ones."""
    return part[part["recurrent"]][column], part[~part["recurrent"].astype(bool)][column]


def _without_mask(part: pd.DataFrame) -> list[str]:
    """The cells of WITHOUT_MASK, where the runs are recorded with that."""
    column = "test_accuracy_unmasked"
    if column not in part or part[column].isna().all():
        return []
    return [statistic(values) for values in _twins(part, column)]


def _iterations(part: pd.DataFrame) -> int:
    outside, per_iteration = DEPTHS[part["family"].iloc[0]]
    return (int(part["depth"].iloc[0]) - outside) // per_iteration


def _verdict(r: pd.Series, f: pd.Series, iterations: int) -> str:
    """Whether two groups of runs are alike; nothing where one is empty."""
    if not len(r) or not len(f):
        return ""
    if iterations == 1:
        return SAME_NET
    gap = abs(r.mean() - f.mean())
    return YES if gap <= 1 else BY_ERROR if gap <= 2 * gap_error(r, f) else NO


def _counted(verdicts: list[str], seeds: int) -> str:
    """How many of the pairs are alike, and how many of those only because few runs make the error wide."""
    counted = [verdict for verdict in verdicts if verdict != SAME_NET]
    if not counted:
        return ""
    if seeds == 1:
        return f"one run of each net at {len(counted)} of the depths, too few for a verdict"
    by_error = counted.count(BY_ERROR)
    alike = f"alike at {counted.count(YES) + by_error} of {len(counted)} depths"
    return alike + (f", at {by_error} of them by the standard error alone" if by_error else "") + f" (n ≤ {seeds})"


def _headline(found: Section, text: str, scale: str, epoch_scale: float, runs: pd.DataFrame) -> None:
    """What the summary shows: of the first group of runs, with its recipe unless that is the paper's."""
    recipe = setting(scale, epoch_scale, runs)
    found.ours = found.ours or (text if recipe == PAPERS_RECIPE else f"{recipe}: {text}")


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


def claim_4(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, epoch_scale: float) -> None:
    rows = []
    for sharing, part in runs.groupby("sharing"):
        theirs = paper.CLAIM_4.get("none" if sharing == "none" else "shared")
        count = f"{part['parameters'].iloc[0]:,}"
        gap = f"{part['test_accuracy'].mean() - float(theirs or 0):+.2f}"
        rows.append([str(sharing), count, statistic(part["test_accuracy"]), str(theirs), gap])
    note = f"Runs: {setting(scale, epoch_scale, runs)}."
    found.grids.append(Grid(["sharing", "parameters", "test %", "paper", "difference"], rows, note))
    _headline(found, "; ".join(f"{row[0]}: {row[2]}" for row in rows), scale, epoch_scale, runs)


def claim_9(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, epoch_scale: float) -> None:
    rows = []
    for (depth, recurrent), part in runs.groupby(["depth", "recurrent"]):
        dilated, plain = (part[part["dilation"] == kind]["test_accuracy"] for kind in ("A", "none"))
        if len(dilated) and len(plain):
            gain = difference(dilated, plain)
            rows.append([str(depth), pictures.KINDS[bool(recurrent)], statistic(dilated), statistic(plain), gain])
    if rows:
        note = f"Runs: {setting(scale, epoch_scale, runs)}."
        found.grids.append(Grid(["depth", "net", "dilated %", "undilated %", "gain"], rows, note))
        text = "gain " + ", ".join(f"{row[4]} (depth {row[0]}, {row[1]})" for row in rows)
        _headline(found, text, scale, epoch_scale, runs)


def claim_10(found: Section, runs: pd.DataFrame, evidence: Evidence, scale: str, epoch_scale: float) -> None:
    rows = []
    for (home, source), part in runs.groupby(["home", "source"]):
        hours = part["seconds"] / 3600
        rows.append([str(home), str(source), str(len(part)), f"{hours.mean():.3g}", f"{hours.sum():.3g}"])
    note = f"Runs: {setting(scale, epoch_scale, runs)}."
    found.grids.append(Grid(["experiment", "device", "runs", "hours per run", "hours"], rows, note))
    if scale == "full":
        _headline(found, f"{runs['seconds'].sum() / 3600:.3g} h for {len(runs)} runs", scale, epoch_scale, runs)


BUILDERS = dict.fromkeys(("F2", "F2a", "F2b", "F2b-wide", "F2c", "F2d", "F5", "F5-adam", "T1-depths"), figure_2)
BUILDERS |= {"T1": table_1, "T2": table_2, "C4": claim_4, "C9": claim_9, "C10": claim_10}
