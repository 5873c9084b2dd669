"""ResNet-18 for small images (Table 1) and ResNet-50 with shared weights (claim C4), from torchvision; called by models.build."""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.models.network import DepthNet
from experiments.settings import Model, Shape
from experiments.vision import torchvision


def build_18(model: Model, shape: Shape) -> DepthNet:
    """The CIFAR form: 3x3 stem without pooling, stages of 64 to 512 channels, average over 4x4 (EMNIST: over 3x3 of its 4x4)."""
    net = torchvision("models").resnet18(num_classes=shape.classes)
    net.conv1 = nn.Conv2d(shape.channels, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    net.avgpool = nn.AvgPool2d(shape.size // 8)
    return _split(net)


def build_50(model: Model, shape: Shape) -> DepthNet:
    """torchvision's ResNet-50 (stride in the 3x3), with model.sharing of convolution weights; every BatchNorm stays its own.

    "A": in each stage blocks 2 to last use one set of three convolutions; "B": all equally shaped convolutions of a stage
    are one; "C": only the 3x3 ones, over the whole stage.
    """
    net = torchvision("models").resnet50(num_classes=shape.classes)
    if shape.channels != 3:
        net.conv1 = nn.Conv2d(shape.channels, 64, 7, stride=2, padding=3, bias=False)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        _share(list(stage), model.sharing)
    return _split(net)


def _share(blocks: list[nn.Module], sharing: str) -> None:
    if sharing == "A":
        for block in blocks[2:]:
            for name in ("conv1", "conv2", "conv3"):
                getattr(block, name).weight = getattr(blocks[1], name).weight
    elif sharing in ("B", "C"):
        first: dict[tuple[str, object], nn.Parameter] = {}
        for block in blocks:
            for name in ("conv1", "conv2", "conv3") if sharing == "B" else ("conv2",):
                layer = getattr(block, name)
                layer.weight = first.setdefault((name, layer.weight.shape), layer.weight)


def _split(net: Any) -> DepthNet:
    """torchvision's network as stem and head, initialised as every other network here."""
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4)
    return DepthNet(stem, None, nn.Sequential(net.avgpool, nn.Flatten(), net.fc))
