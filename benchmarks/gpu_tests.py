"""Runs the tests marked gpu so that a fault or a hang in one leaves the others their results; called by gpu."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks import environment, known_tests, libraries, records
from benchmarks.environment import ROOT
from benchmarks.records import Record

# what the tests marked gpu need beside PyTorch
PACKAGES = ("pytest", "hypothesis")
NOT_RUN = "not run"
# seconds without a word after which a test counts as hanging; where Triton compiles up to 18 kernels first, many more
QUIET, QUIET_WHILE_COMPILING = 30.0, 90.0
LATE, UNREACHED = "under way when the time was over", "not reached in time"
UNFINISHED = "unfinished"  # a status: the next run of the command goes on with the tests
LEAST = 10.0  # seconds in which a process has not even collected the tests

# after one of these a CUDA context is of no use: every later test of the process fails as well
BROKEN_CONTEXT = re.compile(
    r"CUDA error|CUDA_ERROR_|illegal memory access|misaligned address|unspecified launch failure"
)
_STARTED = re.compile(r"^(\S+\.py::.+?) *(?:(PASSED|FAILED|SKIPPED|ERROR)\b.*)?$", re.MULTILINE)


def known(earlier: Iterable[Record]) -> tuple[dict[str, str], bool]:
    """What earlier runs found, by test, and whether that is all of it."""
    tests = [record for record in earlier if record["suite"] == "tests" and record["status"] != NOT_RUN]
    return (tests[-1].get("outcomes", {}), tests[-1]["status"] != UNFINISHED) if tests else ({}, False)


def run(log: Path, seconds: float, about: dict[str, object], before: Mapping[str, str] | None = None) -> Record:
    """What came of the tests, as a record; their words go to log. What an unfinished run found `before` is taken from there. Only
    the files that hold such tests are collected: others import packages that a bare machine lacks."""
    began = time.monotonic()
    if not before:
        log.unlink(missing_ok=True)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    status: int | str = NOT_RUN
    failures: list[str] = []
    settled: dict[str, str] = {}
    result = f"{NOT_RUN}: {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed"
    if not missing:
        found = outcomes(files(), log, seconds, before or {})
        counts = Counter(found.values())
        broken = {name: what for name, what in found.items() if what not in ("passed", "skipped")}
        status = 1 if broken else 0 if counts["passed"] else 5
        if set(broken.values()) & {LATE, UNREACHED}:
            status = UNFINISHED
        settled = {name: what for name, what in found.items() if what not in (LATE, UNREACHED)}
        result = ", ".join(f"{counts[what]} {what}" for what in sorted(counts)) or "no test was run"
        text = log.read_text(encoding="utf-8", errors="replace")
        words = dict(re.findall(r"^(?:FAILED|ERROR) (\S+::.+?) - (.+)$", text, re.MULTILINE))
        failures = [f"{name}: {what}" + (f" ({words[name]})" if name in words else "") for name, what in broken.items()]
    date = environment.now()
    return {
        "format": records.FORMAT,
        "suite": "tests",
        "group": f"{date}-tests",
        "task": "tests",
        "date": date,
        "status": status,
        "result": f"{result} in {time.monotonic() - began:.0f} s" if not missing else result,
        "failures": failures[:20],
        "outcomes": settled,
        "seconds": round(time.monotonic() - began, 1),
        "measured_on": about,
    }


def files() -> list[str]:
    """The files of tests that hold a test marked gpu, found by reading them; known_tests puts the tests in order."""
    mark = re.compile(r"pytest\.mark\.gpu\b")
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return [path.relative_to(ROOT).as_posix() for path in found if mark.search(path.read_text(encoding="utf-8"))]


def outcomes(where: list[str], log: Path, seconds: float, before: Mapping[str, str]) -> dict[str, str]:
    """What came of each test: passed, failed, error, skipped, or how it ended its process; those `before` are not run again. A new
    process goes on behind a test that hangs, ends the process or leaves its CUDA context broken."""
    found = dict(before)
    end = time.monotonic() + seconds
    while (remaining := end - time.monotonic()) > LEAST or len(found) == len(before):
        begin = log.stat().st_size if log.exists() else 0
        status = _run(where, log, max(remaining, LEAST), found)
        text = log.read_bytes()[begin:].decode("utf-8", "replace")
        seen, running = read(text)
        kept, goes_on = seen, running is not None
        bad = next((place for place, name in enumerate(seen) if seen[name] in ("failed", "error")), len(seen))
        # a process that died did not say why the first test failed
        if bad < len(seen) and (running is not None or BROKEN_CONTEXT.search(text)):
            kept, goes_on = dict(list(seen.items())[: bad + 1]), running is not None or bad + 1 < len(seen)
            running = None
        goes_on = goes_on and not found.keys() & {*kept, running}  # or the same tests would run for ever
        found |= kept
        if running is not None:
            late = end - time.monotonic() <= 0
            found[running] = LATE if late else _ending(running, status)
        elif status not in (0, 1, 5) and not kept:
            found[" ".join(where)] = f"ended with pytest's status {status}"
        if not goes_on:
            return found
    found["tests behind these"] = UNREACHED
    return found


def _run(where: list[str], log: Path, seconds: float, known: Iterable[str]) -> int | None:
    """pytest's status on the tests that are not `known`; None where it was ended."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as names:
        names.write("\n".join(known))
        names.flush()
        command = [sys.executable, "-m", "pytest", *where, "-m", "gpu", "-v", "--tb=short"]
        # one word: pytest would take a path that stands alone for one of the places by which it finds its root
        command += ["-p", "benchmarks.known_tests", f"--known={names.name}"]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # for the plugin
        return libraries.logged(command, log, seconds, quiet=quiet, COLUMNS="240", PYTHONPATH=path)


def quiet(words: str) -> float:
    """The seconds without a word that the test which began with the last of these words may take."""
    return QUIET if known_tests.is_compiled_before(words.rstrip().rpartition("\n")[2]) else QUIET_WHILE_COMPILING


def read(text: str) -> tuple[dict[str, str], str | None]:
    """The tests of pytest's verbose words with what came of each, and the one that was begun and did not end."""
    seen: dict[str, str] = {}
    running = None
    for name, word in _STARTED.findall(text):
        if word:
            seen[name] = word.lower()
        running = None if word else name
    return seen, running


def _ending(test: str, status: int | None) -> str:
    return f"hung for {quiet(test):.0f} s" if status is None else f"ended its process with status {status}"
