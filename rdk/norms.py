"""BatchNorm per iteration: which norm modules the operator can take, and the update of running statistics; called by functional."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d)


class NormTensors(NamedTuple):
    """The tensors of all norms, iteration-major, as the operator takes them; empty lists without norm."""

    weights: list[Tensor]
    biases: list[Tensor]
    means: list[Tensor]  # running statistics; empty when training
    variances: list[Tensor]
    eps: list[float]
    training: bool


NO_NORM = NormTensors([], [], [], [], [], False)


def why_not_fused(norms: Sequence[nn.Module]) -> str | None:
    """Why the operator cannot stand in for these norm modules, so that they are called as they are; None where it can."""
    for norm in norms:
        if type(norm) not in PLAIN_TYPES:
            return f"a norm is a {type(norm).__name__}, which is called as it is"
        assert isinstance(norm, _BatchNorm)
        if norm.weight is None or norm.bias is None:
            return "a BatchNorm has affine=False or bias=False"
        if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks:
            return "a norm has hooks, so that it is called as it is"
    if len({uses_batch_statistics(norm) for norm in norms}) > 1:
        return "some BatchNorms are in training mode and others are not"
    return None


def uses_batch_statistics(norm: nn.Module) -> bool:
    """Whether a BatchNorm normalises by the batch at hand, not by its running statistics."""
    return norm.training or norm.running_mean is None


def parameters_of(norm: nn.Module) -> Iterable[Tensor]:
    """All parameters; those of a plain BatchNorm without a walk through modules that it does not have."""
    if type(norm) in PLAIN_TYPES:
        return [parameter for parameter in norm._parameters.values() if parameter is not None]
    return norm.parameters()


def gather(norms: Sequence[nn.Module], state: Tensor) -> NormTensors:
    """The tensors of norms that `why_not_fused` lets pass; affine parameters are float32 (float64 for a float64 state)."""
    if not norms:
        return NO_NORM
    training = uses_batch_statistics(norms[0])
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    weights: list[Tensor] = [norm.weight for norm in norms]  # type: ignore[misc]
    biases: list[Tensor] = [norm.bias for norm in norms]  # type: ignore[misc]
    weights, biases = ([_in_dtype(tensor, dtype) for tensor in part] for part in (weights, biases))
    eps = [float(norm.eps) for norm in norms]  # type: ignore[arg-type]
    if training:
        return NormTensors(weights, biases, [], [], eps, True)
    means: list[Tensor] = [norm.running_mean for norm in norms]  # type: ignore[misc]
    variances: list[Tensor] = [norm.running_var for norm in norms]  # type: ignore[misc]
    return NormTensors(weights, biases, means, variances, eps, False)


@torch.no_grad()
def update_running_statistics(norms: Sequence[nn.Module], means: Tensor, variances: Tensor, values: int) -> None:
    """What nn.BatchNorm does to its buffers in training mode, from the statistics of one forward.

    means, variances: (norms, C), variances biased; values: how many each was taken over.
    """
    unbiased = variances * (values / (values - 1))
    for norm, mean, variance in zip(norms, means.unbind(0), unbiased.unbind(0), strict=True):
        assert isinstance(norm, _BatchNorm)
        running_mean, running_var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
        if not (norm.training and norm.track_running_stats) or running_mean is None or running_var is None:
            continue
        factor: float | Tensor = 0.0 if norm.momentum is None else norm.momentum
        if batches is not None:
            batches.add_(1)
            if norm.momentum is None:
                factor = 1.0 / batches.to(running_mean.dtype)
        running_mean.lerp_(_in_dtype(mean, running_mean.dtype), factor)
        running_var.lerp_(_in_dtype(variance, running_var.dtype), factor)


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
