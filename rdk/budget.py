"""Which backend and schedule a call gets, and what it holds whatever the schedule; called by functional, ops, flops, preview."""

from __future__ import annotations

import torch

from rdk import checkpoint, dispatch
from rdk.backends.base import Problem
from rdk.checkpoint import Schedule
from rdk.dispatch import Decision


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


def settle(problem: Problem, request: str, kind: str, amount: int) -> tuple[str, Schedule]:
    """Backend and schedule of a training call: the same in its forward, its backward and their fakes.

    Raises BudgetError where no schedule keeps the budget, BackendError where a named backend refuses.
    """
    chosen = choose(problem, request, kind, amount).backend
    return chosen, checkpoint.resolve(problem, kind, amount, fixed_bytes(problem, chosen))
