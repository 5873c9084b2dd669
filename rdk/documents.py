"""Puts tables that programs make between their markers in a document; called by triton/report, benchmarks and experiments."""

from __future__ import annotations

import re
from pathlib import Path


def rewritten(text: str, tables: dict[str, str]) -> str:
    """`text` with every table between its markers replaced. Raises ValueError where a marker is missing."""
    for name, table in tables.items():
        found = re.search(rf"<!-- begin {name} -->.*?<!-- end {name} -->", text, re.DOTALL)
        if found is None:
            markers = f"'<!-- begin {name} -->' and '<!-- end {name} -->'"
            raise ValueError(f"rdk: the file has no markers {markers}. Put them where the table goes.")
        text = f"{text[: found.start()]}<!-- begin {name} -->\n{table}\n<!-- end {name} -->{text[found.end() :]}"
    return text


def publish(tables: dict[str, str], target: Path | None) -> None:
    """Writes the tables between their markers in the file; prints them without one."""
    if target:
        target.write_text(rewritten(target.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        print("\n\n".join(tables.values()))
