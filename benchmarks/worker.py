"""The process that measures for gpu: takes tasks as lines, appends their records, says when each is done; and its other end."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

import torch

from benchmarks import records
from benchmarks.environment import ROOT
from benchmarks.libraries import LAST_WAIT, kill_group
from benchmarks.measure import BUSY, FAILED
from benchmarks.suites import Executor, Task

DONE, AT, BROKEN = "## done", "## at ", "## broken "
# seconds without a word after which a contender of ours counts as hanging; where Triton compiles up to 15 kernels first, many more
QUIET, QUIET_WHILE_COMPILING = 40.0, 90.0


class Trouble(NamedTuple):
    """Why a task has no records, which contender the process was busy with, where that is known, and whether it took too long."""

    reason: str
    contender: str | None = None
    late: bool = False


def serve(lines: Iterable[str], executor: Executor, path: Path, out: IO[str]) -> int:
    """The worker's loop: one task per line. Ends, without records, where a contender leaves the device unusable: the first that
    failed, since after it every other fails too."""
    failures: list[str] = []

    def say(text: str) -> None:
        if text.startswith(FAILED):
            failures.append(text.removeprefix(FAILED))
        print(f"{AT}{text}", file=out, flush=True)

    executor.say = say
    for line in lines:
        failures.clear()
        found = executor.carry_out(Task.from_json(json.loads(line)))
        if _device_is_broken(executor.device):
            culprit = next((record for record in found if record.get("contender") in failures[:1]), found[0])
            answer = {"contender": culprit.get("contender"), "note": culprit.get("note", "")}
            print(BROKEN + json.dumps(answer), file=out, flush=True)
            return 1
        records.append(path, found)
        print(DONE, file=out, flush=True)
    return 0


def _device_is_broken(device: torch.device) -> bool:
    """Whether an error (an illegal address, a capture that was never closed) has left the CUDA context unusable for whoever comes
    next."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).item()
        # a capture that failed may be left open: the cache then refuses, and its stream stays the current one
        torch.cuda.empty_cache()
        return torch.cuda.current_stream(device) != torch.cuda.default_stream(device)
    except RuntimeError:
        return True


def quiet(busy: str | None) -> float:
    """The seconds that may pass without a word from a process that is busy with this contender, if any."""
    if busy is None or not busy.startswith("rdk "):
        return math.inf  # torch.compile may take minutes; a task's own patience ends
    return QUIET if busy.startswith("rdk cuda") else QUIET_WHILE_COMPILING


class Worker:
    """A child process that carries tasks out; a task that crashes or hangs it costs that task only."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.command = [sys.executable, "-m", "benchmarks", "worker", *arguments]
        self.log = log
        self.process: subprocess.Popen[str] | None = None
        self.answers: queue.Queue[str | None] = queue.Queue()

    def _start(self) -> subprocess.Popen[str]:
        self.answers = queue.Queue()
        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=_listen, args=(process.stdout, self.answers), daemon=True).start()
        return process

    def ask(self, task: Task, seconds: float) -> Trouble | None:
        """Carries the task out; None when its records are written, or why they are not."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        assert self.process.stdin is not None
        end = time.monotonic() + seconds
        busy: str | None = None
        try:
            self.process.stdin.write(json.dumps(task.as_json()) + "\n")
            self.process.stdin.flush()
            while True:
                left = max(end - time.monotonic(), 0.01)
                answer = self.answers.get(timeout=min(left, quiet(busy)))
                if answer is None:
                    break
                if answer.startswith(DONE):
                    return None
                if answer.startswith(BROKEN):
                    found = json.loads(answer.removeprefix(BROKEN))
                    self.stop()
                    return Trouble(f"it left the device unusable: {found['note']}", found["contender"])
                what = answer.removeprefix(AT).strip()
                busy = next((what.removeprefix(word) for word in BUSY if what.startswith(word)), None)
        except queue.Empty:
            self.stop()
            late = time.monotonic() >= end
            waited = f"took longer than {seconds:.0f} s" if late else f"gave no sign of life for {quiet(busy):.0f} s"
            return Trouble(f"it {waited} and was stopped", busy, late)
        except OSError:
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=LAST_WAIT)
        status = self.process.poll()
        self.stop()
        return Trouble(f"the measuring process ended with status {status}; see {self.log.name}", busy)

    def stop(self) -> None:
        if self.process is not None:
            kill_group(self.process)
            self.process = None


def _listen(stream: IO[str] | None, answers: queue.Queue[str | None]) -> None:
    """Passes on the lines meant for the other end; whatever compilers print is dropped. None: the process has ended."""
    assert stream is not None
    for line in stream:
        if line.startswith((DONE, AT, BROKEN)):
            answers.put(line)
    answers.put(None)
