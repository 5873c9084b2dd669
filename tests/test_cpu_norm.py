"""BatchNorm on the cpu backend: statistics, running statistics, gradients under equal masks, memory of whole maps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cpu_cases import Case, cases, make_case, masks_of, named, needs_cpu_backend, reference_step, run_step, threads
from hypothesis import given, settings
from hypothesis import strategies as st

import rdk
from rdk.backends.base import StageSpec
from rdk.backends.layout import channels_last
from rdk.testing import assert_close, plain_eager, relative, upstream

pytestmark = needs_cpu_backend


@settings(max_examples=20)
@given(
    case=cases(norm=True), schedule=st.sampled_from([("none", 0), ("states", 0), ("sqrt", 0)]), count=st.integers(1, 2)
)
def test_forward_and_every_gradient_of_any_problem(case: Case, schedule: tuple[str, int], count: int) -> None:
    grad_out = upstream(case.x.shape, torch.float32)
    with threads(count):
        if case.call.problem.norm_training:
            run_step(case, channels_last(grad_out))  # measures the statistics that the masks below read
            case.call.prepared.clear()
        masks = masks_of(case)
        got = named(*run_step(case, channels_last(grad_out), *schedule))
    values = case.x.numel() // case.x.shape[1]
    # a deviation of few values may be far below the values themselves, and dividing by it magnifies rounding
    bound = 1e-5 if case.x.shape[1] >= 8 and values >= 64 else 2e-3
    expected = reference_step(case, grad_out, masks)
    if (
        case.call.problem.norm_training
    ):  # a bias before the batch's own mean has gradient zero: rounding is all there is
        largest = max(float(t.norm()) for name, t in expected.items() if name.startswith("gradient"))
        for name in [name for name in got if name.startswith("gradient of bias")]:
            assert float((got.pop(name) - expected.pop(name)).norm()) <= 10 * bound * largest
    assert_close(got, expected, bound)


@pytest.mark.parametrize("shape", [(3, 20, 9, 7), (1, 5, 64, 3), (6, 16, 1, 1), (2, 64, 28, 28)])
def test_statistics_survive_a_mean_far_from_zero(shape: tuple[int, ...]) -> None:
    z = channels_last(torch.randn(shape) + 1000.0)
    exact = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    results = []
    for count in (1, 2):
        means, variances = torch.full((2, 3, shape[1]), float("nan"))
        one, zero = torch.ones(shape[1]), torch.zeros(shape[1])
        with threads(count):
            torch.ops.rdk.cpu_finish(
                z, means, variances, 1, True, one, zero, 1e-5, None, None, False, torch.empty_like(z)
            )
        assert means[::2].isnan().all() and variances[::2].isnan().all()
        mean, variance = means[1], variances[1]
        assert relative(mean, exact[1]) < 1e-7
        assert relative(variance, exact[0]) < 1e-5
        results.append((mean, variance))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_finish_applies_everything_in_the_order_of_the_contract() -> None:
    for channels in (5, 16, 40):
        z, inject, skip = (channels_last(torch.randn(2, channels, 6, 5)) for _ in range(3))
        mean, weight, bias = torch.randn(3, channels)
        variance = torch.rand(channels)
        given = (z, mean[None], variance[None], 0, False, weight, bias, 0.25)
        out = torch.empty_like(z)
        row = [t.double().reshape(1, channels, 1, 1) for t in (mean, variance, weight, bias)]
        normed = (z - row[0]) / (row[1] + 0.25).sqrt() * row[2] + row[3]
        torch.ops.rdk.cpu_finish(*given, inject, skip, True, out)
        assert relative(out, torch.relu(normed + inject + skip)) < 1e-6
        torch.ops.rdk.cpu_finish(*given, None, None, False, out)
        assert relative(out, normed) < 1e-6


@pytest.mark.parametrize("kw", [{}, {"tied": False}, {"recall": True}])
def test_running_statistics_equal_eagers_and_are_updated_once(kw: dict[str, Any]) -> None:
    module = rdk.RecurrentResidual(12, 3, **kw, norm="batch", checkpoint=1, backend="cpu")
    twin = copy.deepcopy(plain_eager(module))
    for _ in range(3):
        x = torch.randn(4, 12, 6, 6)
        for net in (module, twin):
            net(x.clone().requires_grad_()).sum().backward()
    buffers = dict(twin.named_buffers())
    for name, buffer in module.named_buffers():
        assert relative(buffer, buffers[name]) < 1e-5, name
    x = torch.randn(4, 12, 6, 6)
    assert relative(module.eval()(x), twin.eval()(x)) < 1e-5


def test_a_constant_channel_gives_no_nan() -> None:
    case = make_case((2, 16, 5, 5), (StageSpec(norm=True),), 1, training=True)
    case.call.weights[0][3] = 0.0
    out, grad, rest = run_step(case, channels_last(torch.randn(2, 16, 5, 5)))
    assert out.isfinite().all() and grad.isfinite().all() and rest.weights[0].isfinite().all()  # type: ignore[union-attr]
    assert float(case.call.variances[0, 3]) == pytest.approx(0.0, abs=1e-12)
