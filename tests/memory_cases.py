"""What a training step holds, in maps; used by the tests that compare it with what rdk.plan says."""

from __future__ import annotations

from typing import Any

import torch

from rdk.testing import peak_bytes


def held_maps(module: Any, x: torch.Tensor, inject: torch.Tensor | None = None) -> float:
    """Peak maps of a training step beside parameters, input, inject, output and the gradients of all these."""
    size = x.numel() * x.element_size()

    def run() -> None:
        y = module(x.detach().requires_grad_(), inject=inject)
        y.backward(torch.ones_like(y))

    run()
    module.zero_grad()
    outside = sum(p.numel() * p.element_size() for p in module.parameters()) + 3 * size
    if inject is not None:
        inject.grad = None
        outside += size
    return (peak_bytes(run) - outside) / size
