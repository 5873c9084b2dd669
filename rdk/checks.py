"""Checks of arguments, each with a sentence that names the value received; called by arguments, functional, preview, modules."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rdk.norms import PLAIN_TYPES, uses_batch_statistics

if TYPE_CHECKING:
    from rdk.arguments import Stage

CHECKPOINT_WORDS = ("auto", "none", "sqrt")


def integer(value: Any) -> Any:
    """A plain int for an integer of another kind (numpy's, say), whatever has __index__; all else as it is, for the checks to
    refuse."""
    if type(value) is int or isinstance(value, (bool, str, torch.SymInt)) or not hasattr(value, "__index__"):
        return value
    try:
        return operator.index(value)
    except TypeError:  # an array of many, numpy's bool
        return value


def iterations_and_start(iterations: Any, start: Any, owner: str) -> None:
    """Raises TypeError for what is no integer and ValueError for a negative one."""
    for name, value in (("iterations", iterations), ("start", start)):
        if type(value) is int and value >= 0:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{owner}: {name} must be an integer, got {value!r} of type {type(value).__name__}.")
        if value < 0:
            raise ValueError(f"{owner}: {name} must not be negative, got {value}.")


def boolean(value: Any, name: str, owner: str) -> None:
    """Raises TypeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be True or False, got {value!r} of type {type(value).__name__}.")


def positive(value: Any, name: str, owner: str) -> None:
    """Raises TypeError for what is no integer and ValueError for one below 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r} of type {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{owner}: {name} must be at least 1, got {value}.")


def state(x: Any, weight: Tensor, owner: str) -> None:
    """Raises TypeError for what is no floating-point tensor, ValueError for a shape that the weight does not fit."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: the input must be a torch.Tensor, got {type(x).__name__}.")
    features = weight.shape[-1] if weight.dim() == 2 else weight.shape[1]
    if weight.dim() == 4 and x.dim() != 4:
        raise ValueError(
            f"{owner}: the input must be 4-d, (N, C, H, W), got shape {tuple(x.shape)}. A single image needs x[None]."
        )
    if weight.dim() == 2 and x.dim() == 0:
        raise ValueError(f"{owner}: the input must have at least one dimension, (*, F), got a scalar.")
    got = x.shape[1] if weight.dim() == 4 else x.shape[-1]
    if got != features:
        noun = "channels" if weight.dim() == 4 else "features"
        raise ValueError(f"{owner}: the input has {got} {noun}, the layer was built for {features}.")
    if not x.dtype.is_floating_point:
        raise TypeError(
            f"{owner}: the input must have a floating-point dtype, got {x.dtype}. Convert it with x.float()."
        )


def same_device(
    x: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_modules: Sequence[nn.Module],
    owner: str,
) -> None:
    """Raises ValueError for a tensor, those of norms among them, on another device than the input."""
    device = x.device
    held: list[Tensor] = []
    for norm in norm_modules:
        if type(norm) in PLAIN_TYPES:  # others are called, and say so themselves
            own = (getattr(norm, name, None) for name in ("weight", "bias", "running_mean", "running_var"))
            held += [tensor for tensor in own if tensor is not None]
    for name, tensors in [*_named(inject, weights, biases), ("a norm", held)]:
        for tensor in tensors:
            if tensor.device != device:
                raise ValueError(
                    f"{owner}: the input is on {device}, {name} on {tensor.device}. Move one of them with .to(device)."
                )


def same_dtype(x: Tensor, inject: Tensor | None, weights: list[Tensor], biases: list[Tensor], owner: str) -> None:
    """Raises TypeError for a tensor of another dtype than the input."""
    dtype = x.dtype
    for name, tensors in _named(inject, weights, biases):
        for tensor in tensors:
            if tensor.dtype != dtype:
                # autocast leaves float64 alone
                casts = torch.float64 not in (dtype, tensor.dtype)
                raise TypeError(
                    f"{owner}: the input has dtype {dtype}, {name} has {tensor.dtype}. "
                    f"Convert one of them{', or run under torch.autocast' if casts else ''}."
                )


def no_mixed_distribution(
    x: Tensor, inject: Tensor | None, weights: list[Tensor], biases: list[Tensor], plain: bool, owner: str
) -> None:
    """Raises TypeError where some tensors are DTensors and others not, or where all are and no operator of PyTorch's runs."""
    given = [("the input", x)] + [
        (name, tensor) for name, tensors in _named(inject, weights, biases) for tensor in tensors
    ]
    spread = [_is_dtensor(tensor) for _, tensor in given]
    if not any(spread):
        return
    if not all(spread):
        name = given[spread.index(not spread[0])][0]
        kinds = ("a DTensor", "a torch.Tensor") if spread[0] else ("a torch.Tensor", "a DTensor")
        raise TypeError(
            f"{owner}: the input is {kinds[0]}, {name} is {kinds[1]}. Apply fully_shard to the whole rdk module or to one around "
            f"it, which gathers the parameters for a call, and not to a stage, which is never called; or make DTensors of all."
        )
    if not plain:
        raise TypeError(
            f"{owner}: the tensors are DTensors, which only PyTorch's own operators take. Use backend='eager' with "
            f"checkpoint='none', or fully_shard on the whole rdk module, which gathers the parameters for a call."
        )


def _is_dtensor(tensor: Tensor) -> bool:
    """Whether this is a torch.distributed.tensor.DTensor; importing that for a check would take long."""
    return (
        type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")
    )


def parameters(weights: Sequence[Any], biases: Sequence[Any], shape: torch.Size, owner: str) -> None:
    """Raises TypeError for a weight or bias (None aside) that is no tensor, ValueError where it has another shape than the
    first weight's asks for."""
    for name, tensors, expected in (("a weight", weights, shape), ("a bias", biases, shape[:1])):
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                if tensor is None and name == "a bias":
                    continue
                raise TypeError(
                    f"{owner}: {name} must be a torch.Tensor, or a list of them, one per iteration; got {_kind(tensor)}."
                )
            if tensor.shape != expected:
                raise ValueError(
                    f"{owner}: {name} has shape {tuple(tensor.shape)}; expected {tuple(expected)}, as every stage and "
                    f"iteration keeps the shape of the state."
                )


def _named(inject: Tensor | None, weights: list[Tensor], biases: list[Tensor]) -> list[tuple[str, list[Tensor]]]:
    """The tensors of a call beside the input, as error messages name them."""
    return [("the weight", weights), ("the bias", biases), ("inject", [] if inject is None else [inject])]


def inject(value: Any, x: Tensor, owner: str) -> None:
    """Raises TypeError for what is no tensor and ValueError for a shape that is not the input's."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{owner}: inject must be a torch.Tensor, got {type(value).__name__}.")
    if value.shape != x.shape:
        raise ValueError(f"{owner}: inject must have the input's shape {tuple(x.shape)}, got {tuple(value.shape)}.")


def checkpoint(value: Any, memory_budget: Any, owner: str) -> tuple[str, int]:
    """The kind and amount of a checkpoint setting, as the planner takes them: ("none" | "sqrt" | "states" | "budget", amount).

    Raises TypeError for a value of the wrong type, ValueError for an unknown word, a negative number, or both settings at once.
    """
    value, memory_budget = integer(value), integer(memory_budget)
    if isinstance(value, bool) or not isinstance(value, (str, int, torch.SymInt)):
        raise TypeError(f"{owner}: checkpoint must be one of {CHECKPOINT_WORDS} or an integer, got {value!r}.")
    if isinstance(value, str) and value not in CHECKPOINT_WORDS:
        raise ValueError(f"{owner}: checkpoint must be one of {CHECKPOINT_WORDS} or an integer, got {value!r}.")
    if not isinstance(value, str) and value < 0:
        raise ValueError(f"{owner}: checkpoint must not be negative, got {value}.")
    if memory_budget is not None:
        if isinstance(memory_budget, bool) or not isinstance(memory_budget, (int, torch.SymInt)):
            raise TypeError(f"{owner}: memory_budget must be a number of bytes (an integer), got {memory_budget!r}.")
        if memory_budget < 0:
            raise ValueError(f"{owner}: memory_budget must not be negative, got {memory_budget}.")
        if value != "auto":
            raise ValueError(f"{owner}: give checkpoint={value!r} or memory_budget={memory_budget}, not both.")
        return "budget", cast(int, memory_budget)
    if isinstance(value, str):
        return ("none" if value == "auto" else value), 0
    return "states", cast(int, value)


def norms(values: Sequence[Any], x: Tensor, owner: str) -> None:
    """Raises TypeError for what is no module; ValueError for a BatchNorm that does not fit the state and, as nn.BatchNorm
    does, where a batch has one value per channel only."""
    plain, channels, training = PLAIN_TYPES[0 if x.dim() == 2 else 1], x.shape[1], False
    for norm in values:
        if type(norm) in PLAIN_TYPES:
            if type(norm) is not plain or norm.num_features != channels:
                raise ValueError(
                    f"{owner}: a norm must be nn.{plain.__name__}({channels}), as the state has that many channels, "
                    f"got nn.{type(norm).__name__}({norm.num_features})."
                )
            training = training or uses_batch_statistics(norm)
        elif not isinstance(norm, nn.Module):
            raise TypeError(f"{owner}: a norm must be a module such as nn.{plain.__name__}, got {_kind(norm)}.")
    if training and x.numel() // channels == 1:
        raise ValueError(
            f"{owner}: BatchNorm in training mode needs more than one value per channel, got a state of shape "
            f"{tuple(x.shape)}. Use a larger batch or map, or module.eval()."
        )


def owned(stage: Stage, number: int, start: int, iterations: int, owner: str) -> None:
    """Raises ValueError where a run of iterations needs more weights or norms than a stage owns."""
    for what, values in (("untied weights", stage.weight), ("untied biases", stage.bias), ("norms", stage.norm)):
        if values is None or isinstance(values, Tensor):
            continue
        if start + iterations > len(values):
            run = f"iterations={iterations}" + (f" from start={start}" if start else "")
            raise ValueError(
                f"{owner}: {run} needs {start + iterations} {what}, but stage {number} owns {len(values)}, one per "
                f"iteration. Ask for at most {max(len(values) - start, 0)} iterations here, or build it with more."
            )


def stages(values: Any, stage_type: type[Stage], owner: str) -> None:
    """Raises TypeError for what is no sequence of stages and for a field of the wrong type, ValueError where stages do not
    fit together."""
    if isinstance(values, stage_type) or not isinstance(values, (list, tuple, Sequence)):
        raise TypeError(
            f"{owner}: stages must be a list of rdk.functional.Stage, got {_kind(values)}. Put a single stage in a list."
        )
    if not values:
        raise ValueError(f"{owner}: stages is empty; give at least one rdk.functional.Stage.")
    for number, stage in enumerate(values):
        if not isinstance(stage, stage_type):
            raise TypeError(
                f"{owner}: stage {number} must be an rdk.functional.Stage, got {_kind(stage)}. rdk.from_module takes layers."
            )
        _sequence(stage.weight, "weight", "a torch.Tensor, or a list of them, one per iteration", number, owner)
        if stage.bias is not None:
            _sequence(stage.bias, "bias", "None, a torch.Tensor, or a list of them, one per iteration", number, owner)
        if stage.norm is not None:
            _sequence(stage.norm, "norm", "None or a list of modules, one per iteration", number, owner)
        if not isinstance(stage.weight, Tensor) and len(stage.weight) == 0:
            raise ValueError(f"{owner}: stage {number} owns no weight; an untied stage needs one per iteration.")
        weight = stage.first_weight()
        if not isinstance(weight, Tensor):
            raise TypeError(
                f"{owner}: weight must be a torch.Tensor, or a list of them, one per iteration; stage {number} has a list "
                f"with {_kind(weight)}."
            )
        shape = weight.shape
        if len(shape) not in (2, 4) or shape[0] != shape[1] or shape[2:] not in ((), (3, 3)):
            raise ValueError(
                f"{owner}: a weight must be (C, C, 3, 3) or (F, F); stage {number} has shape {tuple(shape)}. A stage keeps the "
                f"shape of its input."
            )
        if not isinstance(stage.relu, bool):
            raise TypeError(f"{owner}: relu must be True or False, got {stage.relu!r} in stage {number}.")
        dilation, skip = integer(stage.dilation), integer(stage.skip)
        if type(dilation) is not int or dilation < 1:
            raise ValueError(
                f"{owner}: dilation must be an integer of at least 1, got {stage.dilation!r} in stage {number}."
            )
        if skip is not None and type(skip) is not int:
            raise TypeError(f"{owner}: skip must be None or an integer, got {stage.skip!r} in stage {number}.")
        if skip is not None and not 0 <= skip <= number:
            raise ValueError(
                f"{owner}: skip names the stage whose input is added, 0 to {number} in stage {number}, got {stage.skip}."
            )


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def input_shape(value: Any, owner: str) -> tuple[int, ...]:
    """The shape in plain ints. Raises TypeError for what is no sequence of integers, ValueError for a negative one."""
    sizes: list[Any] = [None]
    if isinstance(value, Sequence) and not isinstance(value, str):
        sizes = [integer(size) for size in value]
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise TypeError(
            f"{owner}: input_shape must be a sequence of integers, (N, C, H, W) or (*, F), got {_shown(value)}. For a "
            f"tensor give its shape."
        )
    if any(size < 0 for size in sizes):
        raise ValueError(f"{owner}: input_shape must not hold a negative size, got {tuple(value)}.")
    return tuple(sizes)


def floating_dtype(value: Any, owner: str) -> None:
    """Raises TypeError for what is neither None nor a floating-point dtype."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(f"{owner}: dtype must be a floating-point torch.dtype such as torch.float32, got {value!r}.")


def _sequence(value: Any, field: str, expected: str, number: int, owner: str) -> None:
    """Raises TypeError for a field of a stage that is no sequence; a weight or bias may also be a tensor."""
    if isinstance(value, Tensor) and field != "norm":
        return
    if not isinstance(value, (nn.ModuleList if field == "norm" else nn.ParameterList, list, tuple, Sequence)):
        raise TypeError(f"{owner}: {field} must be {expected}; stage {number} has {_kind(value)}.")


def _kind(value: Any) -> str:
    """What came, as a message names it: the value itself where it is short, else its type."""
    short = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if short else f"an object of type {type(value).__name__}"
