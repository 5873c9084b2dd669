"""Which backend and schedule a call gets, and what it holds whatever the schedule; called by functional, ops, flops, preview."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from rdk import checkpoint, dispatch
from rdk.backends.base import Backend, Problem, StageSpec
from rdk.backends.layout import has_channels_innermost
from rdk.checkpoint import Schedule
from rdk.dispatch import Decision


class Settled(NamedTuple):
    """A problem with all that is decided upon it: the same in a call's forward, its backward and their fakes."""

    problem: Problem
    backend: str
    runner: Backend  # of this name
    schedule: Schedule | None  # None: no backward follows, and nothing is kept for one
    checkpoint: str  # what the schedule was made of: its kind
    amount: int

    @property
    def device(self) -> torch.device:
        return self.problem.device


def fixed_bytes(problem: Problem, backend: str) -> int:
    """Bytes held whatever the schedule: the backend's workspace, the statistics, and, where every state is returned to a
    backend of one layout only, output and its gradient in that layout."""
    statistics = 0
    if problem.norm:
        item = 8 if problem.dtype == torch.float64 else 4
        statistics = 2 * problem.iterations * len(problem.stages) * problem.channels * item
    chosen = dispatch.get(backend)
    copies = 0
    if problem.return_states and not chosen.any_layout(problem):
        copies = (2 if problem.needs_grad else 1) * problem.iterations * problem.map_bytes
    return chosen.workspace_bytes(problem) + statistics + copies


def choose(problem: Problem, request: str, kind: str, amount: int, layout: str = "any") -> Decision:
    """As dispatch.choose, but "auto" takes eager where the backend that it chose cannot keep a budget and eager can.

    Where neither can, it takes the one that needs less: the error then names the smallest budget of both. No third one is asked.
    """
    decision = dispatch.choose(problem, request, layout)
    ahead = decision.backend
    if request != "auto" or kind != "budget" or not problem.needs_grad or ahead == "eager":
        return decision
    needed = checkpoint.smallest_bytes(problem, fixed_bytes(problem, ahead))
    if needed <= amount or needed <= checkpoint.smallest_bytes(problem, fixed_bytes(problem, "eager")):
        return decision
    reasons = {name: dispatch.refusal(name, problem) or f"{ahead!r} was chosen before it" for name in decision.reasons}
    del reasons["eager"]
    return Decision(
        "eager", {**reasons, ahead: f"memory_budget is {amount} bytes, and it needs {needed} bytes at least"}
    )


@lru_cache(maxsize=4096)
def settle(problem: Problem, request: str, kind: str, amount: int) -> Settled:
    """Backend and schedule of a call.

    Raises BudgetError where no schedule keeps the budget, BackendError where a named backend refuses.
    """
    return _scheduled(problem, choose(problem, request, kind, amount).backend, kind, amount)


def _scheduled(problem: Problem, backend: str, kind: str, amount: int) -> Settled:
    schedule = None
    if problem.needs_grad:
        schedule = checkpoint.resolve(problem, kind, amount, fixed_bytes(problem, backend))
    return Settled(problem, backend, dispatch.get(backend), schedule, kind, amount)


@lru_cache(maxsize=4096)
def settle_ordinary(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    stages: tuple[StageSpec, ...],
    bias: bool,
    iterations: int,
    needs_grad: bool,
    precision: str,
    threads: int,
    request: str,
) -> Settled:
    """As settle, for an ordinary call (tied stages without norms on a state on the CPU, nothing asked beside), by what it is known
    by: making its problem and finding what was decided upon it takes longer than many a small map's convolutions.

    Raises BackendError where a named backend refuses.
    """
    problem = Problem(
        kind="conv" if len(shape) == 4 else "linear",
        stages=stages,
        shape=tuple(shape),
        dtype=dtype,
        device=torch.device("cpu"),
        iterations=iterations,
        tied=True,
        bias=bias,
        inject=False,
        norm_training=False,
        needs_grad=needs_grad,
        return_states=False,
        precision=precision,
        threads=threads,
    )
    layout = "channels_last" if has_channels_innermost(shape, strides) else "contiguous"
    chosen = choose(problem, request, "none", 0, layout).backend
    return _scheduled(problem, chosen, "none", 0)


_memories = (dispatch.choose, settle, settle_ordinary)


def forget() -> None:
    """Decides upon every problem anew from here on: for who changes what decisions are made of."""
    for memory in _memories:
        memory.cache_clear()
