"""Records: one JSON object per line and contender, checked when written and read; by suites, run, worker, gpu, standing, report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import environment
from benchmarks.measure import Outcome
from benchmarks.workloads import Case

FORMAT = 1
FOLDER = environment.ROOT / "benchmarks" / "results"
STATUSES = ("ok", "wrong", "failed", "out of memory", "left out")
PASSES = ("forward", "training", "rollout")
COMPARISONS = ("workloads", "curves", "shapes", "linear")
SUITES = (*COMPARISONS, "ceilings", "tests")

Record = dict[str, Any]

_FIGURES = ("median_ms", "p20_ms", "p80_ms", "least_ms", "samples")
_REQUIRED = {
    "format": int,
    "suite": str,
    "group": str,
    "task": str,
    "date": str,
    "measured_on": dict,
}
_OF_A_CONTENDER = {
    "case": dict,
    "uncut_batch": int,
    "pass": str,
    "precision": str,
    "contender": str,
    "status": str,
    "note": str,
}
_ABOUT = ("device", "device_type", "hardware", "driver", "threads", "torch", "python", "rdk", "commit", "dirty")


class Setting(NamedTuple):
    """What comparisons must share to stand in one table."""

    device: str
    precision: str
    threads: int | None  # of a CPU; the threads of a GPU's host do not count
    processor: str = ""  # of a CPU, whose device is named by its instruction set alone

    @property
    def device_type(self) -> str:
        return "cuda" if self.threads is None else "cpu"

    @property
    def name(self) -> str:
        """NVIDIA H200, bf16; cpu avx512 (AMD EPYC), fp32, 2 threads."""
        processor = environment.short(self.processor)
        threads = f", {self.threads} threads" if self.threads and self.threads > 1 else ""
        return f"{self.device}{f' ({processor})' if processor else ''}, {self.precision}{threads}"


class RecordError(ValueError):
    """A record that is not as it must be; the message names the field, and the line where it was read."""


def path_for(device_name: str, folder: Path = FOLDER) -> Path:
    """benchmarks/results/cpu_avx512.jsonl, benchmarks/results/nvidia_h200.jsonl."""
    return folder / f"{environment.file_stem(device_name)}.jsonl"


def of_outcome(
    outcome: Outcome,
    case: Case,
    pass_name: str,
    precision: str,
    *,
    suite: str,
    group: str,
    task: str,
    uncut_batch: int,
    date: str,
    measured_on: dict[str, Any],
) -> Record:
    """The record of one contender in one comparison. Ratios are formed inside a group only: one process, in turns."""
    record: Record = {
        "format": FORMAT,
        "suite": suite,
        "group": group,
        "task": task,
        "date": date,
        "case": asdict(case) | {"stages": case.stages},
        "uncut_batch": uncut_batch,
        "pass": pass_name,
        "precision": precision,
        "contender": outcome.contender,
        "status": outcome.status,
        "note": outcome.note,
        "error": outcome.errors.as_record() if outcome.errors else None,
        "peak_bytes": outcome.peak_bytes,
    }
    if outcome.timing:
        timing = outcome.timing
        figures = (timing.median, timing.p20, timing.p80, timing.least)
        record |= dict(zip(_FIGURES, (*(_short(value) for value in figures), timing.samples), strict=True))
    return record | {"measured_on": measured_on}


def _short(value: float) -> float:
    """Five digits: more than any clock here can tell."""
    return float(f"{value:.5g}")


def setting_of(record: Record) -> Setting:
    about, precision = record["measured_on"], record["precision"]
    if about["device_type"] != "cpu":
        return Setting(about["device"], precision, None)
    return Setting(about["device"], precision, about["threads"], about["hardware"])


def case_of(record: Record) -> Case:
    return Case(**{key: value for key, value in record["case"].items() if key != "stages"})


def uncut_case_of(record: Record) -> Case:
    """The case before its batch was cut to what the device can take."""
    return case_of(record).with_batch(record["uncut_batch"])


def validate(record: Record) -> None:
    """Raises RecordError where a field is missing or has another type, or where a figure stands without a green check."""
    if record.get("format") != FORMAT:
        raise RecordError(f"format must be {FORMAT}, got {record.get('format')!r}.")
    if record.get("suite") not in SUITES:
        raise RecordError(f"suite must be one of {', '.join(SUITES)}, got {record.get('suite')!r}.")
    measures = record["suite"] in COMPARISONS
    for name, kind in (_REQUIRED | (_OF_A_CONTENDER if measures else {})).items():
        if not isinstance(record.get(name), kind):
            raise RecordError(f"{name} must be {kind.__name__}, got {record.get(name)!r}.")
    for name in _ABOUT:
        if name not in record["measured_on"]:
            raise RecordError(f"measured_on lacks {name!r}.")
    if not measures:
        return
    if record["status"] not in STATUSES:
        raise RecordError(f"status must be one of {', '.join(STATUSES)}, got {record['status']!r}.")
    if record["pass"] not in PASSES:
        raise RecordError(f"pass must be one of {', '.join(PASSES)}, got {record['pass']!r}.")
    case_of(record)
    if record["status"] != "ok":
        figures = [name for name in (*_FIGURES, "peak_bytes") if record.get(name) is not None]
        if figures:
            raise RecordError(f"a contender whose status is {record['status']!r} has no figures, got {figures}.")
        return
    if not record.get("error") or record["error"].get("output") is None:
        raise RecordError("a figure needs the error that was checked before it.")
    if (
        not 0 < record["least_ms"] <= record["p20_ms"] <= record["median_ms"] <= record["p80_ms"]
        or record["samples"] < 1
    ):
        raise RecordError(f"the figures do not fit together: {[record[name] for name in _FIGURES]}.")


def append(path: Path, records: Sequence[Record]) -> None:
    """Writes a group at once, so that an interruption leaves whole groups, and has it on the disk before it returns."""
    for record in records:
        validate(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + text)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Record]:
    """The records of a file; a missing file has none. A line cut short by an interruption is skipped, anything else that is not
    a valid record raises RecordError with file and line."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            # one that was cut short is right up to its end, which may be that of an inner object
            if line.rstrip().endswith("}") and error.pos < len(line.rstrip()):
                raise RecordError(f"{path}, line {number}: not JSON.") from None
            continue
        try:
            validate(record)
        except (RecordError, TypeError, KeyError) as error:
            raise RecordError(f"{path}, line {number}: {error}") from None
        found.append(record)
    return found


def read_all(folder: Path = FOLDER) -> list[Record]:
    return [record for path in sorted(folder.glob("*.jsonl")) for record in read(path)]


def groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The comparisons, each with all its contenders, in the order of their first record."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["suite"] in COMPARISONS:
            found.setdefault(record["group"], []).append(record)
    yield from found.values()
