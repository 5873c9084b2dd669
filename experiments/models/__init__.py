"""Builds the network that a settings.Model describes; called by engine.py, estimate.py and the analyses."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.models import convnet, imagenet, maze, mlp, residual, resnet
from experiments.models.network import DepthNet
from experiments.settings import Model, Shape

FAMILIES = {
    "mlp": mlp.build,
    "convnet": convnet.build,
    "residual": residual.build,
    "residual_bn": residual.build,
    "maze": maze.build,
    "imagenet": imagenet.build,
    "resnet18": resnet.build_18,
    "resnet50": resnet.build_50,
}


def build(model: Model, shape: Shape) -> DepthNet:
    """The network for inputs of `shape`, with PyTorch's default initialisation from the global random state."""
    return FAMILIES[model.family](model, shape)


def parameter_count(net: torch.nn.Module) -> int:
    """Trainable numbers; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in net.parameters())


def forward_macs(model: Model, shape: Shape) -> int:
    """Multiply-accumulates of one forward pass of one image, counted from the plain network on the meta device."""
    with torch.device("meta"):
        net = build(model.replaced(plain=True), shape).eval()
        x = torch.empty(1, shape.channels, shape.size, shape.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops() // 2
