"""The convolutional networks of Figures 2, 6, 9, 10 and Tables 5 and 7; called by models.build."""

from __future__ import annotations

from torch import nn

from experiments.models.network import DepthNet, internal_module
from experiments.settings import Model, Shape


def build(model: Model, shape: Shape) -> DepthNet:
    """Two unpadded convolutions to w channels; n × [Conv w→w, ReLU]; pool, unpadded Conv w→2w, pool; Linear 8w→K.

    Every layer has a bias. By the paper's definition the depth is n + 4 (2 convolutions, n, 1 convolution, 1 linear); the
    authors' label, which the figures print, is n + 3.
    """
    w = model.width
    stem = nn.Sequential(nn.Conv2d(shape.channels, w // 2, 3), nn.ReLU(), nn.Conv2d(w // 2, w, 3), nn.ReLU())
    head = nn.Sequential(
        nn.MaxPool2d(3),
        nn.Conv2d(w, 2 * w, 3),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(2 * w * 2 * 2, shape.classes),
    )
    return DepthNet(stem, internal_module(model, "conv", w, model.iterations, bias=True), head)
