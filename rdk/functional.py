"""The stateless form of every recurrent module: which way a call takes, its layout and running statistics; called by modules."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rdk import arguments, autograd, budget, checks, dispatch, norms, ops
from rdk.arguments import Arranged, Prepared, Stage
from rdk.backends import eager
from rdk.backends.base import Problem
from rdk.backends.layout import dense, is_channels_last

__all__ = ["Stage", "recurrent"]

_requires_grad = attrgetter("requires_grad")


class Route(NamedTuple):
    """How a call runs."""

    backend: str  # "none" where no iteration is run; a traced call's may be "auto", resolved inside the operator
    plain: bool  # as the loop of eager.plain, outside the operator
    reasons: dict[str, str]  # for each other backend, why not; empty for a traced call
    problem: Problem | None = None  # upon which was decided, where it was by one


_NOTHING = Route("none", False, dict.fromkeys(dispatch.NAMES, "no iteration is run"))


def recurrent(
    x: Tensor,
    stages: Sequence[Stage],
    iterations: int,
    *,
    start: int = 0,
    inject: Tensor | None = None,
    return_states: bool = False,
    checkpoint: str | int = "auto",
    memory_budget: int | None = None,
    backend: str = "auto",
    owner: str = "rdk.functional.recurrent",
) -> Tensor:
    """Applies the stages to x, `iterations` times.

    Args:
        x: (N, C, H, W) state, or (*, F) for linear stages; any strides; of the weights' dtype, or any but float64 under autocast.
        stages: what one iteration computes.
        iterations: how many are run; 0 returns x itself, under autocast in its dtype (with return_states an empty stack).
        start: the first iteration: which untied weights and which norms begin.
        inject: as x; added in the first stage of every iteration.
        return_states: return the state after every iteration, not only the last.
        checkpoint: "none" keeps all that the backward needs, "sqrt" about √n states, an integer that many; "auto" is
            "none" unless a budget is set.
        memory_budget: peak bytes that may be held beside parameters, their gradients, input and output; needs checkpoint "auto".
        backend: "eager", "cpu", "triton" or "cuda"; "auto" asks rdk.use_backend, then RDK_BACKEND, then the measurements.
        owner: how error messages name the caller.

    Returns:
        The last state, as x in shape, and in the memory format of nn.Conv2d's output for x; with return_states
        (iterations, *x.shape). Under autocast its dtype is the autocast dtype, as for nn.Conv2d.

    Raises:
        TypeError, ValueError: for arguments that do not fit, in a sentence that names the value received.
        rdk.BudgetError (a ValueError): the budget is too small; names the smallest that fits.
        rdk.BackendError: the backend asked for cannot run this call; names the reason.

    Source: Schwarzschild et al. (ICLR 2022), section 3: the same layers applied again and again; inject: Bansal et al. (2022).
    """
    call: Prepared | None = None
    if inject is None and return_states is False and memory_budget is None and checkpoint in ("auto", "none"):
        sound = arguments.sound(x, stages, iterations, start)
        if sound is not None:
            found, products = sound
            weights, biases, specs = found
            request = dispatch.requested(backend)
            if request == "auto" and _is_tiny(x, products * iterations, iterations * len(specs)):
                in_place = not torch.is_grad_enabled() or x.numel() >= eager.SMALL_STATE
                return eager.plain(x, None, weights, biases, (), specs, iterations, False, in_place)
            if products * iterations > 0 and not arguments.needs_own_operators():
                return _ordinary(x, found, iterations, request)
            call = arguments.prepare_sound(x, found, iterations)
    if call is None:
        call = arguments.prepare(x, stages, iterations, start, inject, return_states, checkpoint, memory_budget, owner)
    route = decide(call, backend, owner)
    checks.no_mixed_distribution(call.x, call.inject, call.weights, call.biases, route.plain, owner)
    if route.backend == "none":  # under autocast the result has its dtype here too
        if return_states:
            return call.x.new_empty((0, *x.shape))
        return x if call.x.dtype == x.dtype else call.x.reshape(x.shape)
    out = _plain(call) if route.plain else _operator(call, route)
    if call.x.dim() == x.dim():
        return out
    return out.reshape((*out.shape[:1], *x.shape) if return_states else x.shape)


def decide(call: Prepared, backend: str, owner: str) -> Route:
    """How a call runs that asks for `backend`: the one decision, for recurrent as for rdk.explain and rdk.plan.

    Raises BackendError where a named backend cannot run the call, ValueError for an unknown name and for a schedule where
    only plain PyTorch can run it.
    """
    request, traced = dispatch.requested(backend), is_compiling()
    if not traced and call.iterations == 0:  # a traced call asks nothing of n: one graph for any
        return _NOTHING
    if call.x.numel() == 0:
        return _plain_route("the input is empty")
    if call.eager_reason is not None:
        _check_eager_allowed(call, request, owner)
        return _plain_route(call.eager_reason)
    if traced:
        # sizes may be symbolic here: an "auto" is resolved inside the operator, where they are numbers
        return Route(request, request == "eager" and call.checkpoint == "none", {})
    if request == "auto" and call.checkpoint == "none" and call.x.is_cpu:
        convolutions = call.iterations * len(call.stages)
        products = call.x.numel() * (call.weights[0].numel() // call.x.shape[1]) * convolutions
        if _is_tiny(call.x, products, convolutions):
            return _plain_route("the call is too small to gain from it")
    layout = "channels_last" if is_channels_last(call.x) else "contiguous"
    problem = problem_of(call)
    chosen, reasons = budget.choose(problem, request, call.checkpoint, call.amount, layout)
    return Route(chosen, chosen == "eager" and (call.checkpoint == "none" or not call.needs_grad), reasons, problem)


def _plain_route(reason: str) -> Route:
    return Route("eager", True, {name: reason for name in dispatch.NAMES if name != "eager"})


def _is_tiny(x: Tensor, products: int, convolutions: int) -> bool:
    """Whether deciding would cost more on a CPU than it could save, by a call's multiply-adds and how many layers they are of."""
    if x.dim() == 2:
        return 0 < products < dispatch.TINY_LINEAR_PRODUCTS
    return convolutions == 1 and x.shape[0] == 1 and 0 < products < dispatch.TINY_SINGLE_PRODUCTS


def problem_of(call: Prepared) -> Problem:
    """What dispatch and the planner decide upon."""
    return ops.make_problem(
        call.x,
        call.inject,
        call.weights,
        call.biases,
        iterations=call.iterations,
        stages=call.stages,
        norm_training=bool(call.norms) and call.eager_reason is None and norms.uses_batch_statistics(call.norms[0]),
        return_states=call.return_states,
        precision=dispatch.precision_of(call.x.device, call.x.dtype, "conv" if call.x.dim() == 4 else "linear"),
        needs_grad=call.needs_grad,
        threads=dispatch.threads(),
    )


def _check_eager_allowed(call: Prepared, request: str, owner: str) -> None:
    if request not in ("auto", "eager"):
        raise dispatch.BackendError(f"{owner}: backend {request!r} cannot run this call: {call.eager_reason}.")
    if call.checkpoint != "none":
        raise ValueError(
            f"{owner}: {call.eager_reason}, and such a call keeps every state: checkpoint must be 'auto' or 'none' "
            f"and memory_budget None, got checkpoint kind {call.checkpoint!r}."
        )


def _plain(call: Prepared) -> Tensor:
    return eager.plain(
        call.x, call.inject, call.weights, call.biases, call.norms, call.stages, call.iterations, call.return_states
    )


def _operator(call: Prepared, route: Route) -> Tensor:
    x = dense(call.x)
    inject = None if call.inject is None else dense(call.inject)
    norm = norms.gather(call.norms, x)
    means: Tensor | None
    variances: Tensor | None
    if route.problem is not None and autograd.unheard(
        (x, inject, *call.weights, *call.biases, *norm.weights, *norm.biases)
    ):
        settled = budget.settle(route.problem, route.backend, call.checkpoint, call.amount)
        out, means, variances = autograd.past_dispatcher(settled, x, inject, call.weights, call.biases, norm)
    else:
        out, _, means, variances = autograd.recurrent_fwd(
            x,
            inject,
            call.weights,
            call.biases,
            norm.weights,
            norm.biases,
            norm.eps,
            call.iterations,
            ops.stage_numbers(call.stages),
            norm.training,
            call.return_states,
            call.checkpoint,
            call.amount,
            route.backend,
            dispatch.precision_of(x.device, x.dtype, "conv" if x.dim() == 4 else "linear"),
            dispatch.threads(),
            norm.means,
            norm.variances,
            call.needs_grad,
        )
    if norm.training and means is not None and variances is not None:
        norms.update_running_statistics(call.norms, means, variances, x.numel() // x.shape[1])
    return out


def _ordinary(x: Tensor, found: Arranged, iterations: int, request: str) -> Tensor:
    """A call that arguments.sound lets pass, of any size: what `decide` and `_operator` would make of it, by what was settled
    for the last one like it."""
    weights, biases, stages = found
    needs_grad = torch.is_grad_enabled() and any(map(_requires_grad, (x, *weights, *biases)))
    precision = dispatch.cpu_precision()
    settled = budget.settle_ordinary(
        x.shape,
        x.stride(),
        x.dtype,
        stages,
        bool(biases),
        iterations,
        needs_grad,
        precision,
        dispatch.threads(),
        request,
    )
    if settled.backend == "eager":
        in_place = not torch.is_grad_enabled() or x.numel() >= eager.SMALL_STATE
        return eager.plain(x, None, weights, biases, (), stages, iterations, False, in_place)
    if autograd.unheard((x,)):
        return autograd.past_dispatcher(settled, x, None, weights, biases, norms.NO_NORM)[0]
    settings = ops.settings_of(settled, [])
    return autograd.recurrent_fwd(dense(x), None, weights, biases, [], [], *settings, [], [], needs_grad)[0]
