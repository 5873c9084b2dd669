"""torch.utils.flop_counter.FlopCounterMode counts rdk's operators as it counts eager's convolutions, recomputation included."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from cpu_cases import needs_cpu_backend
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

import rdk

ONE = 2 * 2 * 16 * 14 * 14 * 9 * 16  # one convolution


def counted(module: Any, x: torch.Tensor, **kw: Any) -> tuple[int, int]:
    """FLOP of a call and of its backward."""
    with FlopCounterMode(display=False) as forward:
        y = module(x, **kw)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


CASES: list[tuple[Any, dict[str, Any]]] = [
    (rdk.RecurrentConv, {}),
    (rdk.RecurrentConv, {"tied": False, "dilation": 2}),
    (rdk.RecurrentResidual, {"norm": "batch", "recall": True}),
    (rdk.RecurrentLinear, {}),
]


@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize("cls,kw", CASES)
def test_recurrent_operators_count_as_eager_and_what_is_run_again(cls: Any, kw: dict[str, Any], needs_x: bool) -> None:
    module = cls(16, 5, backend="eager", **kw)
    shape = (2, 16) if cls is rdk.RecurrentLinear else (2, 16, 14, 14)
    x = torch.randn(shape, requires_grad=needs_x)
    module.stages[0].weight.requires_grad_(False)  # untied: all of them
    forward, backward = counted(module, x)
    module.checkpoint = 1
    plan = rdk.plan(module, shape)
    assert plan.recompute > 0
    assert counted(module, x) == (forward, backward + round(plan.recompute * forward))


@needs_cpu_backend
def test_cpu_backend_counts_direct_convolutions() -> None:
    module = rdk.RecurrentConv(16, 5, backend="cpu")
    assert counted(module, torch.randn(2, 16, 14, 14)) == (5 * ONE, (4 + 5) * ONE)
    assert counted(module, torch.randn(2, 16, 14, 14), return_states=True) == (5 * ONE, (4 + 5) * ONE)


def test_a_backward_is_counted_whose_forward_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: count for name, count in flop_counter.flop_registry.items() if "rdk" not in str(name)}
    monkeypatch.setattr(flop_counter, "flop_registry", others)  # as before any call
    y = rdk.RecurrentConv(16, 5, checkpoint=4, backend="eager")(torch.randn(2, 16, 14, 14))
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == (4 + 5) * ONE


def test_flops_stand_under_the_module_that_spent_them() -> None:
    net = torch.nn.Sequential(rdk.RecurrentConv(16, 4, checkpoint=1, backend="eager"))
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(2, 16, 14, 14))
    assert counter.get_flop_counts()["Sequential.0"] == {torch.ops.rdk.recurrent_fwd: 4 * ONE}


def test_import_of_rdk_does_not_import_the_counter() -> None:
    code = "import sys, rdk; assert 'torch.utils.flop_counter' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
