"""What a figure depends on beside the problem: device, driver, versions, commit; called by suites, dispatch, gpu, conftest, cli."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import rdk
from rdk import env, measured

ROOT = Path(__file__).parent.parent
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh")
# variables that hold PyTorch and oneDNN to less than the processor can do
HOLDING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
OURS = ("RDK_CPU_ISA", "RDK_CPU_KEPT_MIB")  # and rdk


@lru_cache(maxsize=None)
def commit(given: str | None = None) -> tuple[str, bool | None]:
    """The commit and whether tracked files differ from it, but for those that benchmarks write; a copy without git takes the commit
    `given`, if any."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=20)
        status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results", ":!README.md"]
        changed = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return given or "unknown", None
    if head.returncode:
        return given or "unknown", None
    return head.stdout.strip()[:12], bool(changed.stdout.strip())


@lru_cache(maxsize=None)
def tree() -> str:
    """A fingerprint of the sources that a figure depends on, with git or without."""
    digest = hashlib.sha256()
    for folder in ("rdk", "csrc", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SOURCES and path.is_file():
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=None)
def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        shown = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip().splitlines()[0] if shown.returncode == 0 and shown.stdout.strip() else None


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def describe(device: torch.device, given_commit: str | None = None) -> dict[str, Any]:
    """Everything as plain JSON values. `device` is the name under which rdk keeps measurements (rdk/measured)."""
    head, dirty = commit(given_commit)
    on_gpu = device.type == "cuda"
    return {
        "device": measured.device_name(device),
        "device_type": device.type,
        "hardware": measured.hardware_name(device),
        "driver": _driver() if on_gpu else None,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "rdk": rdk.__version__,
        "commit": head,
        "dirty": dirty,
        "tree": tree(),
        "held_to": _held_to(),
    }


def _held_to() -> dict[str, str]:
    """The variables that hold rdk, PyTorch or oneDNN to less than the processor can do, and their words."""
    ours = {name: env.read(name) for name in OURS if env.read(name) != env.VARIABLES[name].default}
    return ours | {name: os.environ[name] for name in HOLDING if name in os.environ}


def short(hardware: str) -> str:
    """A processor's name as tables and files have it."""
    return re.sub(r"\((R|TM)\)", "", hardware)


def file_stem(*parts: str) -> str:
    """The name of a file about all that: avx512, AMD EPYC becomes avx512_amd_epyc."""
    return re.sub(r"[^a-z0-9]+", "_", " ".join(parts).lower()).strip("_")


def make_way_for(path: Path) -> None:
    """Makes the folder of a file that is to be written after long measurements. Raises ValueError where it cannot be written."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; the name of a file is needed.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written.")


def pin(threads: int) -> None:
    """Keeps this process on the first `threads` processors that it may use, with as many threads. Raises ValueError."""
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise ValueError(
            f"--threads must be between 1 and {len(allowed)} (the processors this process may use), got {threads}."
        )
    os.sched_setaffinity(0, allowed[:threads])
    torch.set_num_threads(threads)
