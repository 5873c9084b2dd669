"""The backward of a call for a batch of upstream gradients at once (is_grads_batched), in plain PyTorch; called by ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rdk.backends import eager
from rdk.backends.base import StageSpec


def is_batched(grad: Tensor) -> bool:
    """Whether a vmap, torch.func's or that of torch.autograd.grad(…, is_grads_batched=True), is over this gradient."""
    if torch.compiler.is_compiling():  # by compiled autograd, which cannot read these; a batch meets ops' rule for it
        return False
    functorch = torch._C._functorch
    return bool(functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad))


def backward(
    grad_out: Tensor,
    tensors: Sequence[Tensor | None],
    lengths: Sequence[int],
    needs: Sequence[bool],
    means: Tensor | None,
    variances: Tensor | None,
    eps: Sequence[float],
    iterations: int,
    stages: Sequence[StageSpec],
    norm_training: bool,
    return_states: bool,
) -> list[Tensor | None]:
    """The gradients of `tensors`, None where `needs` does not ask: the forward is run again as eager.plain, whose operators
    PyTorch can batch, and keeps every state.

    tensors: x, inject, weights, biases, norm weights and norm biases, the last four as many as `lengths` says; the rest is as
    in the operator. Differentiable where the backward under way is.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(grad_out.device.type, enabled=False):
        # views: a tensor that stands in two places has a gradient in each
        x, inject, *rest = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        lists = []
        for length in lengths:
            lists.append(rest[:length])
            rest = rest[length:]
        weights, biases, norm_weights, norm_biases = lists
        norms: list[Callable[[Tensor], Tensor]] = []
        for row, (weight, bias) in enumerate(zip(norm_weights, norm_biases, strict=True)):
            given = not norm_training and means is not None and variances is not None
            running = (means[row], variances[row]) if given else (None, None)  # type: ignore[index]
            norms.append(partial(_normed, running=running, weight=weight, bias=bias, eps=eps[row]))
        out = eager.plain(x, inject, weights, biases, norms, stages, iterations, return_states)  # type: ignore[arg-type]
        places = [x, inject, *weights, *biases, *norm_weights, *norm_biases]
        wanted = [place for place, need in zip(places, needs, strict=True) if need and place is not None]
        found = iter(torch.autograd.grad(out, wanted, grad_out, create_graph=differentiable))
    return [next(found) if need and place is not None else None for place, need in zip(places, needs, strict=True)]


def _normed(
    z: Tensor,
    running: tuple[Tensor | None, Tensor | None],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    return F.batch_norm(z, *running, weight, bias, running[0] is None, 0.0, eps)
