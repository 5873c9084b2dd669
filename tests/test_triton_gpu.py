"""The triton backend where only a GPU can tell: graphs, streams, devices, TF32, maps past 2**31 elements, the workloads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rdk
from benchmarks.workloads import WORKLOADS
from rdk.testing import errors, plain_eager, relative, step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def pair(cls: type, channels: int, n: int, **kw: Any) -> tuple[Any, Any]:
    """A module on the backend and its plain twin, channels_last on the GPU."""
    torch.manual_seed(3)
    module = cls(channels, n, **kw).cuda().to(memory_format=torch.channels_last)
    twin = plain_eager(module)
    module.backend = "triton"
    return module, twin


def half_input(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kw", [{}, {"norm": "batch"}])
def test_a_step_under_a_cuda_graph(kw: dict[str, Any]) -> None:
    module, _ = pair(rdk.RecurrentResidual, 64, 3, **kw)
    module = module.bfloat16()
    x = half_input(4, 64, 12, 12)
    leaf = x.clone().requires_grad_()
    upstream = torch.randn_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and warms the allocator
        for _ in range(2):
            leaf.grad = None
            module.zero_grad(set_to_none=True)
            module(leaf).backward(upstream)
    torch.cuda.current_stream().wait_stream(side)
    leaf.grad = None
    module.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(leaf)
        y.backward(upstream)
    with torch.no_grad():
        leaf.copy_(half_input(4, 64, 12, 12))
    graph.replay()
    captured = y.clone(), leaf.grad.clone(), module.stages[0].weight.grad.clone()
    again = leaf.detach().clone().requires_grad_()
    module.zero_grad(set_to_none=True)
    out = module(again)
    out.backward(upstream)
    live = out, again.grad, module.stages[0].weight.grad
    assert all(torch.equal(a, b) for a, b in zip(captured, live, strict=True))


def test_any_stream_and_any_device() -> None:
    module, twin = pair(rdk.RecurrentConv, 64, 3)
    x = torch.randn(2, 64, 9, 9, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = module(x)
    torch.cuda.current_stream().wait_stream(stream)
    assert relative(y, twin(x)) < 2e-3
    if torch.cuda.device_count() > 1:
        other = module.to("cuda:1")
        with torch.cuda.device(0):
            assert relative(other(x.to("cuda:1")).cpu(), y.cpu()) < 1e-6


@pytest.mark.parametrize("tf32", ["tf32", "ieee"])
def test_float32_follows_pytorchs_switch(tf32: str) -> None:
    module, twin = pair(rdk.RecurrentResidual, 128, 2)
    x = torch.randn(8, 128, 16, 16, device="cuda")
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = tf32
    try:
        with torch.no_grad():
            ours, theirs, exact = module(x), twin(x), twin.double()(x.double())
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert relative(ours, exact) <= 1.5 * relative(theirs, exact) + 4 * 2.0**-24
    assert (relative(ours, exact) < 1e-5) == (tf32 == "ieee")


def test_maps_past_two_to_the_thirty_one_elements() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB")
    module, twin = pair(rdk.RecurrentConv, 64, 2)
    module, twin = module.bfloat16(), twin.bfloat16()
    x = half_input(9000, 64, 64, 64)  # 2.36e9 elements
    assert x.numel() > 2**31
    with torch.no_grad():
        y = module(x)
        for part in (slice(0, 2), slice(8192, 8194), slice(8998, 9000)):
            assert relative(y[part], twin(x[part])) < 1e-2


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_workloads_train_as_eager_does(name: str) -> None:
    workload = WORKLOADS[name]
    case = workload.case(min(workload.iterations[0], 2))
    torch.manual_seed(3)
    module = case.module().cuda().to(memory_format=torch.channels_last)
    twin = plain_eager(module)
    module.backend = "triton"
    x = torch.randn(case.shape, device="cuda").to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        ours, theirs = module(x), twin(x)
    exact = twin.double()(x.double()).detach()
    assert relative(ours, exact) <= 1.5 * relative(theirs, exact) + 4 * 2.0**-8
    module, twin = module.float(), twin.float()
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # TF32 flips masks, each of which moves gradients by a percent
    try:
        got, expected = errors(step(module, x[:4]), step(twin.double(), x[:4].double())), step(twin.float(), x[:4])
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert got.keys() == expected.keys() and any(key.startswith("gradient of") for key in got)
    assert got.pop("output") < 1e-5 and max(got.values()) < 2e-3


def test_weight_gradients_of_maps_past_two_to_the_thirty_one_elements() -> None:
    """Only the last images have a gradient, so that theirs is the weight's: reads that wrap around find other maps."""
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB")
    module, twin = pair(rdk.RecurrentConv, 64, 1)
    module, twin = module.bfloat16(), twin.bfloat16()
    x = half_input(9000, 64, 64, 64)  # 2.36e9 elements
    upstream = torch.zeros_like(x)
    upstream[-2:] = half_input(2, 64, 64, 64)
    module(x).backward(upstream)
    twin(x[-2:]).backward(upstream[-2:])
    for (name, got), (_, expected) in zip(module.named_parameters(), twin.named_parameters(), strict=True):
        assert relative(got.grad, expected.grad) < 2e-2, name


def test_one_compilation_serves_any_batch_map_and_depth() -> None:
    from rdk.backends.triton import kernels

    module, _ = pair(rdk.RecurrentConv, 64, 2)
    module = module.bfloat16()

    def compiled() -> int:
        return sum(len(entry[0]) for entry in kernels.conv3x3_kernel.device_caches.values())

    with torch.no_grad():
        module(half_input(2, 64, 16, 16))
        before = compiled()
        for shape, n in [((3, 64, 16, 16), 2), ((2, 64, 15, 17), 3), ((2, 64, 1, 1), 5)]:
            module(half_input(*shape), iterations=n)
        # small maps may take another tile, and no more than that
        assert compiled() <= before + 1
