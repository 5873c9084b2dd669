"""Learning rates, optimisers, and one training step (loss, gradients, CUDA graph); called by engine.py."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.distributed import World, summed
from experiments.settings import Run, SettingsError, Train

WARM_UP = (0.181269, 0.329680, 0.451188, 0.550671)  # of the learning rate in epochs 0 to 3; 1 - exp(-(e + 1) / 5)


def learning_rate(train: Train, epoch: int, step: int, steps_per_epoch: int) -> float:
    """In force at that step: the authors' warm-up and milestones per epoch, or 15 % linear warm-up and a cosine per step."""
    if train.lr_rule == "steps":
        warm = WARM_UP[epoch] if epoch < len(WARM_UP) else 1.0
        return train.lr * warm * train.factor ** sum(epoch >= milestone for milestone in train.milestones)
    total, done = train.epochs * steps_per_epoch, epoch * steps_per_epoch + step
    warm_up = max(1, int(0.15 * total))
    if done < warm_up:
        return train.lr * (done + 1) / warm_up
    return train.lr * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / max(1, total - warm_up)))


def optimizer(net: nn.Module, run: Run, device: torch.device) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over two groups: the internal module (lr / n where the recipe says so) and all else."""
    train = run.train
    inside = [p for name, p in net.named_parameters() if name.startswith("internal.")]
    outside = [p for name, p in net.named_parameters() if not name.startswith("internal.")]
    divisor = run.model.iterations if train.lr_per_iteration and run.model.recurrent else 1
    groups: list[dict[str, Any]] = [{"params": outside, "divisor": 1}, {"params": inside, "divisor": divisor}]
    groups = [group for group in groups if group["params"]]
    common: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if device.type == "cuda":
        common["fused"] = True
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=train.momentum, **common)
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, betas=train.betas, **common)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr / group["divisor"]


def scores(outputs: Tensor, x: Tensor, y: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """The loss, and [loss × images, right ones, images, right ones without the mask] in float64.

    outputs: (N, K) with labels (N,), or (N, 2, H, W) with targets (N, H, W). Mazes: the mean over all free pixels of the
    whole batch, over all processes; a maze is right if every pixel matches, walls being set to 0.
    """
    outputs = outputs.float()
    count = len(x)
    if y.dim() == 1:
        loss = F.cross_entropy(outputs, y)
        right = unmasked = (outputs.argmax(1) == y).sum()
    else:
        free = x.amax(1) > 0  # (N, H, W)
        pixels = summed(free.sum(), world)
        loss = (F.cross_entropy(outputs, y, reduction="none") * free).sum() * world.size / pixels
        predicted = outputs.argmax(1)
        right = (predicted * free == y).flatten(1).all(1).sum()
        unmasked = (predicted == y).flatten(1).all(1).sum()
    totals = torch.stack([loss.detach() * count, right, torch.full_like(right, count), unmasked]).double()
    return loss, totals


class Step:
    """Forward and backward of one batch; the gradients are left in the parameters.

    On one GPU the first batch is captured as a CUDA graph that all later ones replay; running statistics that the warm-up
    moved are put back, so that a captured run equals one that is not.
    """

    def __init__(self, net: nn.Module, run: Run, device: torch.device, world: World) -> None:
        self.net, self.run, self.device, self.world = net, run, device, world
        self.wants_graph = run.train.cuda_graph and device.type == "cuda" and world.size == 1
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the totals of `scores`."""
        if self.run.train.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.wants_graph and self.graph is None:
            self._capture(x, y)
        if self.graph is None:
            self.net.zero_grad(set_to_none=True)
            return self._eager(x, y)
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        return self.totals.clone()

    def _eager(self, x: Tensor, y: Tensor) -> Tensor:
        with autocast(self.run, self.device):
            outputs = self.net(x)
        loss, totals = scores(outputs, x, y, self.world)
        loss.backward()
        return totals

    def _capture(self, x: Tensor, y: Tensor) -> None:
        kept = [(buffer, buffer.clone()) for buffer in self.net.buffers()]
        self.x, self.y = x.clone(), y.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.net.zero_grad(set_to_none=True)
                self._eager(self.x, self.y)
        torch.cuda.current_stream().wait_stream(stream)
        self.net.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.totals = self._eager(self.x, self.y)
            self.graph = graph
        except RuntimeError as error:
            print(f"This step can't be captured as a CUDA graph ({str(error).splitlines()[0]}); it runs eagerly.")
            self.wants_graph = False
        for buffer, value in kept:
            buffer.copy_(value)


def autocast(run: Run, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=run.train.dtype == "bfloat16")


def check_dtype(run: Run, device: torch.device) -> None:
    """Raises SettingsError where the device's libraries cannot compute in the run's dtype (oneDNN on some virtual CPUs)."""
    if run.train.dtype == "float32":
        return
    try:
        with autocast(run, device):
            F.linear(*(torch.zeros(shape, device=device) for shape in ((64, 784), (64, 784), (64,))))
    except RuntimeError as error:
        raise SettingsError(
            f"train.dtype = {run.train.dtype} does not work with PyTorch {torch.__version__} on this {device.type} device "
            f"({error}); give --train.dtype float32."
        ) from error
