"""The way past PyTorch's dispatcher: the same numbers as through it, and never taken where somebody listens there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_cases import needs_cpu_backend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rdk
from rdk import autograd, ops
from rdk.testing import step

FORWARD, BACKWARD = "rdk::recurrent_fwd", "rdk::recurrent_bwd"


class Log(TorchDispatchMode):
    """Writes down every operator that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(function._schema.name)
        return function(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    """A class of its own, whose operators PyTorch hands to it."""

    heard: list[str]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.heard.append(str(function))
        return super().__torch_function__(function, types, args, kwargs or {})


def ways_taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Filled with one entry per entrance of an operator from here on: whether it went past the dispatcher."""
    taken: list[bool] = []
    decide = autograd.unheard

    def note(tensors: Any) -> bool:
        taken.append(decide(tensors))
        return taken[-1]

    monkeypatch.setattr(autograd, "unheard", note)
    return taken


CASES: list[tuple[Any, dict[str, Any], dict[str, Any], bool]] = [
    (rdk.RecurrentConv, {}, {}, False),
    (rdk.RecurrentConv, {"tied": False, "checkpoint": 1}, {}, False),
    (rdk.RecurrentResidual, {"norm": "batch", "checkpoint": "sqrt"}, {}, False),
    (rdk.RecurrentResidual, {"recall": True, "bias": True}, {"return_states": True}, True),
]


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=needs_cpu_backend)])
@pytest.mark.parametrize("kind,keywords,asked,injected", CASES)
def test_both_ways_give_the_same_bits(
    kind: Any, keywords: dict[str, Any], asked: dict[str, Any], injected: bool, backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    module = kind(6, 3, backend=backend, **{"checkpoint": 1, **keywords})
    x = torch.randn(2, 6, 7, 5)
    if injected:
        asked = asked | {"inject": torch.randn(2, 6, 7, 5)}
    taken = ways_taken(monkeypatch)
    past = step(module, x, **asked)
    with torch.no_grad():
        alone = module(x, **asked)
    assert taken == [True] * (2 if backend == "eager" else 3)  # without a gradient to take, eager is no operator
    monkeypatch.setattr(autograd, "unheard", lambda tensors: False)
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.reset_running_stats()
    through = step(module, x, **asked)
    with torch.no_grad():
        assert torch.equal(alone, module(x, **asked))
    assert past.keys() == through.keys() and len(past) >= 3
    for name in past:
        assert torch.equal(past[name], through[name]), name


def test_a_mode_hears_both_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = rdk.RecurrentConv(6, 3, checkpoint=1, backend="eager"), torch.randn(2, 6, 7, 5, requires_grad=True)
    taken = ways_taken(monkeypatch)
    with Log() as log:
        module(x).sum().backward()
    assert {FORWARD, BACKWARD} <= set(log.heard) and taken == [False, False]
    y = module(x)  # a mode that begins between the two hears what comes after
    with Log() as log:
        y.sum().backward()
    assert BACKWARD in log.heard and FORWARD not in log.heard


def test_a_mode_of_functions_hears_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            heard.append(str(function))
            return function(*args, **(kwargs or {}))

    module, x = rdk.RecurrentConv(6, 3, checkpoint=1, backend="eager"), torch.randn(2, 6, 7, 5)
    taken = ways_taken(monkeypatch)
    with Functions():
        module(x)
    assert taken == [False] and any("recurrent_fwd" in name for name in heard)


def test_a_profiler_shows_both_operators() -> None:
    module, x = rdk.RecurrentConv(6, 3, checkpoint=1, backend="eager"), torch.randn(2, 6, 7, 5, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        module(x).sum().backward()
    assert {FORWARD, BACKWARD} <= {event.key for event in seen.key_averages()}


def test_a_tensor_of_a_class_of_its_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = rdk.RecurrentConv(6, 3, checkpoint=1, backend="eager")
    x = torch.randn(2, 6, 7, 5)
    Marked.heard = []
    taken = ways_taken(monkeypatch)
    y = module(x.as_subclass(Marked))
    assert taken == [False] and any("recurrent_fwd" in name for name in Marked.heard)
    assert type(y) is Marked and torch.equal(y.as_subclass(torch.Tensor), module(x))


def test_a_meta_tensor_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = rdk.RecurrentConv(6, 3, checkpoint=1, backend="eager", device="meta")
    taken = ways_taken(monkeypatch)
    y = module(torch.empty(2, 6, 7, 5, device="meta"))
    assert taken == [False] and y.is_meta and y.shape == (2, 6, 7, 5)


def test_a_second_backward_is_refused() -> None:
    module, x = rdk.RecurrentConv(6, 3, checkpoint=1, backend="eager"), torch.randn(2, 6, 7, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    assert grad.requires_grad
    with pytest.raises(RuntimeError, match="cannot itself be differentiated"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=needs_cpu_backend)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("return_states", [False, True])
def test_gradients_become_grad_without_a_copy_and_are_nobody_elses_memory(
    backend: str, tied: bool, norm: str | None, return_states: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd takes a gradient as it is where nobody else holds the tensor, so two that share memory would change together."""
    made: list[int] = []
    run = ops.backward_settled

    def note(*arguments: Any) -> list[torch.Tensor | None]:
        gradients: list[torch.Tensor | None] = run(*arguments)
        made.extend(gradient.data_ptr() for gradient in gradients if gradient is not None)
        return gradients

    monkeypatch.setattr(ops, "backward_settled", note)
    module = rdk.RecurrentResidual(6, 2, tied=tied, norm=norm, bias=True, checkpoint=1, backend=backend)
    x, inject = (torch.randn(2, 6, 5, 4, requires_grad=True) for _ in range(2))
    y = module(x, inject=inject, return_states=return_states)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    grads = [tensor.grad for tensor in (x, inject, *module.parameters())]
    assert [grad.data_ptr() for grad in grads if grad is not None] and len(made) == len(grads)
    assert {grad.data_ptr() for grad in grads if grad is not None} == set(made)
    memory = [tensor.untyped_storage().data_ptr() for tensor in (x, inject, y, upstream, *grads) if tensor is not None]
    assert len(set(memory)) == len(memory)
