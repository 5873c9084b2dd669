"""What several processes of one run agree upon; one process: the identity. Called by cli, cluster, runner, engine and steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.settings import SettingsError


class World(NamedTuple):
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def start(device: torch.device) -> World:
    """Joins the processes that torchrun started, if it did: NCCL on GPUs, gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def local_device(name: str) -> torch.device:
    """The device asked for; under torchrun each process takes the GPU of its own number. "auto": a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise SettingsError(
                f"--device cuda: GPU number {device.index} was to be used, but PyTorch sees {count} here."
            )
        torch.cuda.set_device(device)
    return device


def close() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def summed(values: Tensor, world: World) -> Tensor:
    """The sum over all processes; every process gets it."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_process(flags: Sequence[bool], world: World, device: torch.device) -> list[bool]:
    """For each flag, whether any process raised it."""
    if world.size == 1:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def gathered(values: Tensor, world: World) -> list[Tensor]:
    """The tensor of every process, in order of rank."""
    if world.size == 1:
        return [values]
    parts = [torch.empty_like(values) for _ in range(world.size)]
    dist.all_gather(parts, values)
    return parts


def from_first(value: Any, world: World) -> Any:
    """The first process's object, in every process."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def same_buffers(net: torch.nn.Module, world: World) -> None:
    """Gives every process the first one's running statistics."""
    if world.size > 1:
        for buffer in net.buffers():
            dist.broadcast(buffer, src=0)


def barrier(world: World) -> None:
    if world.size > 1:
        dist.barrier()
