"""FSDP2 on the whole module trains it; on a stage, and with DTensors that operators cannot take, a sentence says what to do."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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


def one_of_two(rank: int, port: int, kw: dict[str, Any], folder: str) -> None:
    """Half of the batch in each of two processes, which hold half of every parameter each; two steps."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    module = two_steps(rank, kw, init_device_mesh("cpu", (2,)))
    torch.save([parameter.full_tensor() for parameter in module.parameters()], f"{folder}/{rank}.pt")
    held = sum(parameter.to_local().numel() for parameter in module.parameters())
    whole = sum(parameter.numel() for parameter in module.parameters())
    assert held <= whole / 2 + len(list(module.parameters())), (held, whole)
    dist.destroy_process_group()


def two_steps(rank: int | None, kw: dict[str, Any], mesh: Any = None) -> nn.Module:
    """Two steps of SGD: on half of a batch in a mesh, or on the whole without one."""
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(16, 4, **kw)
    x = torch.randn(4, 16, 24, 24)
    if mesh is not None:
        fully_shard(module, mesh=mesh)
        x = x[2 * rank : 2 * rank + 2]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("kw", [{}, {"checkpoint": 2}, {"tied": False}])
def test_two_processes_train_as_one(kw: dict[str, Any], tmp_path: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_of_two, args=(port, kw, str(tmp_path)), nprocs=2)
    expected = two_steps(None, kw)
    for rank in range(2):
        for got, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), expected.parameters(), strict=True):
            assert relative(got, parameter.detach()) < 1e-6


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
