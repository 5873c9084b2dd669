"""The HTML page of a report: tables, pictures inlined, every comparison; one file that needs no network. Called by report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from benchmarks import records, report, summary
from benchmarks.contenders import EAGER
from benchmarks.records import Record

MISSING = (summary.NOT_MEASURED, *records.STATUSES)
TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write(found: Sequence[Record], pictures: Sequence[Path], target: Path) -> Path:
    """Writes the page and returns its path. `pictures` are PNG paths whose SVG lies beside them."""
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    tables = [_table(*table) for table in report.tables(found)]
    comparisons: dict[str, list[object]] = {}
    for group in records.groups(found):
        comparisons.setdefault(records.setting_of(group[0]).name, []).append(_comparison(group))
    drawn = [path.with_suffix(".svg").read_text(encoding="utf-8") for path in pictures]
    svgs = [text[text.index("<svg") :] for text in drawn]
    text = template.render(tables=tables, comparisons=comparisons, pictures=svgs, count=len(found))
    target.write_text(text, encoding="utf-8")
    return target


def _table(title: str, header: str, lines: Sequence[tuple[str, list[str]]]) -> dict[str, object]:
    columns = [part.strip() for part in header.strip("|").split("|")]
    rows = [{"name": name, "cells": [_cell(text) for text in texts]} for name, texts in lines]
    return {"title": title, "columns": columns, "rows": rows}


def _cell(text: str) -> dict[str, str]:
    """The text without Markdown, and what it says of rdk: of memory where it begins with that."""
    verdict = "win" if "**" in text else "loss" if "(slower)" in text else "missing" if text in MISSING else ""
    if memory := re.match(r"([\d.]+)× (less|more)", text):
        verdict = "" if float(memory[1]) <= 1 + summary.TIE else "win" if memory[2] == "less" else "loss"
    return {"text": text.replace("**", "").replace("`", ""), "verdict": verdict}


def _comparison(group: list[Record]) -> dict[str, object]:
    eager = [record["median_ms"] for record in group if record["contender"] in EAGER and record["status"] == "ok"]
    on_gpu = group[0]["measured_on"]["device_type"] == "cuda"
    rows = []
    for record in group:
        if record["status"] != "ok":
            rows.append({"contender": record["contender"], "note": f"{record['status']}: {record['note']}"})
            continue
        rows.append(
            {
                "contender": record["contender"],
                "speed": f"{min(eager) / record['median_ms']:.2f}×" if eager else "",
                "time": f"{record['median_ms']:.3f} ms" if on_gpu else "",
                "spread": f"{(record['p80_ms'] - record['p20_ms']) / record['median_ms']:.0%}",
                "samples": record["samples"],
                "error": f"{record['error']['output']:.1e}",
                "peak": f"{record['peak_bytes'] / 2**20:.1f} MiB" if record["peak_bytes"] is not None else "",
            }
        )
    first, about = group[0], group[0]["measured_on"]
    cut = f" (cut from {first['uncut_batch']})" if first["uncut_batch"] != first["case"]["batch"] else ""
    where = f"{about['hardware']}, commit {report.commit_of(first)}, {first['date'][:16].replace('T', ' ')}"
    return {"title": f"{first['task']}: {records.case_of(first).description}{cut}; {where}", "rows": rows}
