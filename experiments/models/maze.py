"""The maze networks of Figure 5 and Table 2, plain and dilated; called by models.build."""

from __future__ import annotations

from torch import nn

from experiments.models.network import DepthNet, internal_module
from experiments.settings import Model, Shape

DILATIONS = {"none": (1, (1, 1, 1, 1)), "A": (2, (2, 2, 2, 2)), "B": (2, (1, 2, 1, 2))}  # outside, per internal stage


def build(model: Model, shape: Shape) -> DepthNet:
    """Conv 3→w, ReLU; n × two BasicBlocks; Conv w→32, ReLU; Conv 32→8, ReLU; Conv 8→2. Depth 4 + 4 n; no bias, no norm.

    The output is one score per pixel and class, (N, 2, H, W). model.dilation: "A" dilates every convolution by 2 (Table 2),
    "B" leaves the first of each BasicBlock undilated. model.recall adds a convolution of the image at every iteration.
    """
    outside, inside = DILATIONS[model.dilation]
    w = model.width

    def conv(channels: int, to: int) -> nn.Conv2d:
        return nn.Conv2d(channels, to, 3, padding=outside, dilation=outside, bias=False)

    stages = inside if not model.recall else (outside, *inside)
    internal = internal_module(model, "residual", w, model.iterations, bias=False, dilation=stages, recall=model.recall)
    head = nn.Sequential(conv(w, 32), nn.ReLU(), conv(32, 8), nn.ReLU(), conv(8, shape.classes))
    stem = nn.Sequential(conv(shape.channels, w), nn.ReLU())
    return DepthNet(stem, internal, head, conv(shape.channels, w) if model.recall else None)
