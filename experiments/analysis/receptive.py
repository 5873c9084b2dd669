"""How far the maze networks see, by arithmetic and by gradient, against the size of the mazes (claim C6); called by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from experiments import models
from experiments.configs import MAZE_DEPTHS
from experiments.data.mazes import SIZES
from experiments.settings import Model, Shape

SIDES = {name: 2 * cells - 1 for name, cells in SIZES.items()}  # units without the outer wall


def radius(model: Model) -> int:
    """Pixels that an output sees to each side: a 3x3 convolution adds its dilation."""
    return sum(layer.dilation[0] for layer in _unrolled(model).modules() if isinstance(layer, nn.Conv2d))


def measured_radius(model: Model) -> int:
    """The same from the gradient of the middle output, with positive weights so that no ReLU hides a path."""
    reach = radius(model) + 2
    net = _unrolled(model.replaced(width=2)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.1, 0.2).div_(parameter[0].numel())
    x = torch.ones(1, 3, 2 * reach + 1, 2 * reach + 1, dtype=torch.float64, requires_grad=True)
    net(x)[0, :, reach, reach].sum().backward()
    assert x.grad is not None
    rows = torch.nonzero(x.grad[0].abs().sum((0, 2)))
    return int(rows.max()) - reach


def _unrolled(model: Model) -> nn.Module:
    return models.build(model.replaced(plain=True, recurrent=False), Shape(3, 32, 2))


def receptive_field(*_: Any) -> dict[str, Any]:
    """Convolutions that see from one corner of a maze to the other, and from its middle to its edge, per drawing."""
    needed: dict[str, Any] = {}
    for name, side in SIDES.items():
        two = 2 * side  # pixels of the maze without its outer wall in the authors' images
        needed[name] = {
            "one_pixel_corner_to_corner": side - 1,
            "two_pixels_corner_to_corner": two - 1,
            "two_pixels_centre_to_edge": two // 2,
            "two_pixels_dilated_corner_to_corner": math.ceil((two - 1) / 2),
        }
    rows = []
    for depth in MAZE_DEPTHS:
        for dilation in ("none", "A", "B"):
            model = Model(family="maze", depth=depth, width=2, dilation=dilation)
            rows.append(
                {"depth": depth, "dilation": dilation, "arithmetic": radius(model), "gradient": measured_radius(model)}
            )
    deeper = {
        name: min(depth for depth in MAZE_DEPTHS if depth > entry["two_pixels_corner_to_corner"])
        for name, entry in needed.items()
    }
    agree = all(row["arithmetic"] == row["gradient"] for row in rows)
    return {"convolutions_needed": needed, "radius": rows, "agree": agree, "first_depth_that_sees_all": deeper}
