"""The drop-in modules, called by users; they own parameters and norms and call functional with them, nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from rdk import checks, dispatch, functional
from rdk.arguments import Stage
from rdk.kept import Keeper
from rdk.keys import translate_plain_keys


class StageParameters(nn.Module):
    """The parameters of one stage, under the names that a state_dict shows: weight, bias, norm. It is never called."""

    def __init__(self, shape: tuple[int, ...], owned: int | None, bias: bool, **factory: Any) -> None:
        super().__init__()

        def make(sizes: tuple[int, ...]) -> nn.Parameter | nn.ParameterList:
            if owned is None:
                return nn.Parameter(torch.empty(sizes, **factory))
            return nn.ParameterList([nn.Parameter(torch.empty(sizes, **factory)) for _ in range(owned)])

        self.weight = make(shape)
        if bias:
            self.bias: nn.Parameter | nn.ParameterList | None = make(shape[:1])
        else:
            self.register_parameter("bias", None)
        self.norm: nn.ModuleList | None
        self.register_module("norm", None)

    def reset_parameters(self) -> None:
        """Initialises as nn.Conv2d and nn.Linear do: Kaiming uniform with a = √5, biases uniform within 1/√fan_in."""
        # a computed weight (weight_norm, say) is a tensor and no parameter
        weights = [self.weight] if isinstance(self.weight, torch.Tensor) else list(self.weight)
        biases = [] if self.bias is None else [self.bias] if isinstance(self.bias, torch.Tensor) else list(self.bias)
        for number, weight in enumerate(weights):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            if biases:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(biases[number], -bound, bound)


class Recurrent(nn.Module):
    """What the three modules share: stages, applied `iterations` times. Not for direct use."""

    norm_type: type[nn.BatchNorm1d] | type[nn.BatchNorm2d] = nn.BatchNorm2d

    def __init__(
        self,
        size: int,
        iterations: int,
        weight_shape: tuple[int, ...],
        arrangement: Sequence[tuple[int, bool, int | None]],
        *,
        bias: bool,
        norm: str | None,
        tied: bool,
        checkpoint: str | int,
        memory_budget: int | None,
        backend: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        owner = self._owner = f"rdk.{type(self).__name__}"
        iterations, checkpoint, memory_budget = map(checks.integer, (iterations, checkpoint, memory_budget))
        checks.iterations_and_start(iterations, 0, owner)
        checks.positive(size, "features" if len(weight_shape) == 2 else "channels", owner)
        checks.checkpoint(checkpoint, memory_budget, owner)
        checks.floating_dtype(dtype, owner)
        dispatch.check_name(backend)
        if not tied:
            checks.positive(iterations, "iterations of an untied module", owner)
        if norm not in (None, "batch"):
            raise ValueError(f"{owner}: norm must be None or 'batch', got {norm!r}.")
        self.iterations, self.tied, self.norm = iterations, tied, norm
        self.checkpoint, self.memory_budget, self.backend = checkpoint, memory_budget, backend
        self._arrangement = tuple(arrangement)  # (dilation, relu, skip) per stage
        self._kept = Keeper()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.stages = nn.ModuleList()
        for _ in self._arrangement:
            stage = StageParameters(weight_shape, None if tied else iterations, bias, **factory)
            if norm == "batch":
                stage.norm = nn.ModuleList([self.norm_type(size, **factory) for _ in range(iterations)])
            self.stages.append(stage)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every weight and bias anew, and resets every norm."""
        for stage in self.stages:
            stage.reset_parameters()  # type: ignore[operator]
            for norm in stage.norm or []:  # type: ignore[union-attr]
                norm.reset_parameters()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # no hook: a copy.copy would share that, and the module that it was registered for may be gone
        translate_plain_keys(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[no-untyped-call]

    def functional_stages(self) -> Sequence[Stage]:
        """The stages with their tensors, as rdk.functional.recurrent takes them."""
        container: Any = self._modules["stages"]
        traced = is_compiling()
        if not traced and (stages := self._kept.get(container)) is not None:
            return stages
        found = self._stages_of(container._modules.values())
        if not traced:
            self._kept.keep(container, found)
        return found

    def stages_to_look_at(self) -> Sequence[Stage]:
        """functional_stages for who asks and runs nothing: weights that a hook or a parametrization computes are computed as in
        evaluation mode, by copies whose buffers are their own (spectral_norm advances its vectors in training mode)."""
        return self._stages_of([_in_evaluation(stage, stage.norm) for stage in self.stages])  # type: ignore[arg-type]

    def _stages_of(self, parts: Iterable[Any]) -> list[Stage]:
        found = []
        for stage, (dilation, relu, skip) in zip(parts, self._arrangement, strict=True):
            if stage._forward_pre_hooks or not self.tied:
                _recompute_weights(stage)
            found.append(Stage(stage.weight, stage.bias, stage.norm, dilation, relu, skip))
        return found

    def forward(
        self,
        x: Tensor,
        *,
        iterations: int | None = None,
        start: int = 0,
        inject: Tensor | None = None,
        return_states: bool = False,
    ) -> Tensor:
        """Applies the stages `iterations` times (the module's own number by default), from iteration `start` on.

        x and inject: (N, C, H, W), or (*, F) for RecurrentLinear. Returns the last state, or with return_states the state
        after every iteration, (iterations, *x.shape). Raises as rdk.functional.recurrent.
        """
        return functional.recurrent(
            x,
            self.functional_stages(),
            self.iterations if iterations is None else iterations,
            start=start,
            inject=inject,
            return_states=return_states,
            checkpoint=self.checkpoint,
            memory_budget=self.memory_budget,
            backend=self.backend,
            owner=self._owner,
        )

    def _settings(self) -> list[str]:
        shown = []
        if self.norm is not None:
            shown.append(f"norm={self.norm!r}")
        if not self.tied:
            shown.append("tied=False")
        if self.checkpoint != "auto":
            shown.append(f"checkpoint={self.checkpoint!r}")
        if self.memory_budget is not None:
            shown.append(f"memory_budget={self.memory_budget}")
        if self.backend != "auto":
            shown.append(f"backend={self.backend!r}")
        return shown


def _in_evaluation(part: nn.Module, norm: nn.Module | None) -> nn.Module:
    """A copy in evaluation mode that shares the parameters, and the norm itself; what is written to it does not reach the original.
    A scripted module cannot be copied so and is shared."""
    twin: nn.Module = object.__new__(type(part))
    inside = twin.__dict__  # a module of torch.compile would hand attributes on to the original
    inside.update(part.__dict__)
    inside["_parameters"] = dict(part._parameters)
    inside["_buffers"] = {name: None if value is None else value.clone() for name, value in part._buffers.items()}
    inside["_modules"] = {
        name: child
        if child is None or child is norm or isinstance(child, torch.jit.ScriptModule)
        else _in_evaluation(child, norm)
        for name, child in part._modules.items()
    }
    inside["training"] = False
    return twin


def _recompute_weights(stage: nn.Module) -> None:
    """Computes anew what prune (its subclasses too), weight_norm and spectral_norm of torch.nn.utils would, were the stage called:
    the weight from the parameters behind it. No other hook is run."""
    for part in (stage, stage.weight, stage.bias):  # untied, the last two are ParameterLists
        if isinstance(part, nn.Module):
            for hook in part._forward_pre_hooks.values():
                if any(base.__module__.startswith("torch.nn.utils.") for base in type(hook).__mro__):
                    hook(part, ())  # type: ignore[call-arg, arg-type]


def _dilations(dilation: int | Sequence[int], stages: int, owner: str) -> list[int]:
    dilation = checks.integer(dilation)
    if not isinstance(dilation, (int, Iterable)):
        raise TypeError(
            f"{owner}: dilation must be an integer, or a list with one per stage ({stages}), got {dilation!r}."
        )
    values = [dilation] * stages if isinstance(dilation, int) else [checks.integer(value) for value in dilation]
    if len(values) != stages:
        raise ValueError(f"{owner}: dilation needs one integer, or one per stage ({stages}), got {len(values)} values.")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{owner}: dilation must be an integer of at least 1, got {value!r}.")
    return values


class RecurrentConv(Recurrent):
    """h ← relu([BatchNorm_t](conv3x3(h) + b) [+ inject]), `iterations` times.

    Args:
        channels: C of the state (N, C, H, W), the same in and out.
        iterations: how often the convolution is applied; a call may ask for another number.
        bias: whether the convolution has one.
        norm: None, or "batch" for an own nn.BatchNorm2d per iteration.
        dilation: of the convolution; the padding equals it.
        tied: True shares one weight among all iterations; False gives each its own (the feed-forward twin).
        checkpoint, memory_budget, backend: as in rdk.functional.recurrent.
        device, dtype: of the parameters, as in torch.nn.Conv2d.

    Raises TypeError and ValueError for arguments that do not fit, in a sentence that names the value received.
    Source: the internal module of the ConvNets of Schwarzschild et al. (ICLR 2022).
    """

    def __init__(
        self,
        channels: int,
        iterations: int,
        *,
        bias: bool = True,
        norm: str | None = None,
        dilation: int | Sequence[int] = 1,
        tied: bool = True,
        checkpoint: str | int = "auto",
        memory_budget: int | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = checks.integer(channels)
        (one,) = _dilations(dilation, 1, "rdk.RecurrentConv")
        super().__init__(
            channels,
            iterations,
            (channels, channels, 3, 3),
            [(one, True, None)],
            bias=bias,
            norm=norm,
            tied=tied,
            checkpoint=checkpoint,
            memory_budget=memory_budget,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.channels, self.has_bias, self.dilation = channels, bias, one

    def extra_repr(self) -> str:
        shown = [f"{self.channels}", f"iterations={self.iterations}", f"bias={self.has_bias}"]
        if self.dilation != 1:
            shown.append(f"dilation={self.dilation}")
        return ", ".join(shown + self._settings())


class RecurrentResidual(Recurrent):
    """A stack of BasicBlocks (He et al. 2016: conv, relu, conv, + the block's input, relu), applied `iterations` times.

    Args:
        channels, iterations, bias, norm, tied, checkpoint, memory_budget, backend, device, dtype: as in RecurrentConv.
        blocks: BasicBlocks per iteration, two convolutions each.
        recall: put one linear stage before the blocks (no ReLU, no skip) that takes the inject. With inject = conv_x(x)
            this is conv([h, x]) of the recall networks of Bansal et al. (2022). Without it, inject is added in the first
            convolution's sum.
        dilation: one integer, or one per stage in order (recall stage first).

    Raises TypeError and ValueError for arguments that do not fit, in a sentence that names the value received.
    Source: the internal module of the residual and maze networks of Schwarzschild et al. (ICLR 2022).
    """

    def __init__(
        self,
        channels: int,
        iterations: int,
        *,
        blocks: int = 2,
        recall: bool = False,
        bias: bool = False,
        norm: str | None = None,
        dilation: int | Sequence[int] = 1,
        tied: bool = True,
        checkpoint: str | int = "auto",
        memory_budget: int | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels, blocks = checks.integer(channels), checks.integer(blocks)
        checks.positive(blocks, "blocks", "rdk.RecurrentResidual")
        first = 1 if recall else 0
        each = _dilations(dilation, first + 2 * blocks, "rdk.RecurrentResidual")
        arrangement: list[tuple[int, bool, int | None]] = [(each[0], False, None)] if recall else []
        for block in range(first, first + 2 * blocks, 2):
            arrangement += [(each[block], True, None), (each[block + 1], True, block)]
        super().__init__(
            channels,
            iterations,
            (channels, channels, 3, 3),
            arrangement,
            bias=bias,
            norm=norm,
            tied=tied,
            checkpoint=checkpoint,
            memory_budget=memory_budget,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.channels, self.blocks, self.recall, self.has_bias, self.dilation = channels, blocks, recall, bias, each

    def extra_repr(self) -> str:
        shown = [f"{self.channels}", f"iterations={self.iterations}", f"blocks={self.blocks}", f"bias={self.has_bias}"]
        if self.recall:
            shown.append("recall=True")
        if set(self.dilation) != {1}:
            same = len(set(self.dilation)) == 1
            shown.append(f"dilation={self.dilation[0] if same else self.dilation}")
        return ", ".join(shown + self._settings())


class RecurrentLinear(Recurrent):
    """h ← relu([BatchNorm_t](h Wᵀ + b) [+ inject]), `iterations` times, for a state (*, F).

    Args:
        features: F, the same in and out.
        iterations, bias, norm, tied, checkpoint, memory_budget, backend, device, dtype: as in RecurrentConv; the norm
            is an nn.BatchNorm1d over all dimensions but the last.

    Raises TypeError and ValueError for arguments that do not fit, in a sentence that names the value received.
    Source: the MLPs of Schwarzschild et al. (ICLR 2022).
    """

    norm_type = nn.BatchNorm1d

    def __init__(
        self,
        features: int,
        iterations: int,
        *,
        bias: bool = True,
        norm: str | None = None,
        tied: bool = True,
        checkpoint: str | int = "auto",
        memory_budget: int | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        features = checks.integer(features)
        super().__init__(
            features,
            iterations,
            (features, features),
            [(1, True, None)],
            bias=bias,
            norm=norm,
            tied=tied,
            checkpoint=checkpoint,
            memory_budget=memory_budget,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.features, self.has_bias = features, bias

    def extra_repr(self) -> str:
        shown = [f"{self.features}", f"iterations={self.iterations}", f"bias={self.has_bias}"]
        return ", ".join(shown + self._settings())
