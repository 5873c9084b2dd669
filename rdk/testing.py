"""One training step as a dictionary of tensors, its float64 reference, and peak memory; for tests, info, benchmarks, the demo."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rdk import dispatch

# unit roundoff of each dtype
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of a from b, in float64; 0 for two empty tensors."""
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm().clamp_min(1e-30)) if a.numel() else 0.0


def upstream(shape: torch.Size, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A fixed random upstream gradient, the same values on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(device, dtype)


def step(module: nn.Module, x: Tensor, inject: Tensor | None = None, **kw: Any) -> dict[str, Tensor]:
    """Output, every gradient and every buffer after one training step of `module` on x."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    if inject is not None:
        inject = inject.detach().clone().requires_grad_()
        kw["inject"] = inject
    y = module(x, **kw)
    y.backward(upstream(y.shape, y.dtype, y.device))
    found = {"output": y.detach(), "input gradient": x.grad}
    if inject is not None:
        found["inject gradient"] = inject.grad
    found |= {f"gradient of {name}": p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": buffer.clone() for name, buffer in module.named_buffers()}


def plain_eager(module: Any) -> Any:
    """A copy of the module that runs plain autograd."""
    twin = copy.deepcopy(module)
    twin.backend, twin.checkpoint, twin.memory_budget = "eager", "none", None
    return twin


def sizes(expected: Mapping[str, Tensor]) -> dict[str, float]:
    """L2 norm of each tensor of a step, by which its error is divided; a parameter's gradient counts as a thousandth of the
    largest one at least (a bias before a norm has gradient zero, and rounding would be compared with rounding)."""
    norms = {name: float(tensor.double().norm()) for name, tensor in expected.items()}
    floor = 1e-3 * max((norm for name, norm in norms.items() if name.startswith("gradient")), default=0.0)
    return {name: max(norm, floor if name.startswith("gradient") else 0.0, 1e-30) for name, norm in norms.items()}


def errors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """L2 error of each tensor of a step relative to its `sizes`."""
    assert got.keys() == expected.keys(), f"got {sorted(got)}, expected {sorted(expected)}"
    size, found = sizes(expected), {}
    for name, tensor in got.items():
        reference = expected[name].double()
        found[name] = float((tensor.to(reference.device).double() - reference).norm()) / size[name]
    return found


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor of a step within `tolerance` of the expected one, as `errors` measures it."""
    for name, error in errors(got, expected).items():
        assert error <= tolerance, f"{name}: relative error {error}"


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that PyTorch's CPU allocator held at once during run(), beyond what it held before; nothing that the cpu backend
    keeps from earlier calls helps it, and nothing is kept for later ones."""
    gc.collect()
    with (
        _nothing_kept(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    if dispatch.unavailable("cpu") is not None:
        yield
        return
    limit = torch.ops.rdk.cpu_keep_scratch(0)
    try:
        yield
    finally:
        torch.ops.rdk.cpu_keep_scratch(limit)
