"""`python -m benchmarks gpu`: one command for a bare GPU machine: build, tests, then measurements in order of value."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from benchmarks import agenda, contenders, environment, gpu_tests, libraries, records, report, standing
from benchmarks.agenda import Agenda
from benchmarks.contenders import EAGER
from benchmarks.measure import Outcome, first_line
from benchmarks.records import Record
from benchmarks.run import lines
from benchmarks.suites import Task
from benchmarks.worker import Trouble, Worker

# shares of the time that building, testing and the dispatch tables may take; and what the summary needs at the end, in seconds
BUILD, TESTS, TABLES = 0.3, 0.25, 0.15
TABLES_FROM = 15.0  # minutes: in fewer a table would hold too few problems to decide by
CLOSING = 12.0
GRACE = 5.0  # in which a dispatch run that is stopped writes its table
# seconds that a task may take at least: the first ones choose cuDNN's algorithms and compile Triton's kernels for ten contenders
PATIENCE = 150.0
# how often a backend of ours, or another contender, may end or break the measuring process before it is left alone
CRASHES = 2


class Measurer(Protocol):
    """What carries a task out: a Worker, or a test's stand-in."""

    def ask(self, task: Task, seconds: float) -> Trouble | None: ...


def carry_out(
    plan: Agenda,
    measurer: Measurer,
    path: Path,
    failed: Callable[[Task, str], list[Record]],
    say: Callable[[str], None],
) -> None:
    """Tasks until none fits any more. A contender that ends or breaks the measuring process is recorded as failed and the task
    tried again without it; after CRASHES of these its backend is not tried any more. A task that the deadline or Ctrl-C cuts
    off leaves no record and is open again. Estimates follow attempts without such trouble only."""
    crashes: Counter[str] = Counter()
    while (task := plan.next()) is not None:
        say(f"{plan.remaining():4.0f} s left: {task.name}")
        before = len(records.read(path))
        try:
            left = _attempt(task, plan, measurer, failed, crashes)
        except KeyboardInterrupt:
            plan.put_back(task)
            raise
        if left is None:
            plan.put_back(task)
            say("    the time was over; the next run measures it.")
            return
        records.append(path, left)
        for line in lines(records.read(path)[before:]):
            say(f"    {line}")


def _attempt(
    task: Task,
    plan: Agenda,
    measurer: Measurer,
    failed: Callable[[Task, str], list[Record]],
    crashes: Counter[str],
) -> list[Record] | None:
    """Has the task measured; the records of the contenders that were left behind, or None where the deadline cut it off."""
    left: list[Record] = []
    while True:
        for name in task.contenders:
            if crashes[_backend(name)] >= CRASHES:
                task = _without(task, name)
                note = f"not tried: {_backend(name)} ended or broke the measuring process {CRASHES} times before"
                left += failed(replace(task, contenders=(name,)), note)
        patience, remaining = max(PATIENCE, 4 * plan.estimate(task)), plan.remaining()
        if remaining <= 1:
            return None
        began = plan.clock()
        trouble = measurer.ask(task, min(patience, remaining))
        if trouble is None:
            plan.learn(task, plan.clock() - began)
            return left
        if trouble.late and remaining < patience:
            return None
        culprit = trouble.contender
        if culprit is None or culprit in EAGER or culprit not in task.contenders:
            return left + failed(task, trouble.reason)
        if not trouble.late:  # else it was only the one under way
            crashes[_backend(culprit)] += 1
        left += failed(replace(task, contenders=(culprit,)), trouble.reason)
        task = _without(task, culprit)


def _backend(contender: str) -> str:
    """What the forms of one contender of ours ("rdk cuda", "rdk cuda graph", "rdk cuda sqrt") have in common."""
    words = contender.split()
    return " ".join(words[:2]) if words[0] == "rdk" else contender


def _without(task: Task, contender: str) -> Task:
    return replace(task, contenders=tuple(name for name in task.contenders if name != contender))


def run(out: Path, minutes: float, fresh: bool, given_commit: str | None, say: Callable[[str], None] = print) -> int:
    """The whole. Returns 1 where a test failed or a result of ours was wrong, 130 after Ctrl-C. Raises ValueError without a GPU."""
    began = time.monotonic()
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise ValueError(
            f"no NVIDIA GPU can be used here (this PyTorch was {built}); `python -m benchmarks run` measures on the CPU."
        )
    if minutes <= 0:
        raise ValueError(f"--minutes must be positive, got {minutes:g}.")
    deadline = began + 60 * minutes - CLOSING
    device = torch.device("cuda", torch.cuda.current_device())
    out.mkdir(parents=True, exist_ok=True)
    path = out / "records.jsonl"
    about = environment.describe(device, given_commit)
    say(
        f"{about['hardware']}, driver {about['driver']}, torch {about['torch']}, commit {about['commit']}, tree {about['tree']}"
    )
    earlier = [] if fresh else [r for r in records.read(path) if _same(r, about)]
    folder = libraries.folder_for_these_sources()
    reason = libraries.build(folder, out / "build.log", BUILD * 60 * minutes)
    say(f"build: {reason}" if reason else f"the compiled libraries are in {folder}")
    # for this process, which has loaded none yet, and its children
    os.environ["RDK_LIBRARY_FOLDER"] = str(folder / "rdk")
    before, complete = gpu_tests.known(earlier)
    if not complete:
        found = gpu_tests.run(out / "tests.log", TESTS * 60 * minutes, about, before)
        records.append(path, [found])
        say(f"tests: {found['result']}")
    worker = Worker(_worker_arguments(path, given_commit), out / "worker.log")
    tables = minutes >= TABLES_FROM
    measured_until = deadline - (TABLES * 60 * minutes if tables else 0.0)
    plan = Agenda(agenda.plan("cuda"), _done(earlier), measured_until, time.monotonic)
    if plan.skipped:
        say(f"{plan.skipped} tasks were done by an earlier run")
    ended_early = 0
    try:
        try:
            carry_out(plan, worker, path, lambda task, why: _failed(task, why, about), say)
        finally:
            worker.stop()
        if tables:
            _tables(out, deadline, given_commit, say)
    except KeyboardInterrupt:
        say("stopped; the records so far are kept.")
        ended_early = 130
    except Exception as error:  # the summary of what is there is worth more than a traceback alone
        say(f"the measuring ended early, the records so far are kept:\n{traceback.format_exc()}")
        reason = "; ".join(filter(None, [reason, f"the measuring ended early: {first_line(error)}"]))
        ended_early = 1
    status = close(out, path, plan, reason, about, say)
    return ended_early or status


def _done(earlier: Iterable[Record]) -> set[str]:
    """The tasks that an earlier run brought to an end: any contender of them has more to show than a failure."""
    return {record["task"] for record in earlier if record.get("status") != "failed"}


def _worker_arguments(path: Path, given_commit: str | None) -> list[str]:
    found = ["--device", "cuda", "--records", str(path.resolve())]
    return [*found, "--commit", given_commit] if given_commit else found


def _same(record: Record, about: dict[str, object]) -> bool:
    """Whether a record is of this device, these versions and these sources."""
    return all(
        record["measured_on"].get(name) == about[name] for name in ("device", "driver", "torch", "triton", "tree")
    )


def _failed(task: Task, why: str, about: dict[str, object]) -> list[Record]:
    """The records of a task that never came to an end, one per contender."""
    if task.case is None:
        return []
    date = environment.now()
    return [
        records.of_outcome(
            Outcome(name, "failed", note=why),
            task.case,
            task.pass_name,
            task.precision,
            suite=task.suite,
            group=f"{date}-failed-{task.name}",
            task=task.name,
            uncut_batch=task.case.batch,
            date=date,
            measured_on=about,
        )
        for name in task.contenders
    ]


def _tables(out: Path, deadline: float, given_commit: str | None, say: Callable[[str], None]) -> None:
    """Writes what dispatch reads (rdk/measured) for each of our backends, as far as time allows."""
    backends = [name for name in contenders.ours("cuda") if name != "auto"]
    for number, backend in enumerate(backends):
        seconds = (deadline - time.monotonic()) / (len(backends) - number)
        if seconds < 20:
            continue
        command = [sys.executable, "-m", "benchmarks", "dispatch", "--backend", backend, "--quick", "--dtype", "bf16"]
        command += ["--out", str(out.resolve() / f"{backend}.json")]
        command += ["--seconds", f"{seconds - 2 * GRACE:.0f}", *(["--commit", given_commit] if given_commit else [])]
        say(f"{seconds:4.0f} s for the dispatch table of {backend}")
        if libraries.logged(command, out / "worker.log", seconds - GRACE, grace=GRACE) is None:
            say(f"the table of {backend} was stopped early; `python -m benchmarks dispatch` measures the whole of it.")


def close(
    out: Path, path: Path, plan: Agenda, reason: str | None, about: dict[str, object], say: Callable[[str], None]
) -> int:
    """Writes summary.md: the tables, what was left out, what is still open. Only what still stands of this device and these
    sources is told and decides the status."""
    found = standing.standing([record for record in records.read(path) if _same(record, about)])
    left_out = sorted(
        {
            f"{r['contender']}: {r['note']}"
            for r in found
            if r.get("status") == "left out" and not str(r["contender"]).startswith("rdk")
        }
    )
    wrong = sorted({f"{r['task']}, {r['contender']}: {r['note']}" for r in found if r.get("status") == "wrong"})
    failed = sorted({f"{r['task']}, {r['contender']}: {r['note']}" for r in found if r.get("status") == "failed"})
    tests = [record for record in found if record["suite"] == "tests"]
    paragraphs = ["# What a GPU run measured", report.markdown(found)]
    paragraphs += (
        [f"Tests: {tests[-1]['result']}" + "".join(f"\n- {name}" for name in tests[-1]["failures"])] if tests else []
    )
    paragraphs += [f"Build: {reason}"] if reason else []
    for title, entries in (("Wrong results", wrong), ("Failed", failed), ("Left out", left_out)):
        if entries:
            paragraphs.append(f"{title}:\n" + "\n".join(f"- {entry}" for entry in entries))
    still = [task.name for task in plan.open]
    paragraphs.append(f"Not reached in this run: {', '.join(still)}." if still else "Every task was reached.")
    (out / "summary.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    say("\n\n".join(paragraphs))
    broken = bool(tests) and tests[-1]["status"] not in (0, gpu_tests.NOT_RUN)
    return 1 if broken or any("rdk " in entry for entry in wrong) else 0
