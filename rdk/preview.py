"""Says before a call what it would keep and which backend would run it; called by users (rdk.plan, rdk.explain)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from rdk import arguments, budget, checks, functional
from rdk import checkpoint as planner
from rdk.arguments import Prepared
from rdk.backends import eager_workspace
from rdk.functional import Route
from rdk.modules import Recurrent


@dataclass(frozen=True)
class Plan:
    """What a training step keeps. Bytes are without parameters, their gradients, input and output."""

    backend: str
    checkpoint: str  # "none", "sqrt", "states" or "budget"
    iterations: int
    states: tuple[int, ...]  # iterations whose input state the forward keeps
    slots: int  # states that the backward may hold beside them
    taped_iterations: int  # last iterations that keep all that reversing them needs
    bytes_kept: int  # between forward and backward
    bytes_peak: int  # at most, during the backward
    recompute: float  # convolutions run again, as a fraction of one forward

    def __str__(self) -> str:
        states = ", ".join(map(str, self.states[:12])) + (", …" if len(self.states) > 12 else "")
        return (
            f"{self.iterations} iterations on backend {self.backend!r}, checkpoint {self.checkpoint!r}:\n"
            f"  kept by the forward   {self.bytes_kept / 2**20:.2f} MiB (states entering iterations: {states or 'none'}; "
            f"{self.taped_iterations} iterations taped)\n"
            f"  peak in the backward  {self.bytes_peak / 2**20:.2f} MiB ({self.slots} states kept again)\n"
            f"  recomputation         {self.recompute:.2f} of one forward"
        )


@dataclass(frozen=True)
class Explanation:
    """Which backend would run a call and, for each other, why not."""

    forward: str
    backward: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        lines = [f"forward: {self.forward}", f"backward: {self.backward}"]
        return "\n".join(lines + [f"not {name}: {reason}" for name, reason in self.reasons.items()])


def plan(
    module: Recurrent,
    input_shape: Sequence[int],
    dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    *,
    checkpoint: str | int | None = None,
    iterations: int | None = None,
    inject: bool = False,
    return_states: bool = False,
) -> Plan:
    """What a training step of `module` on an input of `input_shape` would keep, without running it.

    Args:
        input_shape: (N, C, H, W), or (*, F) for RecurrentLinear; the input is taken as contiguous.
        dtype: the module's own by default.
        memory_budget, checkpoint: replace the module's settings where one of them is given.
        iterations: the module's own number by default.
        inject, return_states: whether the call has an inject, and returns every state.

    Returns:
        A Plan: backend, kept states, bytes and recomputation; str(plan) says it in four lines.

    Raises as the step would: rdk.BudgetError where the budget is too small, rdk.BackendError where the module's backend cannot
    run it, TypeError and ValueError for arguments that do not fit.
    """
    owner = "rdk.plan"
    if not isinstance(module, Recurrent):
        raise TypeError(f"{owner}: expected an rdk module, got {type(module).__name__}.")
    input_shape = checks.input_shape(input_shape, owner)
    checks.floating_dtype(dtype, owner)
    if memory_budget is None and checkpoint is None:
        checkpoint, memory_budget = module.checkpoint, module.memory_budget
    count = module.iterations if iterations is None else iterations
    setting = "auto" if checkpoint is None else checkpoint
    call = _training_step(module, input_shape, dtype, count, inject, return_states, setting, memory_budget)
    return _planned(call, functional.decide(call, module.backend, owner))


def _training_step(
    module: Recurrent,
    input_shape: Sequence[int],
    dtype: torch.dtype | None,
    iterations: int,
    inject: bool,
    return_states: bool,
    checkpoint: str | int,
    memory_budget: int | None,
) -> Prepared:
    """The call of a training step, on an input that takes no memory, whatever its shape."""
    stages = module.stages_to_look_at()
    weight = stages[0].first_weight()
    x = weight.new_empty(1).expand(tuple(input_shape))
    # autocast would copy the input, whole
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        call = arguments.prepare(
            x, stages, iterations, 0, x if inject else None, return_states, checkpoint, memory_budget, "rdk.plan"
        )
    x = x.new_empty(1, dtype=dtype or x.dtype).expand(call.x.shape)
    return call._replace(x=x, needs_grad=True)


def _planned(call: Prepared, route: Route) -> Plan:
    n, stages = call.iterations, len(call.stages)
    if route.backend == "none":
        return Plan(route.backend, call.checkpoint, 0, (), 0, 0, 0, 0, 0.0)
    problem = functional.problem_of(call)
    if route.plain:
        # autograd's own: the input of every convolution and of every norm, but for the call's
        schedule = planner.everything(n)
        kept = live = n * sum(2 if stage.norm else 1 for stage in call.stages) - 1
        states = n - 1
        fixed = eager_workspace.plain_bytes(problem)
    else:
        settled = budget.settle(problem, route.backend, call.checkpoint, call.amount)
        assert settled.schedule is not None
        schedule = settled.schedule
        fixed = budget.fixed_bytes(problem, route.backend)
        kept, live = planner.kept_maps(problem, schedule), planner.live_maps(problem, schedule)
        states = planner.kept_states(problem, schedule)
    return Plan(
        backend=route.backend,
        checkpoint=call.checkpoint,
        iterations=n,
        states=tuple(planner.kept_positions(n, schedule)[:states]),
        slots=schedule.slots,
        taped_iterations=schedule.taped,
        bytes_kept=kept * problem.map_bytes,
        bytes_peak=live * problem.map_bytes + fixed,
        recompute=planner.recomputed_convolutions(problem, schedule) / (n * stages),
    )


def explain(
    module: Recurrent,
    x: Tensor,
    *,
    iterations: int | None = None,
    start: int = 0,
    inject: Tensor | None = None,
    return_states: bool = False,
) -> Explanation:
    """Which backend each of forward and backward of `module(x, …)` would run on, and why not the others.

    Takes the arguments of the module's own call and raises as it does. Runs nothing.
    """
    if not isinstance(module, Recurrent):
        raise TypeError(f"rdk.explain: expected an rdk module, got {type(module).__name__}.")
    count = module.iterations if iterations is None else iterations
    stages, owner = module.stages_to_look_at(), f"rdk.{type(module).__name__}"
    call = arguments.prepare(
        x, stages, count, start, inject, return_states, module.checkpoint, module.memory_budget, owner
    )
    route = functional.decide(call, module.backend, owner)
    if route.backend == "none":
        forward = backward = "none: no iteration is run"
    else:
        if call.needs_grad and not route.plain:
            # a budget that is too small raises here
            budget.settle(functional.problem_of(call), route.backend, call.checkpoint, call.amount)
        forward = "eager (plain autograd)" if route.plain and call.needs_grad else route.backend
        backward = forward if call.needs_grad else "none: no gradient is asked for"
    return Explanation(forward, backward, dict(route.reasons))
