"""Builds the compiled libraries outside the tree and runs commands beside a log; called by gpu and worker."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT


def folder_for_these_sources() -> Path:
    """A folder of the system's temporary directory for libraries built from just these sources: an earlier build is found again."""
    digest = hashlib.sha256((ROOT / "setup.py").read_bytes())
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return Path(tempfile.gettempdir()) / f"rdk-build-{digest.hexdigest()[:12]}"


def build(folder: Path, log: Path, seconds: float) -> str | None:
    """Builds csrc into folder/rdk with setup.py; None, or the sentence what is not there and why. Compilers' words go to log."""
    if not (ROOT / "csrc").is_dir():
        return "there is no folder csrc, so nothing was compiled"
    if (folder / "rdk" / "_build_info.json").is_file():
        return None
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(folder),
        "--build-temp",
        str(folder / "temp"),
    ]
    status = logged(command, log, seconds, RDK_BUILD="auto")
    if status is None:
        return f"building the compiled libraries took longer than {seconds:.0f} s and was stopped; see {log.name}"
    if status != 0:
        return f"building the compiled libraries failed (status {status}); see {log.name}"
    found = json.loads((folder / "rdk" / "_build_info.json").read_text(encoding="utf-8"))
    return "; ".join(f"{name} is left out: {why}" for name, why in found["left_out"].items()) or None


def logged(command: list[str], log: Path, seconds: float, **variables: str) -> int | None:
    """Runs a command in the repository, its words appended to log; its status, or None where it was stopped after `seconds`.

    It is stopped with everything that it started: a compiler that lives on would disturb what is timed next.
    """
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables, start_new_session=True
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_group(process)


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Ends what is left of a process that was started in a session of its own, and of its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
