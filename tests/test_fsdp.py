"""FSDP2 on the whole module trains it; on a stage, and with DTensors that operators cannot take, a sentence says what to do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

import rdk
from rdk.testing import relative

LARGE, SMALL = torch.randn(2, 16, 24, 24), torch.randn(1, 16, 2, 2)  # the small call passes no operator


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    """One process, the mesh's only one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("kw", [{}, {"checkpoint": 1, "norm": "batch"}])
def test_fully_shard_on_the_whole_module_or_one_around_it(mesh: Any, kw: dict[str, Any], around: bool) -> None:
    module = rdk.RecurrentResidual(16, 4, **kw)
    twin = copy.deepcopy(module)
    called = nn.Sequential(module) if around else module
    fully_shard(called, mesh=mesh)
    for each in (called, twin):
        each(LARGE).square().mean().backward()
    for sharded, plain in zip(module.parameters(), twin.parameters(), strict=True):
        assert relative(sharded.grad.full_tensor(), plain.grad) < 1e-6
    assert rdk.plan(module, LARGE.shape) == rdk.plan(twin, LARGE.shape)
    assert rdk.explain(module, LARGE) == rdk.explain(twin, LARGE)


@pytest.mark.parametrize("x", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("kw", [{}, {"checkpoint": 1}, {"backend": "eager"}])
def test_fully_shard_on_a_stage_is_refused(mesh: Any, kw: dict[str, Any], x: torch.Tensor) -> None:
    module = rdk.RecurrentResidual(16, 4, **kw)
    fully_shard(module.stages[1], mesh=mesh)
    words = "the input is a torch.Tensor, the weight is a DTensor. Apply fully_shard to the whole rdk module"
    with pytest.raises(TypeError, match=words):
        module(x)


def test_dtensors_need_pytorchs_operators(mesh: Any) -> None:
    module = rdk.RecurrentConv(16, 5, checkpoint=1)
    expected = rdk.to_modules(module)(LARGE)
    x = distribute_tensor(LARGE, mesh, [Replicate()])
    with pytest.raises(TypeError, match="the input is a DTensor, the weight is a torch.Tensor"):
        module(x)
    distribute_module(module, mesh)
    with pytest.raises(TypeError, match="the tensors are DTensors, which only PyTorch's own operators take"):
        module(x)
    module.backend, module.checkpoint = "eager", "none"
    assert relative(module(x).full_tensor(), expected) < 1e-6
