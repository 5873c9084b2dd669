"""A run's folder: its lock, checkpoint, metrics and result, each whole or absent; called by cli, runner, engine and records."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch

from experiments.data.atomic import write_atomic
from experiments.settings import LABELS, Run, SettingsError, as_dict, current_names, differences

CHECKPOINT_FORMAT = 1


class FolderError(RuntimeError):
    """A run folder that cannot be written or read, in a sentence that says what to do."""


class RunFolder:
    """runs/<home>/<key>/ with run.json, checkpoint.pt, metrics.jsonl, and when finished final.pt and result.json."""

    def __init__(self, root: Path, run: Run) -> None:
        self.run = run
        self.path = root / run.home / run.key
        self.checkpoint, self.final = self.path / "checkpoint.pt", self.path / "final.pt"
        self.result, self.metrics = self.path / "result.json", self.path / "metrics.jsonl"

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """True while no other process runs this; the lock goes with its process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            opened = (self.path / "lock").open("w")
        except OSError as error:
            raise FolderError(f"{self.path} cannot be made ({error.strerror}); name another folder.") from error
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            for left in self.path.glob(".*.partial"):  # of a writer that was killed
                left.unlink(missing_ok=True)
            yield True

    def under_way(self) -> bool:
        """Whether a process holds the lock."""
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def finished(self) -> dict[str, Any] | None:
        """The result, if the run is finished."""
        return current_names(json.loads(self.result.read_text())) if self.result.exists() else None

    def write_json(self, path: Path, value: Any) -> None:
        self._write(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in history)
        self._write(self.metrics, lambda file: file.write(lines.encode()))

    def write_tensors(self, path: Path, content: dict[str, Any]) -> None:
        """A checkpoint of this run: `content` with the format and the settings."""
        whole = {"format": CHECKPOINT_FORMAT, "settings": _compared(self.run), **content}
        self._write(path, lambda file: torch.save(whole, file))

    def read_tensors(self, path: Path) -> dict[str, Any]:
        """What write_tensors wrote, on the CPU. Raises FolderError for a damaged file, SettingsError for another run's."""
        if path == self.final and not path.exists() and self.result.exists():
            raise FolderError(f"{path} is gone, though the run is finished. Remove {self.result} to train it again.")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise FolderError(
                f"{path} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}). Remove it to start this "
                f"run anew."
            ) from error
        if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
            raise FolderError(
                f"{path} is no checkpoint of format {CHECKPOINT_FORMAT}. Remove it to start this run anew."
            )
        differing = differences(current_names(content["settings"]), _compared(self.run))
        if differing:
            raise SettingsError(f"{path} belongs to a run with other settings: {'; '.join(differing)}.")
        return content

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        try:
            write_atomic(path, write)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            kept = "The last checkpoint stands" if self.checkpoint.exists() else "No checkpoint was written yet"
            raise FolderError(
                f"{path} could not be written ({str(error).splitlines()[0]}). {kept}; free some space and give the same "
                f"command again to go on."
            ) from error


def _compared(run: Run) -> dict[str, Any]:
    return {name: value for name, value in as_dict(run).items() if name not in LABELS}


@functools.cache
def commit() -> str:
    """The commit of this code, with '+changes' where files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!results", ":!README.md")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device: torch.device) -> str:
    """As a report names it: the GPU, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} thread(s)"
    return f"{os.uname().machine} CPU, {torch.get_num_threads()} thread(s)"


def provenance(device: torch.device) -> dict[str, Any]:
    """Where a number comes from: device, versions, commit and date."""
    import rdk

    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = {"torch": torch.__version__, "rdk": rdk.__version__}
    return {"device": device_name(device), **versions, "commit": commit(), "date": date}
