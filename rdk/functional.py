"""The stateless form of every recurrent module: checks, autocast, layout and running statistics; called by modules, calls ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from rdk import budget, checks, dispatch, norms, ops
from rdk.backends import eager
from rdk.backends.base import Problem, StageSpec
from rdk.backends.layout import dense, is_channels_last


class Stage(NamedTuple):
    """One stage: z = conv3x3(h; weight) + bias, then norm, inject (first stage), skip and ReLU.

    weight: (C, C, 3, 3), or (F, F) for a linear stage; a sequence of them, one per iteration, for an untied network.
    bias: (C,), or a sequence likewise, or None.
    norm: one nn.BatchNorm2d (nn.BatchNorm1d for a linear stage) per iteration, or None.
    dilation: of the convolution, in pixels, and its padding; 1 for a linear stage.
    relu: whether a ReLU follows; a recall stage has none.
    skip: the number of the stage whose input is added to this stage's z, or None.
    """

    weight: Tensor | Sequence[Tensor]
    bias: Tensor | Sequence[Tensor] | None = None
    norm: Sequence[nn.Module] | None = None
    dilation: int = 1
    relu: bool = True
    skip: int | None = None

    def first_weight(self) -> Tensor:
        """The weight of iteration 0, whose shape is that of all."""
        return self.weight if isinstance(self.weight, Tensor) else self.weight[0]


_PLAIN_TENSORS = (Tensor, nn.Parameter)


class Prepared(NamedTuple):
    """A call after all checks and casts: what ops and the planner take."""

    x: Tensor
    inject: Tensor | None
    weights: list[Tensor]
    biases: list[Tensor]
    norms: list[nn.Module]  # iteration-major, empty without norm
    stages: tuple[StageSpec, ...]
    iterations: int
    return_states: bool
    checkpoint: str
    amount: int
    needs_grad: bool
    eager_reason: str | None  # why only plain PyTorch can run this call; None where the operator can


class Route(NamedTuple):
    """How a call runs."""

    backend: str  # "none" where no iteration is run; a traced call's may be "auto", resolved inside the operator
    plain: bool  # as the loop of eager.plain, outside the operator
    reasons: dict[str, str]  # for each other backend, why not; empty for a traced call


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
        iterations: how many are run; 0 returns x itself (with return_states an empty stack).
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
    if inject is None and not return_states and memory_budget is None and checkpoint in ("auto", "none"):
        tiny = _tiny_and_sound(x, stages, iterations, start, backend)
        if tiny is not None:
            weights, biases, specs = tiny
            return eager.plain(x, None, weights, biases, (), specs, iterations, False)
    call = prepare(x, stages, iterations, start, inject, return_states, checkpoint, memory_budget, owner)
    route = decide(call, backend, owner)
    checks.no_mixed_distribution(call.x, call.inject, call.weights, call.biases, route.plain, owner)
    if route.backend == "none":
        return call.x.new_empty((0, *x.shape)) if return_states else x
    out = _plain(call) if route.plain else _operator(call, route.backend)
    if call.x.dim() == x.dim():
        return out
    return out.reshape((*out.shape[:1], *x.shape) if return_states else x.shape)


def _tiny_and_sound(
    x: Tensor, stages: Sequence[Stage], iterations: int, start: int, backend: str
) -> tuple[list[Tensor], list[Tensor], list[StageSpec]] | None:
    """Weights, biases and stages of a call on the CPU that is so small that all checks and decisions would take longer than its
    work, and that would pass them: tied convolutions without norms, of one dtype, outside autocast and torch.compile. None
    for every other call, also for one that is wrong: the checks that follow have the sentence for it."""
    if type(x) is not Tensor or not x.is_cpu or type(iterations) is not int or torch.compiler.is_compiling():
        return None
    if type(stages) is not list and type(stages) is not tuple:
        return None
    if type(start) is not int or start < 0:
        return None
    shape, dtype = x.shape, x.dtype
    if len(shape) != 4 or not dtype.is_floating_point or not stages:
        return None
    channels = shape[1]
    if not _is_tiny(x.numel(), 9 * channels, iterations, len(stages)) or dispatch.requested(backend) != "auto":
        return None
    if torch.is_autocast_enabled("cpu"):
        return None
    weight_shape = (channels, channels, 3, 3)
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    specs: list[StageSpec] = []
    for number, stage in enumerate(stages):
        if type(stage) is not Stage:
            return None
        weight, bias, norm, dilation, relu, skip = stage
        if not isinstance(weight, Tensor) or type(weight) not in _PLAIN_TENSORS:
            return None
        if norm is not None or type(dilation) is not int or dilation < 1:
            return None
        if weight.shape != weight_shape or weight.dtype != dtype or not weight.is_cpu:
            return None
        if skip is not None and (type(skip) is not int or not 0 <= skip <= number):
            return None
        specs.append(StageSpec(dilation, relu, skip))
        weights.append(weight)
        if bias is not None:
            if not isinstance(bias, Tensor) or type(bias) not in _PLAIN_TENSORS:
                return None
            if bias.shape != (channels,) or bias.dtype != dtype or not bias.is_cpu:
                return None
            biases.append(bias)
    if biases and len(biases) != len(weights):
        return None
    return weights, biases, specs


def prepare(
    x: Tensor,
    stages: Sequence[Stage],
    iterations: int,
    start: int,
    inject: Tensor | None,
    return_states: bool,
    checkpoint: str | int,
    memory_budget: int | None,
    owner: str,
) -> Prepared:
    """Every check of the arguments, autocast's cast, (rows, F) for a linear state, and the lists in the operator's order."""
    iterations, start = checks.integer(iterations), checks.integer(start)
    checks.iterations_and_start(iterations, start, owner)
    checks.stages(stages, Stage, owner)
    checks.boolean(return_states, "return_states", owner)
    kind, amount = checks.checkpoint(checkpoint, memory_budget, owner)
    checks.state(x, stages[0].first_weight(), owner)
    if inject is not None:
        checks.inject(inject, x, owner)
    if stages[0].first_weight().dim() == 2 and x.dim() != 2:
        x = x.reshape(-1, x.shape[-1])
        inject = None if inject is None else inject.reshape(-1, inject.shape[-1])
    for number, stage in enumerate(stages):
        checks.owned(stage, number, start, iterations, owner)
    weights, given = _parameters(stages, start, iterations)
    checks.parameters(weights, given, stages[0].first_weight().shape, owner)
    biases = _filled(given, weights)
    norm_modules = _norms(stages, start, iterations)
    checks.norms(norm_modules, x, owner)
    checks.same_device(x, inject, weights, biases, norm_modules, owner)
    x, inject, weights, biases = _autocast(x, inject, weights, biases)
    checks.same_dtype(x, inject, weights, biases, owner)
    needs_grad = torch.is_grad_enabled() and (
        any(tensor.requires_grad for tensor in (x, *weights, *biases))
        or (inject is not None and inject.requires_grad)
        or any(parameter.requires_grad for norm in norm_modules for parameter in norm.parameters())
    )
    specs = tuple(
        [StageSpec(checks.integer(s.dilation), s.relu, checks.integer(s.skip), s.norm is not None) for s in stages]
    )
    return Prepared(
        x=x,
        inject=inject,
        weights=weights,
        biases=biases,
        norms=norm_modules,
        stages=specs,
        iterations=iterations,
        return_states=return_states,
        checkpoint=kind,
        amount=amount,
        needs_grad=needs_grad,
        eager_reason=_why_only_eager(stages, norm_modules),
    )


def decide(call: Prepared, backend: str, owner: str) -> Route:
    """How a call runs that asks for `backend`: the one decision, for recurrent as for rdk.explain and rdk.plan.

    Raises BackendError where a named backend cannot run the call, ValueError for an unknown name and for a schedule where
    only plain PyTorch can run it.
    """
    request, traced = dispatch.requested(backend), torch.compiler.is_compiling()
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
    per_element = call.weights[0].numel() // call.x.shape[1]
    small = call.x.is_cpu and _is_tiny(call.x.numel(), per_element, call.iterations, len(call.stages))
    if request == "auto" and call.checkpoint == "none" and small:
        return _plain_route("the call is too small to gain from it")
    layout = "channels_last" if is_channels_last(call.x) else "contiguous"
    chosen, reasons = budget.choose(problem_of(call), request, call.checkpoint, call.amount, layout)
    return Route(chosen, chosen == "eager" and (call.checkpoint == "none" or not call.needs_grad), reasons)


def _plain_route(reason: str) -> Route:
    return Route("eager", True, {name: reason for name in dispatch.NAMES if name != "eager"})


def _is_tiny(elements: int, products_of_each: int, iterations: int, stages: int) -> bool:
    """Whether deciding and entering the operator would cost more on a CPU than it could save."""
    convolutions = iterations * stages
    limit = dispatch.TINY_SINGLE_PRODUCTS if convolutions == 1 else dispatch.TINY_PRODUCTS
    return 0 < elements * products_of_each * convolutions < limit


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


def _parameters(stages: Sequence[Stage], start: int, iterations: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """Weights and biases: one per stage when all are tied, else one per iteration and stage, iteration-major."""
    weights: list[Tensor] = []
    given: list[Tensor | None] = []
    for stage in stages:
        if not isinstance(stage.weight, Tensor) or not (stage.bias is None or isinstance(stage.bias, Tensor)):
            break
        weights.append(stage.weight)
        given.append(stage.bias)
    else:
        return weights, given
    weights, given = [], []
    for iteration in range(start, start + iterations):
        for stage in stages:
            weights.append(stage.weight if isinstance(stage.weight, Tensor) else stage.weight[iteration])
            single = stage.bias is None or isinstance(stage.bias, Tensor)
            given.append(cast("Tensor | None", stage.bias if single else stage.bias[iteration]))  # type: ignore[index]
    return weights, given


def _filled(biases: list[Tensor | None], weights: list[Tensor]) -> list[Tensor]:
    """The biases, zeros where only some stages have one; empty where none has."""
    missing = sum([bias is None for bias in biases])
    if missing == len(biases):
        return []
    if missing == 0:
        return cast("list[Tensor]", biases)
    return [w.new_zeros(w.shape[0]) if b is None else b for b, w in zip(biases, weights, strict=True)]


def _norms(stages: Sequence[Stage], start: int, iterations: int) -> list[nn.Module]:
    if all(stage.norm is None for stage in stages):
        return []
    identity = nn.Identity()
    return [
        stage.norm[iteration] if stage.norm is not None else identity
        for iteration in range(start, start + iterations)
        for stage in stages
    ]


def _why_only_eager(stages: Sequence[Stage], norm_modules: list[nn.Module]) -> str | None:
    if _is_transformed():
        return "a transform of torch.func or a forward-mode derivative is under way, which PyTorch's own operators take"
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is under way, which records PyTorch's own operators"
    if not norm_modules:
        return None
    if any(stage.norm is None for stage in stages):
        return "some stages have a norm and others have none"
    return norms.why_not_fused(norm_modules)


def _is_transformed() -> bool:
    """Whether grad, jvp, vmap … of torch.func or torch.autograd.forward_ad act on this call."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


# as dispatch.threads: Dynamo guards every graph by the transforms and the level under way
_is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _autocast(
    x: Tensor, inject: Tensor | None, weights: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Casts once to the autocast dtype in force; float64 stays, as for nn.Conv2d."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x, inject, weights, biases
    dtype = torch.get_autocast_dtype(kind)

    def cast_one(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return (
        cast_one(x),
        None if inject is None else cast_one(inject),
        [cast_one(weight) for weight in weights],
        [cast_one(bias) for bias in biases],
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


def _operator(call: Prepared, backend: str) -> Tensor:
    x = dense(call.x)
    inject = None if call.inject is None else dense(call.inject)
    tensors = norms.gather(call.norms, x)
    ops.offer_flops()
    out, _, means, variances = ops.recurrent_fwd(
        x,
        inject,
        call.weights,
        call.biases,
        tensors.weights,
        tensors.biases,
        tensors.eps,
        call.iterations,
        ops.stage_numbers(call.stages),
        tensors.training,
        call.return_states,
        call.checkpoint,
        call.amount,
        backend,
        dispatch.precision_of(x.device, x.dtype, "conv" if x.dim() == 4 else "linear"),
        dispatch.threads(),
        tensors.means,
        tensors.variances,
        call.needs_grad,
    )
    if tensors.training:
        norms.update_running_statistics(call.norms, means, variances, x.numel() // x.shape[1])
    return cast(Tensor, out)
