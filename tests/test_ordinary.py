"""Calls that are settled by what was settled for the last one like them: nothing that a decision rests on may be left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cpu_cases import needs_cpu_backend, threads
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rdk
from rdk import autograd, budget, functional, measured
from rdk.testing import plain_eager, step

pytestmark = [needs_cpu_backend, pytest.mark.usefixtures("decided_anew")]


@pytest.fixture(autouse=True)
def _cpu_is_ahead_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" takes the cpu backend for channels_last states and eager for all others."""
    monkeypatch.setattr(
        measured, "slower_than_eager", lambda name, problem, layout: None if layout == "channels_last" else "slower"
    )


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[budget.Settled]:
    """Filled with what every call from here on finds settled."""
    found: list[budget.Settled] = []
    settle = budget.settle_ordinary

    def note(*arguments: Any) -> budget.Settled:
        found.append(settle(*arguments))
        return found[-1]

    monkeypatch.setattr(budget, "settle_ordinary", note)
    return found


def state(channels_last: bool = True, batch: int = 2) -> Tensor:
    form = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(batch, 6, 9, 7).to(memory_format=form)


@contextmanager
def precision(name: str) -> Iterator[None]:
    before = rdk.dispatch.cpu_precision()
    rdk.set_cpu_precision(name)
    try:
        yield
    finally:
        rdk.set_cpu_precision(before)


def test_every_call_is_settled_as_its_own_settings_say(settled: list[budget.Settled]) -> None:
    module = rdk.RecurrentConv(6, 3)
    x = state()
    module(x)
    module(x)
    first, again = settled
    assert again is first and first.backend == "cpu" and first.schedule is not None and first.problem.needs_grad

    def last(call: Callable[[], Tensor]) -> budget.Settled:
        count = len(settled)
        call()
        assert len(settled) == count + 1
        return settled[-1]

    assert last(lambda: module(state(channels_last=False))).backend == "eager"
    assert last(lambda: module(x, iterations=2)).problem.iterations == 2
    assert last(lambda: module(state(batch=1))).problem.shape == (1, 6, 9, 7)
    with torch.no_grad():
        assert last(lambda: module(x)).schedule is None
    with rdk.use_backend("eager"):
        assert last(lambda: module(x)).backend == "eager"
    with precision("accurate"):
        assert last(lambda: module(x)).problem.precision == "accurate"
    with precision("exact"):
        assert last(lambda: module(x)).backend == "eager"
    with threads(torch.get_num_threads() + 1):
        assert last(lambda: module(x)).problem.threads == first.problem.threads + 1
    assert last(lambda: module(x)) is first
    module.requires_grad_(False)
    assert last(lambda: module(x)).schedule is None
    assert last(lambda: module(x.clone().requires_grad_())).schedule is not None
    module.double()
    assert last(lambda: module(x.double())).backend == "eager"
    assert not last(lambda: rdk.RecurrentConv(6, 3, bias=False)(x)).problem.bias
    assert last(lambda: rdk.RecurrentConv(6, 3, dilation=2)(x)).problem.stages[0].dilation == 2


def test_decisions_can_be_forgotten(settled: list[budget.Settled], monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = rdk.RecurrentConv(6, 3), state()
    module(x)
    monkeypatch.setattr(measured, "slower_than_eager", lambda name, problem, layout: "slower")
    module(x)
    budget.forget()
    module(x)
    assert [s.backend for s in settled] == ["cpu", "cpu", "eager"]


CUTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x[1:, :, ::2],
    lambda x: x.transpose(2, 3),
    lambda x: x[:1].expand(3, -1, -1, -1),
    lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)[:, :, 1:, 2:],
]


@given(
    cut=st.sampled_from(CUTS),
    channels=st.integers(1, 9),
    sides=st.tuples(st.integers(3, 11), st.integers(3, 11)),
    residual=st.booleans(),
    bias=st.booleans(),
    backend=st.sampled_from(["cpu", "eager"]),
)
def test_an_ordinary_call_has_the_bits_and_the_layout_of_any_other(
    cut: Any, channels: int, sides: tuple[int, int], residual: bool, bias: bool, backend: str
) -> None:
    kind: Any = rdk.RecurrentResidual if residual else rdk.RecurrentConv
    module = kind(channels, 3, bias=bias, backend=backend)
    x = cut(torch.randn(3, channels, *sides))
    ordinary = step(module, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional.arguments, "sound", lambda *arguments: None)
        other = step(module, x)
        assert module(x).stride() == (layout := other["output"].stride())
    assert module(x).stride() == layout == plain_eager(module)(x).stride()
    assert ordinary.keys() == other.keys()
    for name in other:
        assert torch.equal(ordinary[name], other[name]), name


def test_transforms_and_modes_go_their_own_ways(settled: list[budget.Settled]) -> None:
    module, x = rdk.RecurrentConv(6, 3, backend="cpu"), state()
    with pytest.raises(rdk.BackendError, match=r"transform of torch\.func"):
        torch.func.vmap(module)(x[None])
    module.backend = "auto"
    batched = torch.func.vmap(module)(x[None])[0]
    assert settled == []
    assert torch.allclose(batched, plain_eager(module)(x), atol=1e-6)
    ways: list[bool] = []
    unheard = autograd.unheard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autograd, "unheard", lambda tensors: ways.append(unheard(tensors)) or ways[-1])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            through = module(x)
        past = module(x)
    assert ways == [False, True] and "rdk::recurrent_fwd" in {event.key for event in seen.key_averages()}
    assert torch.equal(through, past)
