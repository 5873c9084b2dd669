"""What the report shows of one experiment, and how numbers are written; filled by sections_*.py, printed by __init__.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

PAPERS_RECIPE = "the paper's recipe"
LAPTOP_RECIPES = {  # by whether the data are mazes
    False: "digits, 20 epochs of AdamW",
    True: "mazes at one pixel per unit, width 32, 800 steps of AdamW",
}


@dataclass
class Grid:
    """A table; note stands below it."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass
class Section:
    """One table, figure or claim."""

    name: str
    title: str
    claim: str
    grids: list[Grid] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)  # names of files in results/pictures, without ending
    remarks: list[str] = field(default_factory=list)
    missing: str = ""
    sources: list[str] = field(default_factory=list)
    ours: str = ""
    paper: str = ""

    @property
    def command(self) -> str:
        return f"python -m experiments run {self.name}"


def frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per run: the settings that tables are sorted by, and the metrics."""
    rows = []
    for record in records:
        model, data = record["settings"]["model"], record["settings"]["data"]
        rows.append(
            {
                "home": record["home"],
                "scale": record["scale"],
                "epoch_scale": record["epoch_scale"],
                "key": record["key"],
                "settings": record["settings"],
                "seed": record["settings"]["seed"],
                **{name: model[name] for name in ("family", "depth", "width", "recurrent", "dilation", "sharing")},
                "data": data["name"],
                "cells": data["cells"],
                "posts": data["posts"],
                **record["metrics"],
                "parameters": record["parameters"],
                "steps": record["steps"],
                "seconds": record["seconds"],
                "source": record["device"] + (f", backend {record['backend']}" if "backend" in record else ""),
                "commit": record["commit"],
                "date": record["date"][:10],
            }
        )
    return pd.DataFrame(rows)


def statistic(values: pd.Series, digits: int = 2) -> str:
    """mean ± standard error (n); the error only where there is one."""
    count = int(values.count())
    if not count:
        return "–"
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ± {values.sem(ddof=1):.{digits}f} (n={count})" if count > 1 else f"{mean} (n=1)"


def gap_error(one: pd.Series, other: pd.Series) -> float:
    """Standard error of the difference of two means; 0 where a group has one run."""
    return float((one.sem(ddof=1) ** 2 + other.sem(ddof=1) ** 2) ** 0.5) if min(len(one), len(other)) > 1 else 0.0


def difference(one: pd.Series, other: pd.Series) -> str:
    """one - other ± standard error, as far as there is any."""
    if not len(one) or not len(other):
        return "–"
    error = f" ± {gap_error(one, other):.2f}" if min(len(one), len(other)) > 1 else ""
    return f"{one.mean() - other.mean():+.2f}{error}"


def sources(runs: pd.DataFrame) -> list[str]:
    """Device, backend, commits and days of some runs, one line per device."""
    lines = []
    for source, part in runs.groupby("source"):
        commits, days = sorted(set(part["commit"])), sorted(set(part["date"]))
        between = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines.append(
            f"{len(part)} runs on {source}; commit {', '.join(commits)}; {between}; {part['seconds'].sum() / 3600:.2f} h"
        )
    return lines


def analysis_source(record: dict[str, Any]) -> str:
    return f"{record['device']}; commit {record['commit']}; {record['date']}"


def setting(scale: str, epoch_scale: float, runs: pd.DataFrame) -> str:
    """How a group of runs was made, for headings."""
    changed = runs["changed"].iloc[0]
    return _recipe(scale, epoch_scale, runs) + (f", with {changed}" if changed else "")


def _recipe(scale: str, epoch_scale: float, runs: pd.DataFrame) -> str:
    if scale == "full":
        return PAPERS_RECIPE if epoch_scale == 1 else f"epochs × {epoch_scale:g}"
    kinds = {name == "mazes" for name in runs["data"]}
    return "laptop scale: " + "; ".join(text for mazes, text in LAPTOP_RECIPES.items() if mazes in kinds)
