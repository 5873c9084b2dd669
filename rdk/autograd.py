"""Enters the operators: autograd's part, and the way past the dispatcher where nobody listens; called by functional."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from rdk import batched, ops

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]  # out, kept maps, means, variances

SECOND_BACKWARD = (
    "rdk: the backward of a recurrent call cannot itself be differentiated (a gradient penalty or a second-order method "
    'asks for that). Use backend="eager", checkpoint="none", which PyTorch\'s autograd differentiates any number of times.'
)

_ORDINARY_TENSORS = (Tensor, nn.Parameter)
_ORDINARY_DEVICES = ("cpu", "cuda")


def recurrent_fwd(
    x: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    *settings: Any,
) -> Outputs:
    """torch.ops.rdk.recurrent_fwd, whose last setting says whether a gradient is asked for."""
    lists = [weights, biases, norm_weights, norm_biases]
    tensors = [x, inject, *(tensor for part in lists for tensor in part)]
    if _unheard(tensors):
        return _differentiable(None, lists, settings, tensors) if settings[-1] else _run(x, inject, *lists, *settings)
    _offer_flops()
    result: Outputs = torch.ops.rdk.recurrent_fwd(x, inject, *lists, *settings)
    return result


def _unheard(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nobody could tell a call of the operator's implementation from one through the dispatcher, which takes tens of
    microseconds over a Python operator of so many arguments: no tracer, mode or profiler is on, and no tensor is of a class or
    device of its own."""
    if is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    if torch._C._autograd._profiler_enabled():
        return False
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in _ORDINARY_TENSORS or tensor.device.type not in _ORDINARY_DEVICES
        ):
            return False
    return True


def _run(*arguments: Any) -> Outputs:
    result: Outputs = ops.run_forward(*arguments)
    return result


def _offer_flops() -> None:
    """Tells a FlopCounterMode that is under way what the operators compute; to be called before each of them."""
    if not is_compiling() and torch._C._len_torch_dispatch_stack():
        from rdk import flops  # imports triton by way of torch.utils.flop_counter, which import rdk must not

        flops.offer()


class RecurrentOperator(torch.autograd.Function):
    """The operator under autograd, whose tensors are all arguments of their own: where some stand in lists, what
    torch.library.register_autograd makes of them takes longer than the kernels on a small map."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        keys: Any,
        lengths: list[int],
        settings: tuple[Any, ...],
        x: Tensor,
        inject: Tensor | None,
        *listed: Tensor,
    ) -> Outputs:
        out, kept, means, variances = _below_autograd(keys, x, inject, *_lists(listed, lengths), *settings)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(kept, means, variances)
        ctx.lengths, ctx.settings = lengths, settings[:-3]
        ctx.save_for_backward(x, inject, out, kept, means, variances, *listed)
        return out, kept, means, variances

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        x, inject, out, kept, means, variances, *listed = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[3:])
        if grad_out is None:
            return (None,) * (3 + len(needs))
        if batched.is_batched(grad_out):
            eps, iterations, stages, norm_training, return_states, *_ = ctx.settings
            asked = batched.backward(
                grad_out, [x, inject, *listed], ctx.lengths, needs, means, variances, eps, iterations,
                ops.stages_of(stages), norm_training, return_states,
            )  # fmt: skip
            return (None, None, None, *asked)
        tensors = (grad_out, x, out, kept, means, variances, inject)
        run: Callable[..., list[Tensor]] = ops.run_backward
        if torch.is_grad_enabled() or not _unheard((*tensors, *listed)):
            _offer_flops()
            run = torch.ops.rdk.recurrent_bwd
        grads = run(*tensors, *_lists(listed, ctx.lengths), *ctx.settings, needs)
        return (None, None, None, *[grad if need else None for grad, need in zip(grads, needs, strict=True)])


def _differentiable(
    keys: Any, lists: Sequence[list[Tensor]], settings: tuple[Any, ...], tensors: Sequence[Tensor | None]
) -> Outputs:
    result: Outputs = RecurrentOperator.apply(keys, [len(part) for part in lists], settings, *tensors)
    return result


def _lists(tensors: Sequence[Tensor], lengths: Sequence[int]) -> list[list[Tensor]]:
    """The operator's lists of tensors, of these lengths, from all of them in a row."""
    parts, start = [], 0
    for length in lengths:
        parts.append(list(tensors[start : start + length]))
        start += length
    return parts


def _below_autograd(keys: Any, *arguments: Any) -> Outputs:
    """The operator once autograd has had its turn: traced or computed, as the dispatcher goes on; without keys, which only the
    dispatcher gives, computed here."""
    if keys is None:
        return _run(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        operator = torch.ops.rdk.recurrent_fwd.default
        result: Outputs = operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)
        return result


def _from_dispatcher(
    keys: Any,
    x: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    *settings: Any,
) -> Outputs:
    lists = [weights, biases, norm_weights, norm_biases]
    tensors = [x, inject, *(tensor for part in lists for tensor in part)]
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _differentiable(keys, lists, settings, tensors)
    return _below_autograd(keys, x, inject, *lists, *settings)


def _refuse_second_backward(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(SECOND_BACKWARD)


ops.library.impl("recurrent_fwd", _from_dispatcher, "Autograd", with_keyset=True)
torch.library.register_autograd(
    "rdk::recurrent_bwd", _refuse_second_backward, setup_context=lambda ctx, inputs, output: None, lib=ops.library
)
