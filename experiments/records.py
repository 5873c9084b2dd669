"""The committed records: a line per finished run, a file per analysis; called by cli, runner and the report."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import torch

from experiments.data.atomic import write_atomic
from experiments.folders import provenance
from experiments.settings import SettingsError, current_names

RESULTS = Path(__file__).parent / "results"


def add_run(result: dict[str, Any], results: Path = RESULTS) -> None:
    """Puts a run's result into results/runs/<home>.<scale>.jsonl, in place of an older one of the same settings."""
    path = results / "runs" / f"{result['home']}.{result['scale']}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.parent, os.O_RDONLY)  # a folder can be locked as a file can
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = {line["key"]: line for line in _lines(path)}
        if known.get(result["key"]) == result:
            return
        known[result["key"]] = result
        ordered = sorted(known.values(), key=_order)
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in ordered)
        write_atomic(path, lambda file: file.write(text.encode()))
    finally:
        os.close(lock)


def check_folder(results: Path) -> None:
    """Raises SettingsError where records could not be written, before anything is computed for them."""
    if results.exists() and not results.is_dir():
        raise SettingsError(f"--results names {results}, which is a file; name a folder.")


def runs(results: Path = RESULTS) -> list[dict[str, Any]]:
    """Every recorded run."""
    return [line for path in sorted((results / "runs").glob("*.jsonl")) for line in _lines(path)]


def add_analysis(
    name: str,
    scale: str,
    values: dict[str, Any],
    inputs: list[str],
    changed: list[str],
    device: torch.device,
    results: Path = RESULTS,
) -> Path:
    """Writes results/<name>.<scale>.json: values, the keys of the runs they come from, how those differ from the preset's
    (nothing where they are the preset's), and their provenance."""
    path = results / f"{name}.{scale}.json"
    differing = {"changed": changed} if changed else {}
    content = {"name": name, "scale": scale, "runs": inputs, **differing, "values": values, **provenance(device)}
    write_atomic(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))
    return path


def analyses(results: Path = RESULTS) -> dict[tuple[str, str], dict[str, Any]]:
    """Every recorded analysis, by name and scale."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.*.json"))]
    return {(entry["name"], entry["scale"]): entry for entry in found}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [current_names(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _order(result: dict[str, Any]) -> tuple[Any, ...]:
    settings = result["settings"]
    model, data = settings["model"], settings["data"]
    return (
        model["family"],
        data["name"],
        data["cells"],
        model["depth"],
        not model["recurrent"],
        settings["seed"],
        result["key"],
    )
