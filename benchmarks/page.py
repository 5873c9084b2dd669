"""The HTML page of a report: tables, pictures inlined, every comparison; one file that needs no network. Called by report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from benchmarks import records, report, summary
from benchmarks.peers import EAGER
from benchmarks.records import Record

MISSING = (summary.NOT_MEASURED, *records.STATUSES)
TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write(found: Sequence[Record], pictures: Sequence[Path], target: Path) -> Path:
    """Writes the page and returns its path. `pictures` are PNG paths whose SVG lies beside them."""
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    sections = []
    for device, precision in summary.devices([record for record in found if record["suite"] == "workloads"]):
        rows = summary.rows(found, device, precision)
        sections.append(
            {
                "title": report.title(found, device, precision),
                "rows": [
                    {"name": report.name_of(row), "cells": [_cell(text) for text in report.cells(row)]} for row in rows
                ],
                "comparisons": [_comparison(group) for group in _newest(found, device, precision)],
            }
        )
    drawn = [path.with_suffix(".svg").read_text(encoding="utf-8") for path in pictures]
    svgs = [text[text.index("<svg") :] for text in drawn]
    columns = [part.strip() for part in report.HEADER.strip("|").split("|")]
    text = template.render(sections=sections, columns=columns, pictures=svgs, count=len(found))
    target.write_text(text, encoding="utf-8")
    return target


def _cell(text: str) -> dict[str, str]:
    """The text without Markdown, and what it says of rdk."""
    verdict = "win" if "**" in text else "loss" if "(slower)" in text else "missing" if text in MISSING else ""
    return {"text": text.replace("**", "").replace("`", ""), "verdict": verdict}


def _newest(found: Sequence[Record], device: str, precision: str) -> list[list[Record]]:
    """The newest comparison of every case, pass and set of contenders."""
    newest: dict[object, list[Record]] = {}
    for group in sorted(records.groups(found), key=lambda group: group[0]["date"]):
        if (group[0]["measured_on"]["device"], group[0]["precision"]) == (device, precision):
            newest[group[0]["task"]] = group
    return list(newest.values())


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
    return {"title": f"{group[0]['task']}: {records.case_of(group[0]).description}", "rows": rows}
