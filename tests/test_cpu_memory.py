"""The cpu backend's memory against what rdk.plan says, Ctrl-C, the interpreter lock, and errors in the middle of a run."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_cases import make_case, needs_cpu_backend, run_forward, threads

import rdk
from rdk import dispatch
from rdk.backends import cpu_runs
from rdk.backends.base import StageSpec
from rdk.testing import assert_close, peak_bytes, step

pytestmark = needs_cpu_backend

KINDS: list[tuple[type, dict[str, Any]]] = [
    (rdk.RecurrentConv, {}),
    (rdk.RecurrentConv, {"tied": False}),
    (rdk.RecurrentResidual, {}),
    (rdk.RecurrentResidual, {"recall": True, "dilation": 2}),
    (rdk.RecurrentResidual, {"norm": "batch"}),
]


def step_bytes(module: Any, x: torch.Tensor) -> int:
    """Peak bytes of a training step beside parameters' gradients, the output, its gradient and the input's."""

    def run() -> None:
        y = module(x.detach().requires_grad_())
        y.backward(torch.ones_like(y))

    run()
    module.zero_grad()
    outside = sum(p.numel() * p.element_size() for p in module.parameters()) + 3 * x.numel() * 4
    return peak_bytes(run) - outside


@pytest.mark.parametrize("cls,kw", KINDS)
@pytest.mark.parametrize("checkpoint", ["none", "sqrt", 0, 2])
def test_plan_is_an_upper_bound(cls: type, kw: dict[str, Any], checkpoint: Any) -> None:
    module = cls(32, 6, **kw, checkpoint=checkpoint, backend="cpu")
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(6, 32, 16, 16).to(memory_format=form)
        planned, measured = rdk.plan(module, x.shape).bytes_peak, step_bytes(module, x)
        # the room: workspaces of forward and backward are counted as if the larger were always there
        assert measured <= planned <= measured + 8 * x.numel() * 4 + 4 * 10**6


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("kw", [{}, {"norm": "batch"}])
def test_plan_counts_every_state_that_is_returned(backend: str, form: Any, kw: dict[str, Any]) -> None:
    n = 24
    module = rdk.RecurrentResidual(32, n, blocks=1, checkpoint=1, backend=backend, **kw)
    x = torch.randn(4, 32, 16, 16).to(memory_format=form)

    def run() -> None:
        y = module(x.detach().requires_grad_(), return_states=True)
        y.backward(torch.ones_like(y))

    run()
    module.zero_grad()
    outside = sum(p.numel() * p.element_size() for p in module.parameters()) + (2 * n + 1) * x.numel() * 4
    planned = rdk.plan(module, tuple(x.shape), return_states=True).bytes_peak
    assert peak_bytes(run) - outside <= planned


def workspace(shape: tuple[int, ...], n: int, **kw: Any) -> int:
    """What the workers hold; maps of the whole batch are counted apart."""
    small = make_case((1, 1, 1, 1), (StageSpec(), StageSpec(skip=0)), 1, **kw)
    problem = replace(small.call.problem, shape=shape, iterations=n)
    return dispatch.get("cpu").workspace_bytes(problem) - (2 if problem.needs_grad else 1) * problem.map_bytes


@pytest.mark.parametrize("needs_grad", [False, True])
def test_workspace_grows_neither_with_batch_nor_with_iterations_nor_with_maps(needs_grad: bool) -> None:
    with threads(2):
        base = workspace((32, 64, 28, 28), 2, needs_grad=needs_grad)
        assert workspace((320, 64, 28, 28), 2, needs_grad=needs_grad) == base
        assert workspace((32, 64, 28, 28), 200, needs_grad=needs_grad) == base
        # at most 8 MiB of maps per worker, whole or in bands
        assert workspace((32, 64, 280, 280), 2, needs_grad=needs_grad) <= base + 2 * (8 << 20)
        assert workspace((32, 64, 2800, 280), 2, needs_grad=needs_grad) <= base + 2 * (8 << 20)


@pytest.mark.parametrize("count", [1, 2])
def test_no_batch_needs_more_than_a_whole_group_for_every_worker(count: int) -> None:
    with threads(count):
        whole = workspace((10_000, 128, 9, 9), 2)  # a chunk holds ten of these maps
        assert all(workspace((batch, 128, 9, 9), 2) <= whole for batch in range(1, 100))


def test_inference_holds_no_states() -> None:
    module = rdk.RecurrentResidual(32, 100, backend="cpu")
    x = torch.randn(8, 32, 16, 16).to(memory_format=torch.channels_last)
    with torch.no_grad():
        module(x, iterations=2)
        few, many = (peak_bytes(lambda n=n: module(x, iterations=n)) for n in (2, 100))  # type: ignore[misc]
    assert many == few


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("images,n", [(200, 100), (1, 40_000)])
def test_an_interrupt_ends_a_long_call_soon(
    images: int, n: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_runs, "SLICE_PRODUCTS", 10**8)
    module = rdk.RecurrentConv(64, n, backend="cpu", checkpoint=0)
    x = torch.randn(images, 64, 28, 28, requires_grad=training)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    start = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt), torch.set_grad_enabled(training):
            module(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 5.0  # the whole call takes several times that
    with torch.no_grad():  # nothing was left in disorder
        assert module(x[:2].detach(), iterations=2).isfinite().all()


@pytest.mark.parametrize("kw", [{}, {"checkpoint": 3}, {"tied": False}, {"return_states": True}])
@pytest.mark.parametrize("cls", [rdk.RecurrentConv, rdk.RecurrentResidual])
def test_calls_of_a_few_iterations_compute_the_same(
    cls: type, kw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits forward; parameter gradients in another order of summation. No call is larger than it may be."""
    returned = {"return_states": True} if kw.pop("return_states", False) else {}
    module = cls(24, 9, **kw, backend="cpu")
    x, inject = torch.randn(2, 3, 24, 13, 9).unbind()
    whole = step(module, x, inject, **returned)
    each = 9 * 24 * 24 * 13 * 9 * len(module.stages)  # multiply-adds of an image's iteration
    plan = cpu_runs.plan_for(tuple(x.shape), (StageSpec(),), "fast", torch.get_num_threads())
    allowed = 8 * each * min(3, plan.group * plan.workers)
    monkeypatch.setattr(cpu_runs, "SLICE_PRODUCTS", allowed)
    calls: list[int] = []
    slices = cpu_runs.slices

    def watched(problem: Any, plan: Any, iterations: int) -> Any:
        for first, last in slices(problem, plan, iterations):
            calls.append(iterations * (last - first) * each)
            yield first, last

    monkeypatch.setattr(cpu_runs, "slices", watched)
    in_parts = step(module, x, inject, **returned)
    assert len(calls) > 2 and max(calls) <= allowed
    assert torch.equal(in_parts["output"], whole["output"])
    assert torch.equal(in_parts["input gradient"], whole["input gradient"])
    assert_close(in_parts, whole, 2e-6)


def test_memory_of_a_run_in_parts_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_runs, "SLICE_PRODUCTS", 10**7)
    module = rdk.RecurrentConv(16, 12, backend="cpu")
    x = torch.randn(4, 16, 64, 64)
    planned, measured = rdk.plan(module, x.shape).bytes_peak, step_bytes(module, x)
    assert measured <= planned <= measured + 4 * x.numel() * 4


def test_other_threads_run_meanwhile() -> None:
    case = make_case((64, 64, 28, 28), (StageSpec(),), 10, needs_grad=False)
    done = threading.Event()
    counted = 0

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        run_forward(case)
        during = counted
    finally:
        done.set()
        thread.join()
    assert during > 5
