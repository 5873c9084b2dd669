"""Maps that the cpu backend walks down in bands, because it would not hold them whole: results, bits and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_cases import (
    instruction_set,
    make_case,
    masks_of,
    named,
    needs_cpu_backend,
    reference_step,
    run_forward,
    run_step,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import rdk
from rdk.backends import cpu_runs
from rdk.backends.base import StageSpec
from rdk.backends.layout import channels_last
from rdk.testing import assert_close, peak_bytes, upstream

pytestmark = needs_cpu_backend

HELD = 8 << 20  # bytes of maps that a worker holds at most, kHeldBytes of csrc/cpu/tables.h
LISTS = {
    "plain": (StageSpec(),),
    "residual": (StageSpec(), StageSpec(skip=0)),
    "recall": (StageSpec(relu=False), StageSpec(), StageSpec(skip=1), StageSpec(dilation=2), StageSpec(skip=3)),
    "dilated": (StageSpec(dilation=3), StageSpec(skip=1), StageSpec(dilation=2, skip=0)),
    "normed": (StageSpec(norm=True), StageSpec(norm=True, skip=0)),
    "skips of one input": (StageSpec(skip=0), StageSpec(), StageSpec(skip=0), StageSpec(relu=False, skip=0)),
}


def bands_of(case: Any) -> tuple[int, int]:
    """Iterations of one walk of the forward and of the backward; both few where maps are walked down in bands."""
    plan = cpu_runs.plan_of(case.call.problem)
    return plan.forward_iterations, plan.backward_iterations


@settings(max_examples=12)
@given(
    height=st.integers(330, 460),
    width=st.integers(200, 300),
    channels=st.sampled_from([3, 16, 20]),
    stages=st.sampled_from(sorted(set(LISTS) - {"normed"})),
    images=st.sampled_from([1, 1, 3]),
    n=st.integers(1, 4),
    inject=st.booleans(),
    tied=st.booleans(),
    precision=st.sampled_from(["fast", "fast", "accurate"]),
    isa=st.sampled_from(["avx512", "avx2"]),
    schedule=st.sampled_from([("none", 0), ("states", 0), ("states", 1)]),
    contiguous=st.booleans(),
    count=st.integers(1, 2),
)
def test_forward_and_every_gradient(
    height: int, width: int, channels: int, stages: str, images: int, n: int, inject: bool, tied: bool,
    precision: str, isa: str, schedule: tuple[str, int], contiguous: bool, count: int,
) -> None:  # fmt: skip
    case = make_case((images, channels, height, width), LISTS[stages], n, inject=inject, tied=tied, precision=precision)
    grad_out = upstream(case.x.shape, torch.float32)
    case.x = case.x.contiguous() if contiguous else case.x
    with instruction_set(isa), threads(count):
        forward, backward = bands_of(case)
        assert forward <= 16 and backward <= 16
        masks = masks_of(case)
        got = named(*run_step(case, grad_out if contiguous else channels_last(grad_out), *schedule))
    # sums over 100,000 pixels of few channels cancel, most of all those of a bias
    assert_close(got, reference_step(case, grad_out, masks), 2.5e-5)


@pytest.mark.parametrize("images,count", [(1, 2), (2, 1)])
@pytest.mark.parametrize("skips", [(None, None), (0, 0), (None, 1)])
def test_every_state_and_its_gradient(images: int, count: int, skips: tuple[int | None, int | None]) -> None:
    """Without ReLU, so that no mask differs; gradients of all states come in, and an inject's goes out."""
    torch.manual_seed(0)
    x, inject = torch.randn(2, images, 16, 340, 230).unbind()
    weights = [torch.randn(16, 16, 3, 3) / 24 for _ in skips]

    def found(backend: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, inject, *weights)]
        stages = [rdk.functional.Stage(w, relu=False, skip=s) for w, s in zip(leaves[2:], skips, strict=True)]
        y = rdk.functional.recurrent(
            leaves[0], stages, 3, inject=leaves[1], return_states=True, checkpoint=1, backend=backend
        )
        y.backward(upstream(y.shape, dtype))
        names = ["input gradient", "inject gradient", "gradient of weight 0", "gradient of weight 1"]
        return {"output": y.detach()} | {
            name: leaf.grad for name, leaf in zip(names, leaves, strict=True) if leaf.grad is not None
        }

    with threads(count):
        assert_close(found("cpu", torch.float32), found("eager", torch.float64), 2e-5)


@pytest.mark.parametrize("stages", sorted(LISTS))
def test_the_same_bits_for_any_threads_and_any_split(stages: str) -> None:
    case = make_case((3, 16, 350, 261), LISTS[stages], 3, inject=True, needs_grad=False)
    with threads(1):
        assert bands_of(case)[0] <= 16
        whole, _ = run_forward(case)
    with threads(2):
        assert torch.equal(run_forward(case)[0], whole)
        for image in range(3):
            part = make_case((1, 16, 350, 261), LISTS[stages], 3, inject=True, needs_grad=False)
            part.x, part.call.inject = case.x[image : image + 1], case.call.inject[image : image + 1]  # type: ignore[index]
            for name in ("weights", "biases", "norm_weights", "norm_biases", "means", "variances"):
                setattr(part.call, name, getattr(case.call, name))
            assert torch.equal(run_forward(part)[0], whole[image : image + 1])


@pytest.mark.parametrize("stages", ["plain", "recall"])
def test_maps_in_bands_have_the_bits_of_maps_held_whole(stages: str) -> None:
    """The upper rows of a large map: those that a smaller one shares with it, and that no lower edge has reached, by whole
    tiles and a row more for every convolution."""
    n, reach = 2, 2 * sum(5 * spec.dilation for spec in LISTS[stages])
    large = make_case((1, 16, 600, 200), LISTS[stages], n, inject=True, needs_grad=False)
    small = make_case((1, 16, 120, 200), LISTS[stages], n, inject=True, needs_grad=False)
    assert bands_of(large)[0] <= 16 < bands_of(small)[0]
    small.x, small.call.inject = large.x[:, :, :120], large.call.inject[:, :, :120]  # type: ignore[index]
    small.call.weights, small.call.biases = large.call.weights, large.call.biases
    rows = slice(0, 120 - reach)
    assert torch.equal(run_forward(small)[0][:, :, rows], run_forward(large)[0][:, :, rows])


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_have_the_same_bits_from_run_to_run(count: int) -> None:
    case = make_case((3, 16, 350, 261), LISTS["recall"], 3, inject=True)
    grad_out = channels_last(upstream(case.x.shape, torch.float32))
    with threads(count):
        first, second = (named(*run_step(case, grad_out, "states", 1)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("size", [130, 150, 170, 190, 210])
@pytest.mark.parametrize("norm,return_states", [(None, False), (None, True), ("batch", False)])
def test_a_backward_that_wants_less_than_was_planned(size: int, norm: str | None, return_states: bool) -> None:
    """Without the gradient of the inject its maps are few enough to be held whole."""
    x, inject = torch.randn(2, 1, 16, size, 200).unbind()
    module = rdk.RecurrentConv(16, 2, norm=norm, backend="cpu", checkpoint=0)
    grads = []
    for leaf in (inject.requires_grad_(), inject.detach()):
        module.zero_grad()
        module(x, inject=leaf, return_states=return_states).sum().backward()
        grads.append([p.grad for p in module.parameters()])
    for with_inject, without in zip(*grads, strict=True):
        assert rdk.testing.relative(without, with_inject) < 1e-5  # type: ignore[arg-type]


def worker_bytes(height: int, width: int, stages: tuple[StageSpec, ...], images: int = 1) -> tuple[int, int]:
    """Forward and backward: what a worker holds beside two buffers of transformed tiles."""
    shape = (images, 64, height, width)
    small, plan = (cpu_runs.plan_for(size, stages, "fast", 1, True, True) for size in ((1, 64, 4, 4), shape))
    tiles = 4 * small.forward_floats - 4 * 3 * 64 * 6 * 6  # the small one has three whole maps
    return 4 * plan.forward_floats - tiles, 4 * plan.backward_floats - tiles


@pytest.mark.parametrize("stages", ["plain", "residual", "dilated", "skips of one input"])
def test_no_map_takes_more_than_some_rows(stages: str) -> None:
    specs = LISTS[stages]
    most = (
        HELD if stages in ("plain", "residual") else 3 * HELD
    )  # taps far apart reach more rows; more stages, more windows
    for height in (100, 200, 400, 800, 100_000):
        for images in (1, 7):
            assert max(worker_bytes(height, 200, specs, images)) <= most
    # where a few rows are more than that, they grow with the width alone
    wide, high = worker_bytes(2_000, 10_000, specs), worker_bytes(200_000, 10_000, specs)
    assert wide == high and max(high) > HELD


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cls", [rdk.RecurrentConv, rdk.RecurrentResidual])
def test_one_large_image_takes_the_maps_that_pass_and_no_others(cls: type, training: bool) -> None:
    """Inference: the output. Training, which here keeps no state: the output, its gradient and the input's, the one
    that passes between runs, and the states that are computed again at a time."""
    module = cls(16, 2, backend="cpu", checkpoint=0)
    x = torch.randn(1, 16, 1024, 512).to(memory_format=torch.channels_last)
    bytes_of_map = 4 * x.numel()

    def run() -> None:
        if training:
            y = module(x.detach().requires_grad_())
            y.backward(torch.ones_like(y))
        else:
            with torch.no_grad():
                module(x)

    with threads(1):
        run()
        module.zero_grad()
        maps = (peak_bytes(run) - HELD - (4 << 20)) / bytes_of_map
    allowed = 4 + 1 + (1 if cls is rdk.RecurrentConv else len(module.stages) - 1) if training else 1
    assert maps <= allowed


def test_more_iterations_than_windows_are_refused() -> None:
    x = torch.randn(1, 16, 600, 300)
    filters = torch.ops.rdk.cpu_filters([torch.randn(16, 16, 3, 3)], x.shape, [1, 1, -1], "fast", False)
    with pytest.raises(RuntimeError, match="at most 15 iterations of a map of this size in one run, got 99"):
        torch.ops.rdk.cpu_forward(
            x, None, filters, [], None, [1, 1, -1], "fast", 99, 1, torch.empty_like(x), None, [-1] * 99, None,
            [-1] * 99, 0, 1, 1,
        )  # fmt: skip
