"""What torch.utils.flop_counter.FlopCounterMode counts for the two operators; called by ops while a mode of dispatch is under way.

Counted are multiplications and additions of convolutions and linear layers, as PyTorch's own formulas count them for eager:
2 · N · H · W · 9 · C² for a convolution of one stage in one iteration, whatever arithmetic a backend does it with (the cpu
backend's Winograd multiplies less often). Not counted are biases, norms, injects, skips and ReLUs. A backward counts what the
schedule runs again, as rdk.plan says it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from rdk import budget, checkpoint, ops
from rdk.backends.base import Problem


def offer() -> None:
    """Puts the formulas where each FlopCounterMode under way looks them up, and where those to come will."""
    for mode in _get_current_dispatch_mode_stack():
        registry = getattr(getattr(mode, "counter", mode), "flop_registry", None)
        if isinstance(registry, dict):
            registry |= FORMULAS
            flop_counter.flop_registry.update(FORMULAS)


def _of_one_stage(x: Tensor) -> int:
    """One convolution, or one linear layer, of one iteration."""
    products = x.numel() * x.shape[1] * (9 if x.dim() == 4 else 1)
    return 2 * products


def forward(x: Tensor, *arguments: Any, out_val: Any = None) -> int:
    """FLOP of recurrent_fwd, from its arguments."""
    iterations, stages = arguments[6:8]
    return cast(int, iterations * len(ops.stages_of(stages)) * _of_one_stage(x))


def backward(grad_out: Tensor, x: Tensor, *arguments: Any, out_val: Any = None) -> int:
    """FLOP of recurrent_bwd, from its arguments: gradients of inputs and of weights, and the convolutions run again."""
    inject, weights, biases, *_, iterations, stages, norm_training, return_states = arguments[4:14]
    kind, amount, backend, precision, threads, needs = arguments[14:]
    if iterations == 0:
        return 0
    problem = ops.make_problem(
        x, inject, weights, biases, iterations=iterations, stages=ops.stages_of(stages), norm_training=norm_training,
        return_states=return_states, precision=precision, needs_grad=True, threads=threads,
    )  # fmt: skip
    schedule = budget.settle(problem, backend, kind, amount).schedule
    assert schedule is not None
    again = checkpoint.recomputed_convolutions(problem, schedule)
    return (_gradients(problem, needs[0], needs[2 : 2 + len(weights)]) + again) * _of_one_stage(x)


def _gradients(problem: Problem, need_x: bool, needs: list[bool]) -> int:
    """Convolutions that give gradients: one for the input of each stage (of the very first only where x needs it), one for each
    weight that needs it."""
    stages = problem.iterations * len(problem.stages)
    inputs = stages if need_x else stages - 1
    return inputs + sum(needs) * (problem.iterations if problem.tied else 1)


FORMULAS = {torch.ops.rdk.recurrent_fwd: forward, torch.ops.rdk.recurrent_bwd: backward}
