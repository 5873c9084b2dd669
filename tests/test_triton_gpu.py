"""The triton backend where only a GPU can tell: TF32, the workloads, compilations. With the cuda backend: test_gpu.py."""

from __future__ import annotations

import pytest
import torch
from test_gpu import half_input, pair

import rdk
from benchmarks.check import SEQUENTIAL
from benchmarks.workloads import WORKLOADS
from rdk.testing import errors, plain_eager, relative, step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("tf32", ["tf32", "ieee"])
def test_float32_follows_pytorchs_switch(tf32: str) -> None:
    module, twin = pair(rdk.RecurrentResidual, 128, 2, "triton")
    x = torch.randn(8, 128, 16, 16, device="cuda")
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = tf32
    try:
        with torch.no_grad():
            ours, theirs, exact = module(x), twin(x), twin.double()(x.double())
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    factor = SEQUENTIAL if tf32 == "ieee" else 1.5
    assert relative(ours, exact) <= factor * relative(theirs, exact) + 4 * 2.0**-24
    assert (relative(ours, exact) < 1e-5) == (tf32 == "ieee")


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
    twin.load_state_dict(module.state_dict())  # running statistics of as many steps
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # TF32 flips masks, each of which moves gradients by a percent
    try:
        got, expected = errors(step(module, x[:4]), step(twin.double(), x[:4].double())), step(twin.float(), x[:4])
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert got.keys() == expected.keys() and any(key.startswith("gradient of") for key in got)
    assert got.pop("output") < 1e-5 and max(got.values()) < 2e-3


def test_one_compilation_serves_any_batch_map_and_depth() -> None:
    from rdk.backends.triton import kernels

    module, _ = pair(rdk.RecurrentConv, 64, 2, "triton")
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
