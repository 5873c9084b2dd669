"""Builds the compiled libraries outside the tree and runs commands beside a log; called by gpu, gpu_tests and worker."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import ROOT

LAST_WAIT = 10.0  # seconds for a process that was killed


def folder_for_these_sources() -> Path:
    """A folder of this user's in the system's temporary directory for libraries built from just these sources with these versions:
    an earlier build is found again. Raises OSError where somebody else owns it, whose libraries would be loaded."""
    versions = (platform.python_version(), platform.machine(), torch.__version__, torch.version.cuda, _nvcc_version())
    digest = hashlib.sha256((ROOT / "setup.py").read_bytes() + repr(versions).encode())
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"rdk-build-{os.getuid()}-{digest.hexdigest()[:12]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own.")
    return folder


def _nvcc_version() -> str:
    """What nvcc says of itself; empty where there is none."""
    nvcc = shutil.which("nvcc")
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout if nvcc else ""


def build(folder: Path, log: Path, seconds: float) -> str | None:
    """Builds csrc/cuda into folder/rdk by setup.py; None, or a sentence: what is not there, and why. Compilers' words go to log."""
    if not (ROOT / "csrc").is_dir():
        return "there is no folder csrc, so nothing was compiled"
    info = folder / "rdk" / "_build_info.json"
    if info.is_file() and not _left_out(info):  # one that failed is tried again
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
    # ninja lies beside a python that was called by its path, without its environment
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    status = logged(command, log, seconds, RDK_BUILD="cuda", PATH=path)
    if status is None:
        return f"building the compiled libraries took longer than {seconds:.0f} s and was stopped; see {log.name}"
    if status != 0:
        return f"building the compiled libraries failed (status {status}); see {log.name}"
    return _left_out(info)


def _left_out(info: Path) -> str | None:
    found = json.loads(info.read_text(encoding="utf-8"))
    left_out = {name: why for name, why in found["left_out"].items() if name != "_cpu"}  # which nobody asked for
    return "; ".join(f"{name} is left out: {why}" for name, why in left_out.items()) or None


def logged(
    command: list[str],
    log: Path,
    seconds: float,
    grace: float = 0.0,
    quiet: Callable[[str], float] | None = None,
    **variables: str,
) -> int | None:
    """Runs a command in the repository, its words appended to log; its status, or None where it was stopped after `seconds`, or
    after as many without a word as `quiet` says of the log's last words.

    It is stopped with everything that it started: a compiler that lives on would disturb what is timed next. With `grace` it is
    interrupted first, and may write what it has for so many seconds.
    """
    variables = {"PYTHONUNBUFFERED": "1"} | variables
    with log.open("a", encoding="utf-8") as file:
        with interrupts_heeded():
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables,
                start_new_session=True,
            )  # fmt: skip
        try:
            return _status(process, log, seconds, quiet)
        finally:
            if grace and process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=grace)
            kill_group(process)


def _status(
    process: subprocess.Popen[Any], log: Path, seconds: float, quiet: Callable[[str], float] | None
) -> int | None:
    end, words, silent_since, patience = time.monotonic() + seconds, -1, time.monotonic(), seconds
    while (now := time.monotonic()) < end:
        if (size := log.stat().st_size) != words:
            words, silent_since = size, now
            patience = quiet(_last_words(log, size)) if quiet is not None else seconds
        if now - silent_since >= patience:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=min(end - now, seconds if quiet is None else 1.0))
    return None


def _last_words(log: Path, size: int) -> str:
    with log.open("rb") as file:
        file.seek(max(size - 2000, 0))
        return file.read().decode("utf-8", "replace")


@contextlib.contextmanager
def interrupts_heeded() -> Iterator[None]:
    """A process started inside heeds an interrupt, also where a shell started this one in the background, which ignores them and
    hands that on."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Ends what is left of a process that was started in a session of its own, and of its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # one that a driver holds in the kernel dies only when that lets it go
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=LAST_WAIT)
