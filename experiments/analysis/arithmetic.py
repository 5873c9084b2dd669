"""Sizes, depths and parameter counts, from the networks as they are built (F1, T4, T5, C1, C2, C3); called by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from experiments import models
from experiments.configs.recipes import image_run
from experiments.data.sets import shape_of
from experiments.settings import DEPTHS, Data, Model, Run

NAMES = {"cifar10": "CIFAR-10", "svhn": "SVHN", "emnist": "EMNIST"}


def layers(run: Run) -> list[nn.Module]:
    """Every convolution and linear layer, in order, shared ones once per iteration."""
    with torch.device("meta"):
        net = models.build(run.model.replaced(plain=True), shape_of(run.data))
    kinds = (nn.Conv2d, nn.Linear)

    def inside(part: nn.Module | None) -> list[nn.Module]:
        return [] if part is None else [layer for layer in part.modules() if isinstance(layer, kinds)]

    repeats = run.model.iterations if run.model.recurrent else 1
    return inside(net.stem) + inside(net.internal) * repeats + inside(net.head)


def parameters(run: Run) -> int:
    with torch.device("meta"):
        return models.parameter_count(models.build(run.model, shape_of(run.data)))


def effective_depth(*_: Any) -> dict[str, Any]:
    """Figure 1: four layers outside, a module of one layer, three iterations."""
    run = image_run("F1", "convnet", "cifar10", 6, True, 0)
    return {"iterations": run.model.iterations, "outside": 4, "per_iteration": 1, "depth": len(layers(run))}


def sizes_mlp(*_: Any) -> dict[str, Any]:
    """Table 4: the shapes of the MLPs' layers."""
    rows = {}
    for data, name in NAMES.items():
        first, inner, last = layers(image_run("T4", "mlp", data, 3, True, 0))
        rows[name] = [f"{layer.in_features}x{layer.out_features}" for layer in (first, inner, last)]
    return {"rows": rows}


def sizes_convnet(*_: Any) -> dict[str, Any]:
    """Table 5: the channels that each layer of the ConvNets puts out."""
    rows = {}
    for data, name in NAMES.items():
        found = layers(image_run("T5", "convnet", data, 4, True, 0))
        rows[name] = [layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features for layer in found]
    return {"rows": rows}


def parameters_residual(*_: Any) -> dict[str, Any]:
    """Claim C1: residual nets of depth 15 on CIFAR-10."""
    counts = {
        kind: parameters(image_run("C1", "residual", "cifar10", 15, kind == "recurrent", 0))
        for kind in ("recurrent", "feed_forward")
    }
    return counts


def parameters_batch_norm(*_: Any) -> dict[str, Any]:
    """Claim C2: the nets of Table 1."""
    found: dict[str, Any] = {}
    for data, name in NAMES.items():
        recurrent = {
            depth: parameters(image_run("C2", "residual_bn", data, depth, True, 0)) for depth in (7, 11, 15, 19)
        }
        resnet = parameters(image_run("C2", "resnet18", data, 18, False, 0))
        found[name] = {"recurrent": recurrent, "resnet18": resnet, "share": recurrent[15] / resnet}
    return found


def depth_formula(*_: Any) -> dict[str, Any]:
    """Claim C3: layers counted in the built networks against outside + n × per iteration."""
    rows = []
    for family, (outside, per_iteration) in DEPTHS.items():
        data = Data(name={"maze": "mazes", "imagenet": "imagenet"}.get(family, "cifar10"))  # type: ignore[arg-type]
        for n in (1, 2, 3, 4):
            model = Model(family=family, depth=outside + n * per_iteration, width=8)  # type: ignore[arg-type]
            counted = len(layers(Run(model=model, data=data)))
            rows.append(
                {"family": family, "n": n, "label": model.depth, "formula": model.effective_depth, "counted": counted}
            )
    return {"rows": rows, "agree": all(row["formula"] == row["counted"] for row in rows)}
