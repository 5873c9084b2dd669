"""Enters the operators: autograd's part, and the way past the dispatcher where nobody listens; called by functional."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from rdk import batched, ops
from rdk.budget import Settled
from rdk.norms import NormTensors

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]  # out, kept maps, means, variances
MaybeOutputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # None for what holds nothing

SECOND_BACKWARD = (
    "rdk: the backward of a recurrent call cannot itself be differentiated (a gradient penalty or a second-order method "
    'asks for that). Use backend="eager", checkpoint="none", which PyTorch\'s autograd differentiates any number of times.'
)

_ORDINARY_TENSORS = (Tensor, nn.Parameter)


def recurrent_fwd(*arguments: Any) -> Outputs:
    """torch.ops.rdk.recurrent_fwd, by way of the dispatcher."""
    _offer_flops()
    result: Outputs = torch.ops.rdk.recurrent_fwd(*arguments)
    return result


def past_dispatcher(
    settled: Settled, x: Tensor, inject: Tensor | None, weights: list[Tensor], biases: list[Tensor], norm: NormTensors
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What recurrent_fwd computes, for a problem that is settled and of tensors that are `unheard`: the output and, with norm,
    means and variances."""
    way, lists = Settlement(settled, norm), [weights, biases, norm.weights, norm.biases]
    run = way.forward if settled.schedule is None else partial(_differentiable, way)
    out, _, means, variances = run(x, inject, lists)
    return out, means, variances


def unheard(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nobody could tell a call of the operator's implementation from one through the dispatcher, which takes tens of
    microseconds over a Python operator of so many arguments: no tracer, mode or profiler is on, and no tensor is of a class or
    device of its own."""
    if is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    if torch._C._autograd._profiler_enabled():
        return False
    for tensor in tensors:
        if tensor is not None and not (type(tensor) in _ORDINARY_TENSORS and (tensor.is_cpu or tensor.is_cuda)):
            return False
    return True


def _offer_flops() -> None:
    """Tells a FlopCounterMode that is under way what the operators compute; to be called before each of them."""
    if not is_compiling() and torch._C._len_torch_dispatch_stack():
        from rdk import flops  # imports triton by way of torch.utils.flop_counter, which import rdk must not

        flops.offer()


class Settlement(NamedTuple):
    """How RecurrentOperator computes past the dispatcher."""

    settled: Settled
    norm: NormTensors

    def forward(self, x: Tensor, inject: Tensor | None, lists: Sequence[list[Tensor]]) -> MaybeOutputs:
        given: list[Any] = [x, inject, *lists, self.norm.eps, self.norm.means, self.norm.variances]
        return ops.forward_settled(self.settled, *given)

    def backward(self, tensors: Sequence[Any], needs: list[bool]) -> Sequence[Tensor | None]:
        """tensors: as recurrent_bwd takes them, lists among them."""
        given: list[Any] = [*tensors, self.norm.eps, needs]
        return ops.backward_settled(self.settled, *given)

    def settings(self) -> tuple[Any, ...]:
        """As recurrent_bwd takes them, from eps to threads."""
        return ops.settings_of(self.settled, self.norm.eps)


class Dispatched(NamedTuple):
    """How RecurrentOperator goes on where the dispatcher called it, with its keys and what follows recurrent_fwd's tensors."""

    keys: Any
    given: tuple[Any, ...]

    def forward(self, x: Tensor, inject: Tensor | None, lists: Sequence[list[Tensor]]) -> MaybeOutputs:
        """Traced or computed, once autograd has had its turn."""
        with torch._C._AutoDispatchBelowAutograd():
            operator = torch.ops.rdk.recurrent_fwd.default
            keys = self.keys & torch._C._after_autograd_keyset
            result: MaybeOutputs = operator.redispatch(keys, x, inject, *lists, *self.given)
            return result

    def backward(self, tensors: Sequence[Any], needs: list[bool]) -> Sequence[Tensor | None]:
        given: list[Any] = [*tensors, *self.settings(), needs]
        grads = ops.run_backward(*given)
        return [grad if need else None for grad, need in zip(grads, needs, strict=True)]

    def settings(self) -> tuple[Any, ...]:
        return self.given[:-3]


class RecurrentOperator(torch.autograd.Function):
    """The operator under autograd, whose tensors are all arguments of their own: where some stand in lists, what
    torch.library.register_autograd makes of them takes longer than the kernels on a small map."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        way: Settlement | Dispatched,
        lengths: list[int],
        x: Tensor,
        inject: Tensor | None,
        *listed: Tensor,
    ) -> MaybeOutputs:
        out, kept, means, variances = way.forward(x, inject, _lists(listed, lengths))
        ctx.way, ctx.lengths = way, lengths
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, inject, out, kept, means, variances, *listed)
        rest = (
            kept if type(way) is Dispatched else None,
            means,
            variances,
        )  # nobody but the dispatcher is given kept maps
        ctx.mark_non_differentiable(*[tensor for tensor in rest if tensor is not None])
        return out, *rest

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        way, lengths, needs = ctx.way, ctx.lengths, list(ctx.needs_input_grad[2:])
        x, inject, out, kept, means, variances, *listed = ctx.saved_tensors
        if grad_out is None:
            return (None,) * (2 + len(needs))
        if batched.is_batched(grad_out):
            eps, iterations, stages, norm_training, return_states, *_ = way.settings()
            asked = batched.backward(
                grad_out, [x, inject, *listed], lengths, needs, means, variances, eps, iterations,
                ops.stages_of(stages), norm_training, return_states,
            )  # fmt: skip
            return (None, None, *asked)
        lists = _lists(listed, lengths)
        if not torch.is_grad_enabled() and unheard((grad_out, x, inject, out, kept, means, variances, *listed)):
            given = (grad_out, x, out, kept, means, variances, inject, *lists)
            return (None, None, *way.backward(given, needs))
        _offer_flops()
        outputs = ops.filled(x, out, kept, means, variances)
        grads = torch.ops.rdk.recurrent_bwd(grad_out, x, *outputs, inject, *lists, *way.settings(), needs)
        return (None, None, *[grad if need else None for grad, need in zip(grads, needs, strict=True)])


def _lists(tensors: Sequence[Tensor], lengths: Sequence[int]) -> list[list[Tensor]]:
    """The operator's lists of tensors, of these lengths, from all of them in a row."""
    parts, start = [], 0
    for length in lengths:
        parts.append(list(tensors[start : start + length]))
        start += length
    return parts


def _from_dispatcher(
    keys: Any,
    x: Tensor,
    inject: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    norm_weights: list[Tensor],
    norm_biases: list[Tensor],
    *settings: Any,
) -> MaybeOutputs:
    lists, way = [weights, biases, norm_weights, norm_biases], Dispatched(keys, settings)
    tensors = [tensor for part in lists for tensor in part]
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, inject, *tensors)):
        return _differentiable(way, x, inject, lists)
    return way.forward(x, inject, lists)


def _differentiable(
    way: Settlement | Dispatched, x: Tensor, inject: Tensor | None, lists: Sequence[list[Tensor]]
) -> MaybeOutputs:
    tensors = [tensor for part in lists for tensor in part]
    result: MaybeOutputs = RecurrentOperator.apply(way, [len(part) for part in lists], x, inject, *tensors)
    return result


def _refuse_second_backward(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(SECOND_BACKWARD)


ops.library.impl("recurrent_fwd", _from_dispatcher, "Autograd", with_keyset=True)
torch.library.register_autograd(
    "rdk::recurrent_bwd", _refuse_second_backward, setup_context=lambda ctx, inputs, output: None, lib=ops.library
)
