"""Says before a call what it would keep and which backend would run it; called by users (rdk.plan, rdk.explain)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rdk import checkpoint as planner
from rdk import checks, dispatch, functional, ops
from rdk.backends import eager
from rdk.backends.base import Problem, StageSpec
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

    dtype is the module's own by default; memory_budget or checkpoint replace the module's settings where given.
    Raises rdk.BudgetError where the budget is too small, TypeError and ValueError for arguments that do not fit.
    """
    owner = "rdk.plan"
    if not isinstance(module, Recurrent):
        raise TypeError(f"{owner}: expected an rdk module, got {type(module).__name__}.")
    given = memory_budget is not None or checkpoint is not None
    kind, amount = checks.checkpoint(
        (checkpoint if checkpoint is not None else "auto") if given else module.checkpoint,
        memory_budget if given else module.memory_budget,
        owner,
    )
    count = module.iterations if iterations is None else iterations
    checks.iterations_and_start(count, 0, owner)
    problem = _problem(module, input_shape, dtype, count, inject, return_states)
    backend = dispatch.choose(problem, dispatch.requested(module.backend)).backend
    return _planned(problem, backend, kind, amount)


def _problem(
    module: Recurrent,
    input_shape: Sequence[int],
    dtype: torch.dtype | None,
    iterations: int,
    inject: bool,
    return_states: bool,
) -> Problem:
    stages = module.functional_stages()
    weight = stages[0].first_weight()
    x = weight.new_empty(1).expand(tuple(input_shape))  # no memory, whatever the shape
    checks.state(x, weight, "rdk.plan")
    for number, stage in enumerate(stages):
        checks.owned(stage, number, 0, iterations, "rdk.plan")
    shape = tuple(input_shape) if weight.dim() == 4 else (x.numel() // x.shape[-1], x.shape[-1])
    dtype = dtype or weight.dtype
    return Problem(
        kind="conv" if weight.dim() == 4 else "linear",
        stages=tuple(StageSpec(s.dilation, s.relu, s.skip, s.norm is not None) for s in stages),
        shape=shape,
        dtype=dtype,
        device=weight.device,
        iterations=iterations,
        tied=module.tied,
        bias=any(stage.bias is not None for stage in stages),
        inject=inject,
        norm_training=module.norm is not None and module.training,
        needs_grad=True,
        return_states=return_states,
        precision=dispatch.precision_of(weight.device, dtype),
    )


def _planned(problem: Problem, backend: str, kind: str, amount: int) -> Plan:
    n, stages = problem.iterations, len(problem.stages)
    fixed = ops.fixed_bytes(problem, backend)
    schedule = planner.resolve(problem, kind, amount, fixed) if n else planner.everything(0)
    kept = planner.kept_maps(problem, schedule)
    live = planner.live_maps(problem, schedule)
    if backend == "eager" and kind == "none":
        # autograd's own: the input of every convolution and, with norm, of every norm
        kept = live = max(n * stages * (2 if problem.norm else 1) - 1, 0)
        fixed = eager.PLAIN_WORKSPACE_MAPS * problem.map_bytes
    return Plan(
        backend=backend,
        checkpoint=kind,
        iterations=n,
        states=tuple(planner.kept_positions(n, schedule)),
        slots=schedule.slots,
        taped_iterations=schedule.taped,
        bytes_kept=kept * problem.map_bytes,
        bytes_peak=live * problem.map_bytes + fixed,
        recompute=planner.recomputed_convolutions(problem, schedule) / max(n * stages, 1),
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
    stages = module.functional_stages()
    count = module.iterations if iterations is None else iterations
    owner = f"rdk.{type(module).__name__}"
    checks.iterations_and_start(count, start, owner)
    if stages[0].first_weight().dim() == 2:
        checks.state(x, stages[0].first_weight(), owner)
        x = x.reshape(-1, x.shape[-1])
        inject = None if inject is None else inject.reshape(-1, inject.shape[-1])
    call = functional.prepare(
        x, stages, count, start, inject, return_states, module.checkpoint, module.memory_budget, owner
    )
    request = dispatch.requested(module.backend)
    if call.eager_reason is not None:
        chosen, reasons = "eager", {name: call.eager_reason for name in dispatch.NAMES if name != "eager"}
    elif request == "auto" and functional.is_tiny(call):
        chosen, reasons = (
            "eager",
            dict.fromkeys(set(dispatch.NAMES) - {"eager"}, "the call is too small to gain from it"),
        )
    else:
        chosen, reasons = dispatch.choose(functional.problem_of(call), request)
    plain = chosen == "eager" and (call.checkpoint == "none" or not call.needs_grad)
    forward = "eager (plain autograd)" if plain and call.needs_grad else chosen
    backward = forward if call.needs_grad else "none: no gradient is asked for"
    return Explanation(forward, backward, dict(reasons))
