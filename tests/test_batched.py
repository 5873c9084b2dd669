"""A batch of upstream gradients at once: is_grads_batched, jacobian(vectorize=True), vmap over torch.autograd.grad."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_cases import needs_cpu_backend
from torch import Tensor

import rdk
from rdk.testing import relative

CASES: list[tuple[Any, dict[str, Any]]] = [
    (rdk.RecurrentConv, {"checkpoint": 1, "bias": False}),
    (rdk.RecurrentResidual, {"checkpoint": "sqrt", "norm": "batch", "recall": True}),
    (rdk.RecurrentConv, {"checkpoint": 2, "tied": False, "dilation": 2}),
    (rdk.RecurrentLinear, {"checkpoint": 1}),
]


@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cls,kw", CASES)
def test_each_gradient_of_a_batch_is_that_of_its_own_backward(
    cls: Any, kw: dict[str, Any], training: bool, return_states: bool
) -> None:
    module = cls(4, 3, **kw).double().train(training)
    shape = (5, 4) if cls is rdk.RecurrentLinear else (2, 4, 6, 5)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = module(x, inject=x, return_states=return_states)  # x stands in two places
    upstream = torch.randn(3, *y.shape, dtype=torch.float64)
    inputs = [x, *list(module.parameters())[1:]]  # the first is not asked for
    found = torch.autograd.grad(y, inputs, upstream, is_grads_batched=True, retain_graph=True)
    for number in range(3):
        expected = torch.autograd.grad(y, inputs, upstream[number], retain_graph=True)
        for got, wanted in zip(found, expected, strict=True):
            assert relative(got[number], wanted) < 1e-11


@needs_cpu_backend
def test_jacobian_of_the_cpu_backend_can_be_vectorized() -> None:
    module = rdk.RecurrentConv(16, 10, backend="cpu").requires_grad_(False)
    x = torch.randn(1, 16, 24, 24)

    def sums(a: Tensor) -> Tensor:
        return module(a).sum((2, 3))

    found = torch.autograd.functional.jacobian(sums, x, vectorize=True)
    assert relative(found, torch.autograd.functional.jacobian(sums, x)) < 1e-4
    a = x.clone().requires_grad_()
    y = sums(a)
    rows = torch.func.vmap(lambda v: torch.autograd.grad(y, a, v, retain_graph=True)[0])(
        torch.eye(16).reshape(16, 1, 16)
    )
    assert relative(rows, found[0]) < 1e-4


def test_a_batch_of_gradients_can_be_differentiated_again() -> None:
    module = rdk.RecurrentConv(4, 3, checkpoint=1).double()
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 1, 4, 5, 5, dtype=torch.float64)

    def second() -> Tensor:
        (grad,) = torch.autograd.grad(module(x), x, upstream, is_grads_batched=True, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), module.stages[0].weight)[0]

    found = second()
    module.backend, module.checkpoint = "eager", "none"
    assert relative(found, second()) < 1e-11


def test_a_compiled_module_says_that_it_takes_one_gradient_at_a_time() -> None:
    torch.compiler.reset()
    compiled = torch.compile(rdk.RecurrentConv(4, 3, checkpoint=1), backend="aot_eager")
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    y = compiled(x)
    with pytest.raises(RuntimeError, match="a compiled rdk module takes one upstream gradient at a time"):
        torch.autograd.grad(y, x, torch.randn(2, *y.shape), is_grads_batched=True)
    torch.compiler.reset()
