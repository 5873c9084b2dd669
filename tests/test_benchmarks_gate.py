"""benchmarks/check.py: the gate's bounds, against the arithmetic of tensor cores, which no CPU has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import check
from benchmarks.contenders import CONTENDERS
from benchmarks.judge import Judge
from benchmarks.problem import PRECISIONS, Problem
from benchmarks.workloads import Case
from rdk.testing import relative
from tests.tensor_cores import EAGER_TF32, FUSED, LIBRARY, tf32

CPU = torch.device("cpu")
# W1 to W7 with fewer channels, pixels and images
CASES = [
    Case("W1", "conv", 4, 64, 14, 14, 5),
    Case("W1", "conv", 2, 64, 14, 14, 32),
    Case("W2", "residual", 4, 64, 8, 8, 4),
    Case("W3", "residual", 4, 64, 8, 8, 4, norm=True),
    Case("W4", "residual", 2, 32, 16, 16, 10),
    Case("W5", "residual", 2, 32, 16, 16, 4, dilation=2),
    Case("W6", "residual", 2, 32, 12, 12, 10, recall=True),
    Case("W7", "residual", 2, 32, 8, 8, 16),
]


def test_tf32_rounds_to_the_nearest_ties_to_even() -> None:
    step = 2.0**-10
    x = torch.tensor(
        [1 + step, 1 + 0.49 * step, 1 + 0.51 * step, 1 + 0.5 * step, 1 + 1.5 * step, -1 - 0.51 * step, 0.0]
    )
    assert tf32(x).tolist() == [1 + step, 1.0, 1 + step, 1.0, 1 + 2 * step, -1 - step, 0.0]


def judged(case: Case, precision: str) -> Judge:
    judge = Judge(Problem(case, PRECISIONS[precision], CPU), training=True)
    eager = EAGER_TF32 if precision == "tf32" else CONTENDERS["eager"]
    assert judge.fault_of("eager", eager.make(judge.problem, True)) is None
    return judge


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.workload}-{case.iterations}")
def test_right_arithmetic_of_tensor_cores_stays_well_inside_the_bounds(case: Case, precision: str) -> None:
    judge = judged(case, precision)
    for contender in (LIBRARY, FUSED):
        assert judge.fault_of(contender.name, contender.make(judge.problem, True)) is None, contender.name
        errors, bounds = judge.errors[contender.name], judge.bounds_of(contender.name)
        assert errors.gradient is not None and errors.scale is not None
        shares = errors.output / bounds.output, errors.gradient / bounds.gradient, errors.scale / bounds.scale
        assert max(shares) < 0.75, (contender.name, shares)


@pytest.mark.parametrize("iterations", [100, 1000])
def test_a_long_roll_out_in_bfloat16_is_a_fair_problem(iterations: int) -> None:
    """Eager itself stays within its limit of float64, and right arithmetic of other kinds within 1.5 times eager's error."""
    judge = Judge(Problem(Case("W4r", "residual", 1, 32, 8, 8, iterations), PRECISIONS["bf16"], CPU), training=False)
    for contender in (CONTENDERS["eager"], LIBRARY, FUSED):
        assert judge.fault_of(contender.name, contender.make(judge.problem, False)) is None, contender.name
    assert judge.errors["eager"].output < 0.75 * check.EAGER_LIMIT["bf16"]


@pytest.mark.parametrize("channels", [64, 512])
def test_a_sum_in_sequence_is_right_arithmetic(channels: int) -> None:
    """fp32 without tensor cores: one fused multiply-add after another, against eager's sums on the CPU."""
    terms, generator = 9 * channels, torch.Generator().manual_seed(0)
    x = torch.randn(2000, terms, generator=generator).relu_()
    weight = torch.randn(terms, generator=generator) * (2 / terms) ** 0.5
    exact, total = x.double() @ weight.double(), torch.zeros(2000)
    for term in range(terms):
        total = (total.double() + x[:, term].double() * weight[term].double()).float()
    kernels = weight.view(1, channels, 3, 3).repeat(16, 1, 1, 1)
    convolved = torch.nn.functional.conv2d(x.view(2000, channels, 3, 3), kernels)[:, 0, 0, 0]
    eager, own = check.Errors(relative(convolved, exact)), check.Errors(relative(total, exact))
    allowed = [check.bounds(PRECISIONS["fp32"], 1, [eager], own, policy) for policy in (None, "ieee")]
    assert [bounds.broken_by(own, "float64") is None for bounds in allowed] == [False, True]


def scaled(tensor: Tensor) -> Tensor:
    return tensor * 1.25


def one_output_channel_missing(tensor: Tensor) -> Tensor:
    return tensor.clone().index_fill_(0, torch.tensor([5]), 0.0)


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
@pytest.mark.parametrize("fault", [scaled, one_output_channel_missing])
def test_wrong_gradients_break_the_bounds_of_every_precision(precision: str, fault: Callable[[Tensor], Tensor]) -> None:
    judge = judged(Case("W2", "residual", 4, 16, 8, 8, 3), precision)
    prepared = FUSED.make(judge.problem, True)
    prepared.parameters[0].register_hook(fault)
    sentence = judge.fault_of("rdk wrong", prepared)
    assert sentence is not None and "gradient of weight 0" in sentence
