"""Running a schedule: memory of a training step, constant in n and never above what rdk.plan says; what a backend is handed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memory_cases import held_maps

import rdk
from rdk.backends import eager_workspace
from rdk.backends.base import Problem, StageSpec
from rdk.backends.eager import EagerBackend
from rdk.testing import assert_close, peak_bytes, plain_eager, step

CASES: list[tuple[type, dict[str, Any]]] = [
    (rdk.RecurrentConv, {}),
    (rdk.RecurrentResidual, {}),
    (rdk.RecurrentResidual, {"recall": True}),
    (rdk.RecurrentResidual, {"norm": "batch"}),
    (rdk.RecurrentConv, {"norm": "batch"}),
    (rdk.RecurrentLinear, {}),
]


def state(module: Any, channels_last: bool = True) -> torch.Tensor:
    if isinstance(module, rdk.RecurrentLinear):
        return torch.randn(2 * 20 * 20, 16)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(2, 16, 20, 20).to(memory_format=form)


@pytest.mark.parametrize("cls,kw", CASES)
@pytest.mark.parametrize("states", [0, pytest.param(3, marks=pytest.mark.slow), 9])
def test_extra_memory_with_k_states_is_constant_in_n(cls: type, kw: dict[str, Any], states: int) -> None:
    held = []
    for n in (12, 28):
        module = cls(16, n, **kw, checkpoint=states, backend="eager")
        # maps of one iteration: what its taping holds
        held.append(held_maps(module, state(module)) - states - len(module.stages))
    statistics = (
        0.1 * 16 if kw.get("norm") else 0.0
    )  # (C,) means and variances per iteration: not maps, but not nothing
    assert abs(held[1] - held[0]) <= 1.0 + statistics
    assert max(held) <= 7.0 + statistics


@pytest.mark.parametrize("cls,kw", CASES)
@pytest.mark.parametrize("checkpoint", ["none", "sqrt", 0, 2, 5, 13])
@pytest.mark.parametrize("channels_last", [True, False])
def test_plan_is_an_upper_bound_and_a_close_one(
    cls: type, kw: dict[str, Any], checkpoint: Any, channels_last: bool
) -> None:
    module = cls(16, 14, **kw, checkpoint=checkpoint, backend="eager")
    x = state(module, channels_last)
    planned = rdk.plan(module, x.shape).bytes_peak / (x.numel() * x.element_size())
    measured = held_maps(module, x)
    assert measured <= planned <= measured + 5.0


COLUMNS: list[tuple[type, dict[str, Any], tuple[int, int, int, int]]] = [
    (rdk.RecurrentConv, {}, (6, 16, 14, 14)),
    (rdk.RecurrentConv, {"dilation": 2}, (6, 16, 14, 14)),
    (rdk.RecurrentConv, {"norm": "batch"}, (3, 24, 12, 9)),
    (rdk.RecurrentResidual, {"dilation": [1, 2, 1, 2]}, (1, 32, 12, 12)),
]


@pytest.mark.parametrize("cls,kw,shape", COLUMNS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("checkpoint,threads", [("none", 1), (0, 2)])
def test_plan_counts_what_convolutions_hold_inside(
    cls: type, kw: dict[str, Any], shape: tuple[int, int, int, int], dtype: torch.dtype, checkpoint: Any, threads: int
) -> None:
    """PyTorch's columns (nine maps) where oneDNN does not take the convolution, and what oneDNN holds where it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        module = cls(shape[1], 3, **kw, checkpoint=checkpoint, backend="eager", dtype=dtype)
        x = torch.randn(shape).to(dtype)
        planned = rdk.plan(module, x.shape).bytes_peak / (x.numel() * x.element_size())
        measured = held_maps(module, x)
    finally:
        torch.set_num_threads(before)
    weights = sum(p[0].numel() for p in module.stages[0].parameters()) * shape[1] / x.numel()
    # the room: copies that not every layout makes, and oneDNN's sums for as many threads as there might be
    assert measured <= planned <= 1.3 * measured + 2.0 + 8.0 * weights


@pytest.mark.parametrize(
    "kw,shape,n", [({"dilation": 2}, (6, 16, 9, 7), 9), ({"norm": "batch", "dilation": 2}, (1, 16, 14, 7), 5)]
)
def test_plan_counts_the_injects_gradient_in_float32(kw: dict[str, Any], shape: tuple[int, ...], n: int) -> None:
    module = rdk.RecurrentConv(16, n, **kw, checkpoint="sqrt" if kw.get("norm") else 0, backend="eager")
    module = module.to(torch.bfloat16)
    x = torch.randn(shape).to(torch.bfloat16)
    planned = rdk.plan(module, x.shape, inject=True).bytes_peak / (x.numel() * x.element_size())
    assert held_maps(module, x, x.clone().requires_grad_()) <= planned


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 32, 16, 16), (2, 32, 16, 16), (1, 20, 32, 32), (1, 20, 32, 33)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_onednn_takes_what_pytorch_gives_it(
    dtype: torch.dtype, shape: tuple[int, int, int, int], dilation: int
) -> None:
    problem = Problem(
        "conv", (StageSpec(dilation),), shape, dtype, torch.device("cpu"), 1, True, False, False, False, True, False,
        "exact",
    )  # fmt: skip
    x, weight = (torch.empty(1, dtype=dtype).expand(size) for size in (shape, (shape[1], shape[1], 3, 3)))
    pair = [dilation, dilation]
    chosen = torch._C._select_conv_backend(x, weight, None, [1, 1], pair, pair, False, [0, 0], 1, None)
    assert eager_workspace.takes_onednn(problem) == (chosen == torch._C._ConvBackend.Mkldnn)


def test_gradients_of_many_weights_are_not_held_twice() -> None:
    """An untied network: sums lie in another layout than gradients, and each goes when its gradient is there."""
    module = rdk.RecurrentConv(16, 20, tied=False, checkpoint="sqrt", backend="eager")
    x = torch.randn(2, 16, 4, 4)
    planned = rdk.plan(module, x.shape).bytes_peak / (x.numel() * x.element_size())
    assert held_maps(module, x) <= planned


@pytest.mark.parametrize("cls,kw", CASES)
def test_a_budget_is_kept(cls: type, kw: dict[str, Any]) -> None:
    module = cls(16, 12, **kw, backend="eager")
    x = state(module)
    size = x.numel() * x.element_size()
    recomputed = []
    least = rdk.plan(module, x.shape, checkpoint=0).bytes_peak
    most = rdk.plan(module, x.shape, checkpoint="none").bytes_peak
    for part in (0.0, 0.1, 0.3, 0.6, 1.6):
        module.memory_budget = int(least + part * (most - least))
        assert held_maps(module, x) * size <= module.memory_budget
        recomputed.append(rdk.plan(module, x.shape).recompute)
    assert recomputed == sorted(recomputed, reverse=True) and recomputed[0] > recomputed[-1] == 0.0


@pytest.mark.parametrize("return_states", [False, True])
def test_a_partly_taped_budget_gives_the_right_gradients(return_states: bool) -> None:
    for kw in ({}, {"norm": "batch"}, {"recall": True}):
        torch.manual_seed(0)
        module = rdk.RecurrentResidual(8, 6, **kw, backend="eager").double()
        x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
        size = x.numel() * x.element_size()
        expected = step(plain_eager(module), x, return_states=return_states)
        start = {name: buffer.clone() for name, buffer in module.named_buffers()}
        seen = set()
        for maps in range(10, 70):
            module.memory_budget = maps * size
            for name, buffer in module.named_buffers():
                buffer.copy_(start[name])
            try:
                plan = rdk.plan(module, x.shape, return_states=return_states)
            except rdk.BudgetError:
                continue
            if (plan.taped_iterations, plan.slots, len(plan.states)) not in seen:
                seen.add((plan.taped_iterations, plan.slots, len(plan.states)))
                assert_close(step(module, x, return_states=return_states), expected, 1e-11)
        assert any(0 < taped < 6 for taped, _, _ in seen)


def test_a_thousand_iterations_train() -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(8, 1000, recall=True, checkpoint="sqrt", backend="eager")
    x = torch.randn(1, 8, 8, 8)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    y = module(x.requires_grad_(), inject=x)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    optimizer.step()
    size = x.numel() * x.element_size()
    assert (
        rdk.plan(module, x.shape).bytes_peak < 100 * size < rdk.plan(module, x.shape, checkpoint="none").bytes_peak / 40
    )


def test_roll_out_without_gradients_holds_no_states() -> None:
    module = rdk.RecurrentResidual(16, 200, backend="eager")
    x = state(module)
    with torch.no_grad():
        module(x, iterations=2)
        few, many = (peak_bytes(lambda n=n: module(x, iterations=n)) for n in (2, 200))
    assert many == few <= 8 * x.numel() * x.element_size()


def test_maps_at_odd_addresses_are_handed_over_at_multiples_of_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else vector loads of a whole call would become loads of single elements."""
    taken: list[int] = []
    forward = EagerBackend.forward

    def watched(self: EagerBackend, call: Any, state: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.extend((state.data_ptr() % 16, call.inject_inside().data_ptr() % 16))
        return forward(self, call, state, *rest)

    monkeypatch.setattr(EagerBackend, "forward", watched)
    x, inject = (torch.randn(2 * 5 * 5 * 4 + 1)[1:].view(2, 5, 5, 4).permute(0, 3, 1, 2) for _ in range(2))
    assert x.data_ptr() % 16 == inject.data_ptr() % 16 == 4
    module = rdk.RecurrentConv(4, 3, backend="eager", checkpoint=1)
    module(x.requires_grad_(), inject=inject).sum().backward()
    assert len(taken) >= 2 and set(taken) == {0}
