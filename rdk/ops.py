"""The two operators, one for all iterations and one for its backward, with fakes; called by autograd."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from rdk import budget, checkpoint, recompute
from rdk.backends.base import Call, Needs, Problem, StageSpec
from rdk.backends.layout import empty_maps, empty_outside, outside
from rdk.budget import Settled

library = torch.library.Library("rdk", "DEF")
_Operator = TypeVar("_Operator", bound=Callable[..., Any])

# stages: four integers per stage (dilation, relu, skip or -1, norm)
# checkpoint: "none", "sqrt", "states" (amount = k) or "budget" (amount = bytes)
_CALL = (
    "Tensor? inject, Tensor[] weights, Tensor[] biases, Tensor[] norm_weights, Tensor[] norm_biases, float[] eps, "
    "SymInt iterations, int[] stages, bool norm_training, bool return_states, "
    "str checkpoint, SymInt amount, str backend, str precision, int threads"
)
library.define(
    f"recurrent_fwd(Tensor x, {_CALL}, Tensor[] norm_means, Tensor[] norm_variances, bool needs_grad) "
    "-> (Tensor out, Tensor kept, Tensor means, Tensor variances)"
)
library.define(
    f"recurrent_bwd(Tensor grad_out, Tensor x, Tensor out, Tensor kept, Tensor means, Tensor variances, {_CALL}, "
    "bool[] needs) -> Tensor[]"
)

BATCHED_BACKWARD = (
    "rdk: a compiled rdk module takes one upstream gradient at a time, got a batch of them (is_grads_batched=True, or a vmap over "
    "torch.autograd.grad). Call the module without torch.compile, which takes batches, or loop over the gradients."
)


def stage_numbers(stages: Sequence[StageSpec]) -> list[int]:
    """Stages as the flat list of integers that an operator takes."""
    flat: list[int] = []
    for stage in stages:
        flat += [stage.dilation, int(stage.relu), -1 if stage.skip is None else stage.skip, int(stage.norm)]
    return flat


def settings_of(settled: Settled, eps: list[float]) -> tuple[Any, ...]:
    """What both operators take of a settled problem, from eps to threads."""
    problem = settled.problem
    return (
        eps, problem.iterations, stage_numbers(problem.stages), problem.norm_training, problem.return_states,
        settled.checkpoint, settled.amount, settled.backend, problem.precision, problem.threads,
    )  # fmt: skip


def stages_of(flat: Sequence[int]) -> tuple[StageSpec, ...]:
    """Stages from the flat list of integers that an operator takes."""
    stages = []
    for start in range(0, len(flat), 4):
        dilation, relu, skip, norm = flat[start : start + 4]
        stages.append(StageSpec(dilation, bool(relu), None if skip < 0 else skip, bool(norm)))
    return tuple(stages)


def make_problem(
    x: Tensor,
    inject: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    iterations: int,
    stages: tuple[StageSpec, ...],
    norm_training: bool,
    return_states: bool,
    precision: str,
    needs_grad: bool,
    threads: int,
) -> Problem:
    """The problem that a call poses."""
    return Problem(
        kind="conv" if x.dim() == 4 else "linear",
        stages=stages,
        shape=tuple(x.shape),
        dtype=x.dtype,
        device=x.device,
        iterations=iterations,
        tied=len(weights) == len(stages),
        bias=len(biases) > 0,
        inject=inject is not None,
        norm_training=norm_training,
        needs_grad=needs_grad,
        return_states=return_states,
        precision=precision,
        threads=threads,
    )


def _statistics(x: Tensor, rows: int, means: Sequence[Tensor], variances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(n * stages, C) means and variances: the running ones, or room for the batch's, or (0, C) without norm."""
    dtype = _dtype_of_statistics(x)
    if means:
        return torch.stack(list(means)).to(dtype), torch.stack(list(variances)).to(dtype)
    shape = (rows, x.shape[1])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


def _dtype_of_statistics(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=64)
def _no_statistics(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(0, C), in the place of both for every call without norm: making two empty tensors takes as long as a tiny call."""
    with torch.inference_mode(False):
        return torch.empty((0, channels), dtype=dtype, device=device)


def _entered(operator: _Operator) -> _Operator:
    """An implementation of an operator as it is entered, past the dispatcher or through it: with autocast off, as functional has
    cast already and backward() may be called under another autocast than the forward; and with Dynamo kept out, as
    torch.library.register_kernel does, but for an import of torch._dynamo at the first call.

    Where Dynamo gives up a frame (a break inside a with, a transform of torch.func around a compiled module), it tries each
    Python frame that runs below, the implementation of an operator among them. `first` says on which device the tensors are.
    """
    disabled: list[_Operator] = []

    @wraps(operator)
    def run(first: Tensor | Settled, *rest: Any) -> Any:
        runner = operator
        if "torch._dynamo" in sys.modules:
            if not disabled:
                disabled.append(torch.compiler.disable(operator))
            runner = disabled[0]
        if not torch.is_autocast_enabled(first.device.type):
            return runner(first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return runner(first, *rest)

    return run  # type: ignore[return-value]


@_entered
def forward_settled(
    settled: Settled,
    x: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    eps: list[float],
    norm_means: list[Tensor],
    norm_variances: list[Tensor],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What recurrent_fwd returns, for a problem that is settled; None for what holds nothing."""
    problem, backend = settled.problem, settled.runner
    if not problem.norm:
        nothing = _no_statistics(x.shape[1], _dtype_of_statistics(x), x.device)
        call = Call(problem, inject, weights, biases, norm_weights, norm_biases, eps, nothing, nothing)
        return *recompute.forward(backend, call, x, settled.schedule), None, None
    rows = problem.iterations * len(problem.stages)
    means, variances = _statistics(x, rows, norm_means, norm_variances)
    call = Call(problem, inject, weights, biases, norm_weights, norm_biases, eps, means, variances)
    return *recompute.forward(backend, call, x, settled.schedule), means, variances


@_entered
def run_forward(
    x: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    eps: list[float],
    iterations: int,
    stages: list[int],
    norm_training: bool,
    return_states: bool,
    checkpoint_kind: str,
    amount: int,
    backend: str,
    precision: str,
    threads: int,
    norm_means: list[Tensor],
    norm_variances: list[Tensor],
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if iterations == 0:  # only traced calls come here; functional answers others before the operator
        out = empty_outside((0, *x.shape), like=x) if return_states else x.clone()
        return out, empty_maps(0, x), *_statistics(x, 0, [], [])
    problem = make_problem(
        x, inject, weights, biases, iterations=iterations, stages=stages_of(stages), norm_training=norm_training,
        return_states=return_states, precision=precision, needs_grad=needs_grad, threads=threads,
    )  # fmt: skip
    settled = budget.settle(problem, backend, checkpoint_kind, amount)
    out, kept, means, variances = forward_settled(
        settled, x, inject, weights, biases, norm_weights, norm_biases, eps, norm_means, norm_variances
    )
    return filled(x, out, kept, means, variances)


def filled(
    x: Tensor, out: Tensor, kept: Tensor | None, means: Tensor | None, variances: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of recurrent_fwd with empty tensors in the places of None, as the operators have them."""
    if means is None or variances is None:
        means, variances = _statistics(x, 0, [], [])
    return out, empty_maps(0, x) if kept is None else kept, means, variances


def _forward_fake(
    x: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    eps: list[float],
    iterations: int,
    stages: list[int],
    norm_training: bool,
    return_states: bool,
    checkpoint_kind: str,
    amount: int,
    backend: str,
    precision: str,
    threads: int,
    norm_means: list[Tensor],
    norm_variances: list[Tensor],
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    specs = stages_of(stages)
    out = empty_outside((iterations, *x.shape) if return_states else x.shape, like=x)
    problem = make_problem(
        x, inject, weights, biases, iterations=iterations, stages=specs, norm_training=norm_training,
        return_states=return_states, precision=precision, needs_grad=needs_grad, threads=threads,
    )  # fmt: skip
    rows = iterations * len(specs) if problem.norm else 0
    means, variances = _statistics(x, rows, norm_means, norm_variances)
    if not needs_grad or (isinstance(iterations, int) and iterations == 0):
        count: int | torch.SymInt = 0
    elif all(isinstance(size, int) for size in (iterations, amount, *x.shape)):
        schedule = budget.settle(problem, backend, checkpoint_kind, amount).schedule
        assert schedule is not None
        count = checkpoint.kept_maps(problem, schedule)
    else:
        # not a formula in n: that would be 0 or 1 for some n, for which a graph of its own would be compiled
        count = torch.library.get_ctx().new_dynamic_size()
    return out, empty_maps(count, x), means, variances


@_entered
def backward_settled(
    settled: Settled,
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    kept: Tensor | None,
    means: Tensor | None,
    variances: Tensor | None,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    eps: list[float],
    needs: list[bool],
) -> list[Tensor | None]:
    """The gradients that recurrent_bwd returns, for a problem that is settled; None where `needs` does not ask for one."""
    assert settled.schedule is not None
    if means is None or variances is None:
        means = variances = _no_statistics(x.shape[1], _dtype_of_statistics(x), x.device)
    call = Call(settled.problem, inject, weights, biases, norm_weights, norm_biases, eps, means, variances)
    wanted = _needs(needs, len(weights), len(biases), len(norm_weights))
    grad_x, rest = recompute.backward(settled.runner, call, settled.schedule, x, out, kept, grad_out, wanted)
    grads = [grad_x, rest.inject, *rest.weights, *rest.biases, *rest.norm_weights, *rest.norm_biases]
    return [grad if need else None for grad, need in zip(grads, needs, strict=True)]


@_entered
def run_backward(
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    kept: Tensor,
    means: Tensor,
    variances: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    eps: list[float],
    iterations: int,
    stages: list[int],
    norm_training: bool,
    return_states: bool,
    checkpoint_kind: str,
    amount: int,
    backend: str,
    precision: str,
    threads: int,
    needs: list[bool],
) -> list[Tensor]:
    if iterations == 0:
        return _backward_of_no_iterations(grad_out, x, [inject, *weights, *biases, *norm_weights, *norm_biases], needs)
    problem = make_problem(
        x, inject, weights, biases, iterations=iterations, stages=stages_of(stages), norm_training=norm_training,
        return_states=return_states, precision=precision, needs_grad=True, threads=threads,
    )  # fmt: skip
    settled = budget.settle(problem, backend, checkpoint_kind, amount)
    grads = backward_settled(
        settled,
        grad_out,
        x,
        out,
        kept,
        means,
        variances,
        inject,
        weights,
        biases,
        norm_weights,
        norm_biases,
        eps,
        needs,
    )
    return [x.new_empty(0) if grad is None else grad for grad in grads]


def _backward_of_no_iterations(
    grad_out: Tensor, x: Tensor, others: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    """The output was a copy of x, or an empty stack: only x can have a gradient other than zero."""
    grads = [torch.zeros_like(x) if grad_out.dim() > x.dim() else outside(grad_out.clone(), like=x)]
    grads += [x.new_empty(0) if tensor is None else torch.zeros_like(tensor) for tensor in others]
    return [grad if need else x.new_empty(0) for grad, need in zip(grads, needs, strict=True)]


def _needs(flat: Sequence[bool], weights: int, biases: int, norms: int) -> Needs:
    """The flat list (x, inject, weights, biases, norm weights, norm biases) by name."""
    bounds = [2, 2 + weights, 2 + weights + biases, 2 + weights + biases + norms, len(flat)]
    parts = [flat[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return Needs(flat[0], flat[1], *parts)


def _backward_fake(
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    kept: Tensor,
    means: Tensor,
    variances: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    needs: list[bool] = rest[-1]
    like = [x, inject, *weights, *biases, *norm_weights, *norm_biases]
    grads = []
    for number, (tensor, need) in enumerate(zip(like, needs, strict=True)):
        if tensor is None or not need:
            grads.append(x.new_empty(0))
        else:
            grads.append(empty_outside(x.shape, like=x) if number == 0 else torch.empty_like(tensor))
    return grads


def _refuse_batch(*_: Any) -> Any:
    raise RuntimeError(BATCHED_BACKWARD)


# on every device: the eager backend runs wherever PyTorch does
library.impl("recurrent_fwd", run_forward, "CompositeExplicitAutograd")
library.impl("recurrent_bwd", run_backward, "CompositeExplicitAutograd")
for _key in ("Batched", "FuncTorchBatched"):
    library.impl("recurrent_bwd", _refuse_batch, _key)
torch.library.register_fake("rdk::recurrent_fwd", _forward_fake, lib=library)
torch.library.register_fake("rdk::recurrent_bwd", _backward_fake, lib=library)
