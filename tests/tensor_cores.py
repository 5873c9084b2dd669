"""Tensor cores on the CPU: operands rounded to TF32 or 16 bits, their products not; contenders of test_benchmarks_gate.py.

Two kinds of a GPU's arithmetic beside eager's: a library's, where every operation rounds its result to the state's type, and fused
kernels', where a stage rounds once, at its end, and sums of weight gradients stay in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode

from benchmarks.contenders import Contender
from benchmarks.problem import Precision, Prepared, Problem


def tf32(x: Tensor) -> Tensor:
    """float32 rounded to TF32's 10 bits of mantissa, to the nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class _Convolution(torch.autograd.Function):
    """A convolution and its gradients from rounded operands, summed in `total`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d, operand: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.operand, ctx.has_bias = layer, operand, bias is not None
        z = nn.functional.conv2d(operand(x), operand(weight), None, 1, layer.padding, layer.dilation).float()
        return (z if bias is None else z + bias.float().view(1, -1, 1, 1)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        operand, place = ctx.operand, (1, ctx.layer.padding, ctx.layer.dilation)
        grad_x = conv2d_input(x.shape, operand(weight), operand(grad), *place).to(x.dtype)
        grad_weight = conv2d_weight(operand(x), weight.shape, operand(grad), *place).to(weight.dtype)
        grad_bias = grad.float().sum((0, 2, 3)).to(grad.dtype) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias, None, None


class _Rounded(torch.autograd.Function):
    """float32 as `dtype` stores it, the gradient alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype).float(), None


class _StagesRound(TorchFunctionMode):
    """Rounds where a stage of an Oracle ends: behind its ReLU."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return _Rounded.apply(result, self.dtype) if func is torch.relu else result


def _operand(precision: Precision, total: torch.dtype) -> Callable[[Tensor], Tensor]:
    if precision.tf32:
        return lambda x: tf32(x).to(total)
    return lambda x: x.to(precision.dtype).to(total)


def _network(problem: Problem, total: torch.dtype) -> nn.Module:
    network, operand = copy.deepcopy(problem.network), _operand(problem.precision, total)
    for layer in network.layers:
        assert isinstance(layer, nn.Conv2d)
        layer._conv_forward = lambda x, weight, bias, layer=layer: _Convolution.apply(x, weight, bias, layer, operand)
    return network


def _library(problem: Problem, training: bool) -> Prepared:
    network = _network(problem, torch.float32)
    return Prepared(problem, network, network, training)


def _fused(problem: Problem, training: bool) -> Prepared:
    # sums in float64 stand for another order than the library's
    network, dtype = _network(problem, torch.float64), problem.precision.dtype

    def call(x: Tensor, inject: Tensor | None = None) -> Tensor:
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        single = {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
        with _StagesRound(dtype):
            y = functional_call(network, single, (x.float(), None if inject is None else inject.float()))
        return y.to(dtype)

    return Prepared(problem, network, call, training)


LIBRARY, FUSED = Contender("rdk as a library", _library), Contender("rdk as fused kernels", _fused)
# a CPU has no TF32 of its own: eager there is the library
EAGER_TF32 = Contender("eager", _library)
