"""What the cuda backend prepares and merges around its launches: limits, norms, statistics, weight gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator

import cuda_build
import pytest
import torch
from test_cuda_backend import replaced_by

import rdk
from rdk.backends import cuda_kernels
from rdk.backends.cuda import CudaBackend
from rdk.backends.cuda_kernels import Kernels, merge_statistics, sum_of_partials
from rdk.testing import UNIT, plain_eager, relative


@pytest.fixture(scope="module")
def standin() -> CudaBackend:
    """The backend over the stand-in, as if on a device of 3 multiprocessors."""
    torch.ops.load_library(str(cuda_build.standin_library()))
    return CudaBackend(Kernels(cuda_build.NAMESPACE, "cpu", multiprocessors=3))


@pytest.fixture
def chosen(standin: CudaBackend) -> Iterator[None]:
    with replaced_by(standin):
        yield


def test_limits_are_those_of_the_kernels() -> None:
    """What Python decides by stands in csrc/cuda/tables.h too."""
    table = (cuda_build.SOURCE / "tables.h").read_text()
    limits = {name: int(value) for name, value in re.findall(r"int(?:64_t)? (k\w+) = (\d+);", table)}
    assert limits["kChannelStep"] == cuda_kernels.CHANNEL_STEP
    assert limits["kMaxChannels"] == cuda_kernels.MAX_CHANNELS
    assert limits["kRows"] == cuda_kernels.ROWS
    assert limits["kTaps"] == cuda_kernels.TAPS
    assert limits["kMaxPositions"] == cuda_kernels.MAX_POSITIONS
    assert limits["kMaxLaunchIterations"] == cuda_kernels.MAX_LAUNCH_ITERATIONS
    assert limits["kResidualMaxStages"] == limits["kRolloutMaxStages"] == cuda_kernels.MAX_STAGES


@pytest.mark.parametrize("shape", [(0, 16, 4, 5), (2, 16, 0, 5)])
def test_weight_gradient_of_no_pixels_is_zero(standin: CudaBackend, shape: tuple[int, ...]) -> None:
    maps = [torch.empty(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)] * 2
    partials = standin.kernels.weight_gradient(maps, maps, 1, None)
    assert torch.equal(sum_of_partials(partials, 16), torch.zeros(16, 16, 3, 3))
    partials = standin.kernels.weight_gradient(maps, maps, 1, partials + 1)
    assert bool((partials == 1).all())


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_norm_in_inference_is_prepared_for_all_iterations_at_once(chosen: None, eps: float) -> None:
    """Right, also where the norms differ in eps; and what PyTorch computes beside our launches does not grow."""
    counts = []
    for iterations in (2, 6):
        torch.manual_seed(0)
        module = (
            rdk.RecurrentResidual(32, iterations, blocks=1, norm="batch", bias=True, backend="cuda").bfloat16().eval()
        )
        for norm in (norm.float() for stage in module.stages for norm in stage.norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 1)
            norm.bias.data.normal_()
        module.stages[0].norm[1].eps = eps
        x = torch.randn(2, 32, 6, 5).bfloat16()
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            found = module(x)
        with torch.no_grad():
            exact, eager = plain_eager(module).double()(x.double()), plain_eager(module)(x)
        assert relative(found, exact) <= max(1.5 * relative(eager, exact), 4 * UNIT[torch.bfloat16])
        computed = {"aten::rsqrt", "aten::mul", "aten::sub", "aten::_to_copy", "aten::add"}
        counts.append({event.key: event.count for event in profile.key_averages() if event.key in computed})
    if eps == 1e-5:
        assert counts[0]["aten::rsqrt"] == 1 and counts[0] == counts[1]


def test_statistics_survive_a_large_mean() -> None:
    """Groups of different sizes around a mean 1,000 times the deviation."""
    values = torch.randn(1000, 3, dtype=torch.float64) + 1000
    parts = values.split([600, 399, 1])
    rows = [[torch.full((3,), float(len(p))), p.mean(0), (p - p.mean(0)).square().sum(0)] for p in parts]
    groups = torch.stack([torch.stack(row) for row in rows])
    mean, variance = merge_statistics(groups.float())
    assert relative(mean, values.mean(0)) < 1e-6
    assert relative(variance, values.var(0, correction=0)) < 1e-4
