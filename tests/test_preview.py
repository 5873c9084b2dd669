"""rdk.plan and rdk.explain: what they say of a call is what the call does, and where it raises they raise the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_dispatch import X, missing_backend
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

import rdk
from rdk import autograd, budget, measured, recompute

LARGE = torch.randn(2, 16, 14, 14)  # with four iterations too large to count as tiny


def with_norm(other: nn.Module, **kw: Any) -> rdk.RecurrentConv:
    module = rdk.RecurrentConv(16, 4, norm="batch", **kw)
    for t in range(4):
        module.stages[0].norm[t] = other  # type: ignore[index, union-attr]
    return module


RAISING: list[tuple[str, Callable[[], Any], tuple[int, ...]]] = [
    ("norm of another type, states kept", lambda: with_norm(nn.Identity(), checkpoint=1), LARGE.shape),
    ("norm of another type, named backend", lambda: with_norm(nn.Identity(), backend="cpu"), LARGE.shape),
    ("no affine, sqrt", lambda: with_norm(nn.BatchNorm2d(16, affine=False), checkpoint="sqrt"), LARGE.shape),
    ("budget", lambda: rdk.RecurrentConv(16, 9, memory_budget=10), LARGE.shape),
    ("one value a channel", lambda: rdk.RecurrentConv(64, 9, norm="batch", checkpoint=1), (1, 64, 1, 1)),
]


@pytest.mark.parametrize("make,shape", [case[1:] for case in RAISING], ids=[case[0] for case in RAISING])
def test_explain_and_plan_raise_where_the_call_does(make: Callable[[], Any], shape: tuple[int, ...]) -> None:
    module, x = make(), torch.randn(shape)
    with pytest.raises((ValueError, rdk.BackendError)) as call:
        module(x)
    with pytest.raises(call.type) as explained:
        rdk.explain(module, x)
    with pytest.raises(call.type) as planned:
        rdk.plan(module, shape)
    assert str(explained.value) == str(call.value)
    assert str(planned.value).split(": ", 1)[1] == str(call.value).split(": ", 1)[1]  # but for the caller's name


@pytest.mark.parametrize("n", [0, 4])
def test_what_needs_no_backend_asks_for_none(n: int) -> None:
    """A call without iterations, and one on an empty batch, also with a backend that is not there."""
    module = rdk.RecurrentConv(16, 4, backend=missing_backend()[0])
    x = torch.empty(0, 16, 14, 14) if n else LARGE
    expected = "eager (plain autograd)" if n else "none: no iteration is run"
    assert module(x, iterations=n).shape == x.shape
    assert rdk.explain(module, x, iterations=n).forward == expected
    plan = rdk.plan(module, x.shape, iterations=n)
    assert plan.backend == expected.split()[0].strip(":") and plan.bytes_kept == 0
    module.backend = "numpy"
    with pytest.raises(ValueError, match="unknown backend 'numpy'"):
        module(x, iterations=n)


# each with "auto" where the measurements show every backend ahead of eager
CALLS: list[tuple[Any, torch.Tensor]] = [
    (rdk.RecurrentConv(4, 3), X),
    (rdk.RecurrentConv(16, 4), LARGE),
    (with_norm(nn.Identity()), LARGE),
    (rdk.RecurrentLinear(4, 3), torch.randn(2, 3, 4)),
    (rdk.RecurrentLinear(4, 3, checkpoint=1), torch.randn(2, 3, 4)),
]


@pytest.mark.usefixtures("decided_anew")
@pytest.mark.parametrize("module,x", CALLS)
def test_the_call_runs_as_explain_and_plan_say(module: Any, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    operator = autograd.past_dispatcher

    def record(settled: budget.Settled, *tensors: Any) -> Any:
        asked.append(settled.backend)
        return operator(settled, *tensors)

    monkeypatch.setattr(autograd, "past_dispatcher", record)
    monkeypatch.setattr(measured, "slower_than_eager", lambda name, problem, layout: None)
    module(x)
    assert rdk.explain(module, x).forward == (asked[0] if asked else "eager (plain autograd)")
    assert rdk.plan(module, x.shape).backend == (asked[0] if asked else "eager")


@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize("kw", [{"checkpoint": 2}, {"norm": "batch", "memory_budget": 2**30}])
def test_plan_lists_the_states_that_are_kept(
    kw: dict[str, Any], return_states: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.Tensor | None] = []
    forward = recompute.forward

    def record(*arguments: Any) -> Any:
        kept.append(forward(*arguments)[1])
        return forward(*arguments)

    monkeypatch.setattr(recompute, "forward", record)
    module = rdk.RecurrentConv(16, 5, backend="eager", **kw)
    module(LARGE, return_states=return_states)
    plan = rdk.plan(module, LARGE.shape, return_states=return_states)
    tapes = plan.taped_iterations if "norm" in kw else 0
    assert len(plan.states) == (0 if kept[0] is None else len(kept[0]) - tapes)
    assert plan.states == ((2, 4) if len(plan.states) else ())
    # plain autograd keeps the input of every convolution, with a norm as without
    assert rdk.plan(module, LARGE.shape, checkpoint="none").states == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "shape,dtype,error,words",
    [
        ((2, 4, -1, 6), None, ValueError, r"must not hold a negative size, got \(2, 4, -1, 6\)"),
        (5, None, TypeError, "input_shape must be a sequence of integers, .* got 5"),
        ("2466", None, TypeError, "input_shape must be a sequence of integers, .* got '2466'"),
        (torch.zeros(2, 4, 6, 6), None, TypeError, r"got a tensor of shape \(2, 4, 6, 6\)"),
        (("a", 4, 6, 6), None, TypeError, "input_shape must be a sequence of integers, .* got .'a', 4, 6, 6"),
        ((2, 4, 6, 6), "float32", TypeError, "dtype must be a floating-point torch.dtype .* got 'float32'"),
        ((2, 4, 6, 6), torch.int32, TypeError, "dtype must be a floating-point torch.dtype .* got torch.int32"),
    ],
)
def test_plan_refuses_what_is_no_shape_or_dtype(shape: Any, dtype: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rdk.plan(rdk.RecurrentConv(4, 2), shape, dtype)


def test_explain_refuses_an_inject_that_is_no_tensor() -> None:
    with pytest.raises(TypeError, match="inject must be a torch.Tensor, got int"):
        rdk.explain(rdk.RecurrentLinear(4, 2), torch.randn(2, 4), inject=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("put_on", [spectral_norm, parametrizations.spectral_norm, parametrizations.weight_norm])
def test_looking_changes_nothing(put_on: Callable[..., Any], norm: str | None) -> None:
    """spectral_norm advances its vectors whenever it computes a weight in training mode."""
    module = rdk.RecurrentResidual(16, 4, norm=norm, checkpoint=2)
    put_on(module.stages[1], "weight")
    prune.l1_unstructured(module.stages[2], "weight", 0.5)
    module.stages[0].training = False
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes, attributes = [part.training for part in module.modules()], [dict(part.__dict__) for part in module.modules()]
    explanation, plan = rdk.explain(module, LARGE), rdk.plan(module, LARGE.shape)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert [part.training for part in module.modules()] == modes
    for part, before in zip(module.modules(), attributes, strict=True):
        assert part.__dict__.keys() == before.keys() and all(part.__dict__[name] is before[name] for name in before)
    assert (
        explanation.backward.split()[0] == plan.backend == rdk.explain(module.half().float(), LARGE).forward.split()[0]
    )


@pytest.mark.parametrize(
    "ask", [lambda module: rdk.plan(module, LARGE.shape), lambda module: rdk.explain(module, LARGE)]
)
def test_a_module_that_is_looked_at_may_be_trained_at_the_same_time(
    ask: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, say: its training flags do not change for a moment either."""
    module = rdk.RecurrentConv(16, 4, norm="batch")
    parametrizations.spectral_norm(module.stages[0], "weight")
    seen: list[list[bool]] = []
    stages_of = rdk.RecurrentConv._stages_of

    def record(self: rdk.RecurrentConv, parts: Any) -> Any:
        seen.append([part.training for part in module.modules()])
        return stages_of(self, parts)

    monkeypatch.setattr(rdk.RecurrentConv, "_stages_of", record)
    ask(module)
    assert seen and all(all(flags) for flags in seen)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return weight * 0.5


class ScriptedHalf(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 0.5


class WithHead(rdk.RecurrentConv):
    """Other modules of the user's beside the stages; __setattr__ and __del__ of his own."""

    deleted = 0

    def __init__(self) -> None:
        super().__init__(16, 4)
        self.head = torch.compile(nn.Sequential(nn.Conv2d(16, 2, 1), nn.Dropout()))
        self.ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in ("ready", "training") or not self.__dict__.get("ready"), "set behind the user's back"
        super().__setattr__(name, value)

    def __del__(self) -> None:
        WithHead.deleted += 1


def parametrized(parametrization: Any) -> rdk.RecurrentConv:
    module = rdk.RecurrentConv(16, 4)
    parametrize.register_parametrization(module.stages[0], "weight", parametrization)
    return module


@pytest.mark.parametrize(
    "make",
    [
        WithHead,
        lambda: parametrized(Half()),
        lambda: parametrized(torch.compile(Half(), backend="eager")),
        lambda: parametrized(torch.jit.script(ScriptedHalf())),
        lambda: parametrized(torch.jit.trace(ScriptedHalf(), torch.randn(16, 16, 3, 3), check_trace=False)),
    ],
    ids=["compiled head", "counting", "compiled", "scripted", "traced"],
)
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_looking_at_modules_that_forward_what_is_set_on_them(make: Callable[[], Any]) -> None:
    module = make()
    modes, names = [part.training for part in module.modules()], list(module.state_dict())
    state = {name: value.clone() for name, value in module.state_dict().items()}
    rdk.plan(module, LARGE.shape)
    rdk.explain(module, LARGE)
    assert [part.training for part in module.modules()] == modes and list(module.state_dict()) == names
    module.load_state_dict(state)
    if isinstance(module, WithHead):
        assert WithHead.deleted == 0
    elif module.stages[0].parametrizations.weight[0].__class__ is Half:
        assert torch.equal(
            module.stages[0].parametrizations.weight[0].calls, state["stages.0.parametrizations.weight.0.calls"]
        )
