"""Which records still stand, and the `tidy` command, which drops the others from their files; called by report, cli and gpu."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import records, summary
from benchmarks.records import Record


def standing(found: Sequence[Record]) -> list[Record]:
    """The records that nothing has superseded, in their order.

    A comparison is superseded where newer ones of its task in the same setting hold all its contenders: ratios are formed
    inside a comparison, so it stands as a whole or not at all. Ceilings are superseded by newer ones, and so are growth curves
    by those through another base case.
    """
    seen: dict[tuple[object, ...], set[str]] = {}
    kept: set[str] = set()
    by_group: dict[str, list[Record]] = {}
    for record in found:
        by_group.setdefault(record["group"], []).append(record)
    # of two comparisons in one second the one written later is the newer
    oldest_first = sorted(by_group.items(), key=lambda item: str(item[1][0]["date"]))
    for name, group in oldest_first[::-1]:
        first = group[0]
        setting = records.setting_of(first) if "precision" in first else first["measured_on"]["device"]
        known = seen.setdefault((first["suite"], first["task"], setting), set())
        contenders = {str(record.get("contender")) for record in group}
        off_curve = first["suite"] == "curves" and not any(summary.is_on_curve(first, axis) for axis in summary.AXES)
        if not contenders <= known and not off_curve:
            kept.add(name)
        known |= contenders
    return [record for record in found if record["group"] in kept]


def tidy(folder: Path, say: Callable[[str], None] = print) -> int:
    """Rewrites the files of a folder without superseded records; one that has none is left alone."""
    for path in sorted(folder.glob("*.jsonl")):
        found = records.read(path)
        left = standing(found)
        if len(left) < len(found):
            beside = path.with_suffix(".jsonl.tidied")
            beside.write_text(
                "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in left), encoding="utf-8"
            )
            os.replace(beside, path)
        say(f"{path}: {len(left)} records stand, {len(found) - len(left)} superseded ones are dropped")
    return 0
