"""From a caller's arguments to what the operators take: checks, autocast's casts, lists; called by functional and preview."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from rdk import checks, norms
from rdk.backends.base import StageSpec


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
        or any(parameter.requires_grad for norm in norm_modules for parameter in norms.parameters_of(norm))
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


class Arranged(NamedTuple):
    """The lists of a call's stages, for those who take them apart no more."""

    weights: list[Tensor]
    biases: list[Tensor]
    stages: tuple[StageSpec, ...]


class KeptStages(tuple[Stage, ...]):
    """Stages that a module hands over again (see kept.py), with what `sound` has made of them: no tensor's change alters that."""

    found: Arranged | None = None


def sound(x: Tensor, stages: Sequence[Stage], iterations: int, start: int) -> tuple[Arranged, int] | None:
    """The most frequent call in a fraction of the time of all checks: tied stages without norms on the CPU, all tensors of one
    dtype, outside autocast and torch.compile; linear ones of a state (rows, F). Its lists, and the multiply-adds of an iteration;
    None for every other call, also for one that is wrong: the checks of `prepare` have the sentence for it."""
    if type(x) is not Tensor or not x.is_cpu or type(iterations) is not int or iterations < 0:
        return None
    if type(start) is not int or start < 0:
        return None
    if type(stages) is KeptStages:  # no module hands these over while it is traced
        found = stages.found
        if found is None:
            found = stages.found = _arranged(stages)
    else:
        found = None if is_compiling() else _arranged(stages)
    # whether autocast acts on any device: what asks for one device's takes 1 µs longer between two training steps
    if found is None or torch._C._is_any_autocast_enabled():
        return None
    shape, dtype = x.shape, x.dtype
    dimensions = len(shape)
    if not (dimensions == 4 or dimensions == 2) or not dtype.is_floating_point:
        return None
    channels = shape[1]
    weight_shape = (channels, channels, 3, 3) if dimensions == 4 else (channels, channels)
    for weight in found.weights:
        if weight.shape != weight_shape or weight.dtype != dtype or not weight.is_cpu:
            return None
    for bias in found.biases:
        if bias.shape != (channels,) or bias.dtype != dtype or not bias.is_cpu:
            return None
    taps = 9 if dimensions == 4 else 1
    return found, x.numel() * channels * taps * len(found.weights)


def _arranged(stages: Sequence[Stage]) -> Arranged | None:
    """The lists of tied stages without norms whose fields are what they should be, shapes, dtypes and devices aside."""
    if not isinstance(stages, (list, tuple)) or not stages:
        return None
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    specs: list[StageSpec] = []
    for number, stage in enumerate(stages):
        if type(stage) is not Stage:
            return None
        weight, bias, norm, dilation, relu, skip = stage
        if not isinstance(weight, Tensor) or type(weight) not in _PLAIN_TENSORS:
            return None
        if norm is not None or type(dilation) is not int or dilation < 1 or type(relu) is not bool:
            return None
        if skip is not None and (type(skip) is not int or not 0 <= skip <= number):
            return None
        specs.append(StageSpec(dilation, relu, skip))
        weights.append(weight)
        if bias is not None:
            if not isinstance(bias, Tensor) or type(bias) not in _PLAIN_TENSORS:
                return None
            biases.append(bias)
    if biases and len(biases) != len(weights):
        return None
    return Arranged(weights, biases, tuple(specs))


def prepare_sound(x: Tensor, found: Arranged, iterations: int) -> Prepared:
    """What `prepare` would give for a call with neither inject nor schedule, without its checks."""
    tensors = (x, *found.weights, *found.biases)
    return Prepared(
        x=x,
        inject=None,
        weights=found.weights,
        biases=found.biases,
        norms=[],
        stages=found.stages,
        iterations=iterations,
        return_states=False,
        checkpoint="none",
        amount=0,
        needs_grad=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
        eager_reason=_why_only_eager((), []),
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
    if _is_traced():
        return "torch.jit.trace is under way, which records PyTorch's own operators"
    if not norm_modules:
        return None
    if any(stage.norm is None for stage in stages):
        return "some stages have a norm and others have none"
    return norms.why_not_fused(norm_modules)


def needs_own_operators() -> bool:
    """Whether only PyTorch's own operators can run any call at all here."""
    return _is_transformed() or _is_traced()


def _is_traced() -> bool:
    """Whether torch.jit.trace records this call."""
    return not is_compiling() and torch._C._get_tracing_state() is not None


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
