"""The fully connected networks of Figure 2 and Tables 4 and 7; called by models.build."""

from __future__ import annotations

from torch import nn

from experiments.models.network import DepthNet, internal_module
from experiments.settings import Model, Shape


def build(model: Model, shape: Shape) -> DepthNet:
    """flatten, Linear in→w, ReLU; n × [Linear w→w, ReLU]; Linear w→K. Depth n + 2: every linear layer counts."""
    inputs = shape.channels * shape.size**2
    stem = nn.Sequential(nn.Flatten(), nn.Linear(inputs, model.width), nn.ReLU())
    internal = internal_module(model, "linear", model.width, model.iterations, bias=True)
    return DepthNet(stem, internal, nn.Sequential(nn.Linear(model.width, shape.classes)))
