"""BatchNorm per iteration: running statistics as eager's, flags honoured, other norm types called as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import rdk
from rdk.testing import assert_close, plain_eager, relative, step


@pytest.mark.parametrize("checkpoint", [1, 3, "sqrt"])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_running_statistics_equal_eagers_after_several_steps(
    checkpoint: Any, momentum: float | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(6, 5, norm="batch", checkpoint=checkpoint, backend="eager").to(dtype)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum, norm.eps = momentum, 1e-3
    twin = plain_eager(module)
    for seed in range(3):
        x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(seed)).to(dtype) + 1
        for one in (module, twin):
            one(x.clone().requires_grad_()).sum().backward()
    for (name, got), expected in zip(module.named_buffers(), twin.buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert got == expected == 3
        else:
            assert relative(got, expected) < (1e-5 if dtype == torch.float32 else 1e-13), name


def test_evaluation_uses_running_statistics_and_changes_none() -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(4, 3, norm="batch", checkpoint=1, backend="eager").double()
    for _ in range(3):
        module(torch.randn(2, 4, 5, 5, dtype=torch.float64))
    module.eval()
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert_close(step(module, x), step(plain_eager(module), x), 1e-12)
    assert all(torch.equal(now, before[name]) for name, now in module.state_dict().items())


def test_only_some_in_training_mode_goes_the_plain_way() -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentConv(4, 3, norm="batch").double()
    module.stages[0].norm[1].eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    twin = copy.deepcopy(module)
    h = x
    for t in range(3):
        norm = twin.stages[0].norm[t]
        h = torch.relu(norm(nn.functional.conv2d(h, twin.stages[0].weight, twin.stages[0].bias, padding=1)))
    assert relative(module(x), h) < 1e-13
    assert "others are not" in rdk.explain(module, x).reasons["cpu"]


class Doubling(nn.Module):
    calls = 0

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        Doubling.calls += 1
        return 2 * z


def test_another_norm_type_is_called_as_it_is() -> None:
    module = rdk.RecurrentConv(4, 3, norm="batch")
    module.stages[0].norm[1] = Doubling()
    module(torch.randn(2, 4, 5, 5))
    assert Doubling.calls == 1
    assert "Doubling, which is called as it is" in rdk.explain(module, torch.randn(2, 4, 5, 5)).reasons["triton"]
    module.checkpoint = 2
    with pytest.raises(ValueError, match="a norm is a Doubling.*checkpoint must be 'auto' or 'none'"):
        module(torch.randn(2, 4, 5, 5))
    module.checkpoint, module.backend = "auto", "triton"
    with pytest.raises(rdk.BackendError, match="backend 'triton' cannot run this call: a norm is a Doubling"):
        module(torch.randn(2, 4, 5, 5))


def test_without_running_statistics_or_affine() -> None:
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    for settings in ({"track_running_stats": False}, {"affine": False}):
        module = rdk.RecurrentConv(4, 3, norm="batch").double()
        for t in range(3):
            module.stages[0].norm[t] = nn.BatchNorm2d(4, dtype=torch.float64, **settings)
        for training in (True, False):
            module.train(training)
            checkpoints = ["auto", 1] if "affine" not in settings else ["auto"]
            outputs = []
            for module.checkpoint in checkpoints:
                outputs.append(module(x.clone().requires_grad_()))
            assert all(relative(y, outputs[0]) < 1e-13 for y in outputs)


@pytest.mark.parametrize("kw", [{}, {"checkpoint": 1}, {"backend": "eager"}])
def test_a_norm_on_another_device_is_refused(kw: dict[str, Any]) -> None:
    """One tensor on meta made the whole call one that computes nothing, and its output memory that nobody wrote."""
    module = rdk.RecurrentConv(16, 3, norm="batch", **kw).eval()
    module.stages[0].norm[1].running_var = torch.ones(16, device="meta")
    with pytest.raises(ValueError, match="the input is on cpu, a norm on meta. Move one of them"):
        module(torch.randn(2, 16, 20, 20))


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 16), nn.Identity()])
def test_a_plan_of_norms_that_are_called_as_they_are(norm: nn.Module) -> None:
    module = rdk.RecurrentConv(16, 4, norm="batch")
    for number in range(4):
        module.stages[0].norm[number] = norm
    plans = [rdk.plan(module.train(mode), (2, 16, 14, 14)) for mode in (True, False)]
    assert plans[0] == plans[1] and plans[0].backend == "eager"


@pytest.mark.parametrize("checkpoint", ["auto", 1])
def test_one_value_per_channel_is_refused_as_by_pytorch(checkpoint: Any) -> None:
    module = rdk.RecurrentConv(4, 3, norm="batch", checkpoint=checkpoint, backend="eager")
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="more than 1 value per channel|more than one value per channel"):
        module(torch.randn(1, 4, 1, 1, requires_grad=True))
    if checkpoint != "auto":
        assert all(torch.equal(now, before[name]) for name, now in module.state_dict().items())


def test_statistics_survive_a_mean_a_thousand_times_the_deviation() -> None:
    torch.manual_seed(0)
    weight = torch.zeros(4, 4, 3, 3)
    weight[range(4), range(4), 1, 1] = 1.0  # the identity
    module = rdk.RecurrentConv(4, 1, bias=False, norm="batch", checkpoint=0, backend="eager")
    module.stages[0].weight.data.copy_(weight)
    x = torch.randn(8, 4, 16, 16) + 1000.0
    exact = copy.deepcopy(plain_eager(module)).double()
    expected = step(exact, x.double())
    eager, got = step(plain_eager(module), x), step(module, x)
    for name in ("output", "input gradient", "buffer stages.0.norm.0.running_var"):
        assert relative(got[name], expected[name]) <= max(1.5 * relative(eager[name], expected[name]), 4 * 2.0**-24)
