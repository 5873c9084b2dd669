"""Which backend and schedule a memory budget gets: "auto" keeps a budget that its backend or eager can keep."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import needs_cpu_backend

import rdk
from rdk import measured
from rdk.testing import assert_close, peak_bytes, plain_eager, step

pytestmark = needs_cpu_backend

# few pixels and many channels: transformed filters are four times as large as the weight, and eager holds no such thing
SHAPE = (1, 256, 8, 8)


@pytest.fixture(autouse=True)
def _cpu_is_ahead(monkeypatch: pytest.MonkeyPatch, decided_anew: None) -> None:
    """Every backend counts as measured ahead of eager, so "auto" takes the cpu backend."""
    monkeypatch.setattr(measured, "slower_than_eager", lambda name, problem, layout: None)


def smallest(backend: str, return_states: bool = False) -> int:
    module = rdk.RecurrentConv(SHAPE[1], 4, memory_budget=1, backend=backend)
    with pytest.raises(rdk.BudgetError) as caught:
        rdk.plan(module, SHAPE, return_states=return_states)
    return int(str(caught.value).split("smallest that fits this call is ")[1].split()[0])


def test_auto_takes_eager_for_a_budget_that_only_eager_keeps() -> None:
    assert smallest("eager") < smallest("cpu")
    torch.manual_seed(0)
    module = rdk.RecurrentConv(SHAPE[1], 4, memory_budget=smallest("cpu"))
    x = torch.randn(SHAPE)
    assert rdk.plan(module, SHAPE).backend == "cpu"
    module.memory_budget = smallest("cpu") - 1
    assert rdk.plan(module, SHAPE).backend == "eager"
    explained = rdk.explain(module, x)
    assert explained.forward == "eager" and "eager" not in explained.reasons
    assert explained.reasons["cpu"] == (
        f"memory_budget is {module.memory_budget} bytes, and it needs {smallest('cpu')} bytes at least"
    )
    module.memory_budget = smallest("eager")
    assert_close(step(module, x), step(plain_eager(module), x), 1e-6)
    parameters = sum(p.numel() * p.element_size() for p in module.parameters())
    maps = 4 * x.numel() * x.element_size()  # the input, the output and their gradients
    x.requires_grad_()
    assert peak_bytes(lambda: module(x).sum().backward()) <= module.memory_budget + parameters + maps


def test_a_named_backend_is_not_replaced() -> None:
    module = rdk.RecurrentConv(SHAPE[1], 4, memory_budget=smallest("cpu") - 1, backend="cpu")
    with pytest.raises(rdk.BudgetError, match=f"the smallest that fits this call is {smallest('cpu')} bytes"):
        module(torch.randn(SHAPE))


@pytest.mark.parametrize("return_states", [False, True])
def test_the_error_names_the_smaller_budget_of_both_backends(return_states: bool) -> None:
    least = min(smallest(name, return_states) for name in ("cpu", "eager"))
    assert smallest("auto", return_states) == least
    rdk.plan(rdk.RecurrentConv(SHAPE[1], 4, memory_budget=least), SHAPE, return_states=return_states)


def test_without_gradients_a_budget_changes_nothing() -> None:
    module = rdk.RecurrentConv(SHAPE[1], 4, memory_budget=1)
    with torch.no_grad():
        assert rdk.explain(module, torch.randn(SHAPE)).forward == "cpu"


@pytest.mark.slow
def test_a_compiled_module_takes_eager_for_it_too() -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentConv(SHAPE[1], 4, memory_budget=smallest("eager"))
    x = torch.randn(SHAPE)
    expected = step(plain_eager(module), x)
    module.compile(fullgraph=True)
    assert_close(step(module, x), expected, 1e-6)
