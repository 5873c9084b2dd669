"""One comparison: all are checked, then timed in turns; called by suites and dispatch; profile, gpu, worker, records take parts."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import timing
from benchmarks.check import Errors
from benchmarks.contenders import Contender, forget_compiled
from benchmarks.judge import Judge
from benchmarks.memory import peak_bytes
from benchmarks.problem import Prepared, Problem
from benchmarks.timing import Patience, Stopwatch, Timing

BASELINE = "eager"
FAILED = "failed "  # how `say` begins where a contender has failed
# and where one begins that may hang
BUSY = CHECKING, WARMING, TIMING, WEIGHING = "checking ", "warming up ", "timing ", "weighing "
DEFAULT = Patience()


@dataclass(frozen=True)
class Outcome:
    """What became of one contender. A timing is there only where status is "ok": its results were checked in this process."""

    contender: str
    status: str  # "ok", "wrong", "failed", "out of memory" or "left out"
    timing: Timing | None = None
    errors: Errors | None = None
    peak_bytes: int | None = None  # of one run, beyond what was held before it: states, workspace, gradients, output
    note: str = ""  # what is wrong, the first line of a failure, or why it was left out

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.timing is not None):
            raise ValueError(
                f"an outcome has a timing exactly when it is ok, got status {self.status!r}, {self.timing}."
            )


def first_line(error: BaseException) -> str:
    """The first line that says something, without the program's paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in text or "can't allocate" in text
    )


def release(device: torch.device) -> None:
    """Gives back what the last contender held."""
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # it raises again what has broken the device, which is recorded already
            torch.cuda.empty_cache()


def compare(
    problem: Problem,
    training: bool,
    contenders: Sequence[Contender],
    patience: Patience = DEFAULT,
    watch: Stopwatch | None = None,
    memory: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Checks every contender, then times those whose results are right, in turns, and with `memory` measures the peak of each.

    The first contender must be eager: its error sets the bounds of the others, and where it fails or is itself wrong nothing is
    timed. Out of memory, a failed compilation and wrong results are outcomes like any other.
    """
    if not contenders or contenders[0].name != BASELINE:
        raise ValueError(f"the first contender must be {BASELINE!r}, got {[one.name for one in contenders]}.")
    problem.precision.apply()
    try:
        judge = Judge(problem, training)
    except Exception as error:
        status = "out of memory" if is_out_of_memory(error) else "failed"
        note = f"no float64 answers to check against: {first_line(error)}"
        return [Outcome(one.name, status, note=note) for one in contenders]
    outcomes: dict[str, Outcome] = {}
    running = _checked(judge, training, contenders, outcomes, say)
    if not running:
        return [outcomes[one.name] for one in contenders]
    errors = judge.errors
    del judge
    release(problem.device)
    timings = _timed(problem, running, outcomes, patience, watch or timing.stopwatch(problem.device), say)
    for name, result in timings.items():
        say(f"{WEIGHING}{name}")
        try:
            peak = _peak(running[name], problem.device) if memory else None
        except Exception as error:
            outcomes[name] = _failure(name, error, say)
        else:
            outcomes[name] = Outcome(name, "ok", result, errors[name], peak)
    say("closing")
    running.clear()
    forget_compiled()
    release(problem.device)
    return [outcomes[one.name] for one in contenders]


def _checked(
    judge: Judge,
    training: bool,
    contenders: Sequence[Contender],
    outcomes: dict[str, Outcome],
    say: Callable[[str], None],
) -> dict[str, Prepared]:
    """Those whose results are right, ready to be timed: none where eager did not pass. What became of the rest goes to outcomes."""
    problem = judge.problem
    running: dict[str, Prepared] = {}
    for one in contenders:
        say(f"{CHECKING}{one.name}")
        try:
            reason = one.why_not(problem, training)
            if reason is not None:
                outcomes[one.name] = Outcome(one.name, "left out", note=reason)
                continue
            prepared = one.make(problem, training)
            fault = judge.fault_of(one.name, prepared)
        except Exception as error:
            outcomes[one.name] = _failure(one.name, error, say)
            release(problem.device)
        else:
            if fault is None:
                running[one.name] = prepared
            else:
                outcomes[one.name] = Outcome(one.name, "wrong", errors=judge.errors[one.name], note=fault)
        if one.name == BASELINE and BASELINE not in running:
            note = f"eager, whose error sets the bounds, did not pass: {outcomes[BASELINE].note}"
            outcomes.update({other.name: Outcome(other.name, "left out", note=note) for other in contenders[1:]})
            break
    return running


def _failure(name: str, error: Exception, say: Callable[[str], None]) -> Outcome:
    say(f"{FAILED}{name}")
    return Outcome(name, "out of memory" if is_out_of_memory(error) else "failed", note=first_line(error))


def _peak(prepared: Prepared, device: torch.device) -> int | None:
    """None for a CUDA graph, whose memory is its own pool, held from capture on."""
    if prepared.is_replay:
        return None
    prepared.forget_gradients()
    return peak_bytes(prepared.run, device)


def _timed(
    problem: Problem,
    running: dict[str, Prepared],
    outcomes: dict[str, Outcome],
    patience: Patience,
    watch: Stopwatch,
    say: Callable[[str], None],
) -> dict[str, Timing]:
    """Warms each up by itself, then times them in turns; one that fails (memory, say) leaves the comparison without ending it."""

    def drop(name: str, error: Exception) -> None:
        outcomes[name] = _failure(name, error, say)
        del running[name]
        release(problem.device)

    for name in list(running):
        say(f"{WARMING}{name}")
        try:
            for _ in range(patience.warmup):
                running[name].run()
        except Exception as error:
            drop(name, error)
    calls = {name: partial(_run, running, name) for name in running}
    return timing.interleave(calls, watch, patience, drop=drop, begin=lambda name: say(f"{TIMING}{name}"))


def _run(running: dict[str, Prepared], name: str) -> None:
    """By name, so that one that is dropped is held nowhere and its memory is free."""
    running[name].run()
