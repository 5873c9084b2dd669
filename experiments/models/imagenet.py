"""The residual networks for ImageNet of Figures 2 and 7, as proposed where the paper says little; called by models.build."""

from __future__ import annotations

from torch import nn

from experiments.models.network import DepthNet, internal_module
from experiments.settings import Model, Shape


def build(model: Model, shape: Shape) -> DepthNet:
    """Conv 7x7 stride 8, ReLU (224 → 28); n × two BasicBlocks; Conv stride 2, ReLU; global average; Linear. Depth 3 + 4 n.

    The paper names only a residual network without striding or pooling inside the module; sizes and stem are our choice.
    """
    w = model.width
    stem = nn.Sequential(nn.Conv2d(shape.channels, w, 7, stride=8, padding=3, bias=False), nn.ReLU())
    head = nn.Sequential(
        nn.Conv2d(w, w, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(w, shape.classes),
    )
    return DepthNet(stem, internal_module(model, "residual", w, model.iterations, bias=False), head)
