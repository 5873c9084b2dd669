"""The residual networks of Figure 2, Tables 3 and 6, and of Table 1 with a BatchNorm per iteration; called by models.build."""

from __future__ import annotations

from torch import nn

from experiments.models.network import DepthNet, internal_module
from experiments.settings import Model, Shape


def build(model: Model, shape: Shape) -> DepthNet:
    """Conv stride 2, ReLU; n × two BasicBlocks; Conv w→last stride 2, ReLU; average over the map; Linear. Depth 3 + 4 n.

    Without norms the last convolution keeps w channels (512 in the paper); with norms (w = 256) it doubles them, and every
    convolution is followed by its own BatchNorm, of which the internal module has one per iteration. The authors' files
    differ in that: the recurrent one has a BatchNorm more that is never used, the feed-forward one has none in the stem.
    """
    batch_norm = model.family == "residual_bn"
    w = model.width
    last = 2 * w if batch_norm else w
    stem = [nn.Conv2d(shape.channels, w, 3, stride=2, padding=1, bias=False), *_norm(batch_norm, w), nn.ReLU()]
    internal = internal_module(model, "residual", w, model.iterations, bias=False, norm="batch" if batch_norm else None)
    head = nn.Sequential(
        nn.Conv2d(w, last, 3, stride=2, padding=1, bias=False),
        *_norm(batch_norm, last),
        nn.ReLU(),
        nn.AvgPool2d(-(-shape.size // 4)),
        nn.Flatten(),
        nn.Linear(last, shape.classes),
    )
    return DepthNet(nn.Sequential(*stem), internal, head)


def _norm(wanted: bool, width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width)] if wanted else []
