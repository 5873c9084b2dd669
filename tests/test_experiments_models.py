"""The networks of the experiments: parameter counts of the authors' (experiments/README.md), depths, arithmetic, plain twins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from experiments import models
from experiments.analysis.arithmetic import layers
from experiments.configs.recipes import image_run
from experiments.models.network import DepthNet
from experiments.settings import DEPTHS, Model, Run, SettingsError, Shape

CIFAR, EMNIST, MAZE, IMAGENET = Shape(3, 32, 10), Shape(1, 28, 47), Shape(3, 32, 2), Shape(3, 224, 1000)


def count(shape: Shape, **model: Any) -> int:
    with torch.device("meta"):
        return models.parameter_count(models.build(Model(**model), shape))


@pytest.mark.parametrize(
    ("family", "width", "shape", "depths", "recurrent", "feed_forward"),
    [
        ("mlp", 200, CIFAR, (3, 4, 7), (656_810,) * 3, (656_810, 697_010, 817_610)),
        ("mlp", 500, CIFAR, (3, 4), (1_792_010,) * 2, (1_792_010, 2_042_510)),
        ("mlp", 500, EMNIST, (3, 4, 7), (666_547,) * 3, (666_547, 917_047, 1_668_547)),
        ("convnet", 64, CIFAR, (4, 5, 6, 7, 8), (135_306,) * 5, (135_306, 172_234, 209_162, 246_090, 283_018)),
        ("convnet", 64, EMNIST, (4, 8), (153_711,) * 2, (153_711, 301_423)),
        ("convnet", 128, EMNIST, (4, 5, 8), (565_423,) * 3, (565_423, 713_007, 1_155_759)),
        ("residual", 512, CIFAR, (7, 11, 15, 19), (11_815_434,) * 4, (11_815_434, 21_252_618, 30_689_802, 40_126_986)),
        ("residual", 512, EMNIST, (7, 19), (11_825_199,) * 2, (11_825_199, 40_136_751)),
        # the authors' recurrent file has 512 more, of a BatchNorm that is never used
        (
            "residual_bn",
            256,
            CIFAR,
            (7, 11, 15, 19),
            (3_555_082 - 512, 3_557_130 - 512, 3_559_178 - 512, 3_561_226 - 512),
            (3_554_570, 5_915_914, 8_277_258, 10_638_602),
        ),
        ("residual_bn", 256, EMNIST, (7, 19), (3_569_455 - 512, 3_575_599 - 512), (3_568_943, 10_652_975)),
        ("maze", 128, MAZE, (8, 12, 16, 44), (632_592,) * 4, (632_592, 1_222_416, 1_812_240, 5_941_008)),
    ],
)
def test_parameter_counts(
    family: str, width: int, shape: Shape, depths: Any, recurrent: tuple[int, ...], feed_forward: tuple[int, ...]
) -> None:
    for plain in (False, True):
        for tied, expected in ((True, recurrent), (False, feed_forward)):
            found = tuple(
                count(shape, family=family, width=width, depth=d, recurrent=tied, plain=plain) for d in depths
            )
            assert found == expected


def test_parameter_counts_of_the_resnets() -> None:
    assert count(CIFAR, family="resnet18", depth=18, width=64) == 11_173_962
    assert count(EMNIST, family="resnet18", depth=18, width=64) == 11_191_791
    shared = {"none": 25_557_032, "A": 16_017_448, "B": 11_491_368, "C": 17_373_224}
    assert {s: count(IMAGENET, family="resnet50", depth=50, width=64, sharing=s) for s in shared} == shared


def test_dilation_changes_no_count() -> None:
    assert {count(MAZE, family="maze", width=128, depth=20, dilation=d) for d in ("none", "A", "B")} == {632_592}


@pytest.mark.parametrize(
    ("family", "width", "depth", "shape", "gmac"),
    [
        ("mlp", 200, 7, CIFAR, 0.000816),
        ("convnet", 64, 8, CIFAR, 0.163353),
        ("convnet", 128, 4, EMNIST, 0.138456),
        ("residual", 512, 15, CIFAR, 7.402296),
        ("residual_bn", 256, 19, EMNIST, 1.907966),
        ("resnet18", 64, 18, CIFAR, 0.555423),
        ("maze", 128, 44, MAZE, 6.083592),
        ("resnet50", 64, 50, IMAGENET, 4.089),
    ],
)
def test_multiply_accumulates(family: str, width: int, depth: int, shape: Shape, gmac: float) -> None:
    model = Model(family=family, width=width, depth=depth)  # type: ignore[arg-type]
    assert models.forward_macs(model, shape) / 1e9 == pytest.approx(gmac, rel=1e-3)


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize(
    ("family", "formula"), [("mlp", (2, 1)), ("convnet", (4, 1)), ("residual", (3, 4)), ("maze", (4, 4))]
)
def test_effective_depth_is_the_number_of_layers_passed(family: str, formula: tuple[int, int], recurrent: bool) -> None:
    outside, per_iteration = formula
    for n in (1, 2, 5):
        printed, _ = DEPTHS[family]
        model = Model(family=family, depth=printed + n * per_iteration, width=8, recurrent=recurrent)  # type: ignore[arg-type]
        data = "mazes" if family == "maze" else "cifar10"
        run = image_run("x", "mlp", "cifar10", 3, True, 0).replaced(model=model)
        run = run.replaced(data=run.data.replaced(name=data))
        assert model.iterations == n
        assert model.effective_depth == outside + n * per_iteration == len(layers(run))


def test_figure_1_example() -> None:
    assert len(layers(image_run("F1", "convnet", "cifar10", 6, True, 0))) == 7


IMPOSSIBLE = [("residual", 9), ("maze", 10), ("maze", 4), ("mlp", 2), ("convnet", 3), ("resnet18", 20)]


@pytest.mark.parametrize(("family", "depth"), IMPOSSIBLE)
def test_depths_that_a_family_cannot_have(family: str, depth: int) -> None:
    with pytest.raises(SettingsError, match=f"a {family} network can have depth [0-9, …]+; got {depth}"):
        Run(model=Model(family=family, depth=depth)).check()  # type: ignore[arg-type]


TWINS: list[dict[str, Any]] = [
    {"family": "mlp", "depth": 5, "width": 12},
    {"family": "convnet", "depth": 6, "width": 6},
    {"family": "residual", "depth": 11, "width": 6},
    {"family": "residual_bn", "depth": 11, "width": 6},
    {"family": "imagenet", "depth": 7, "width": 4},
    {"family": "maze", "depth": 12, "width": 6},
    {"family": "maze", "depth": 12, "width": 6, "dilation": "A"},
    {"family": "maze", "depth": 12, "width": 6, "dilation": "B", "recall": True},
]


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("settings", TWINS, ids=lambda s: "-".join(map(str, s.values())))
def test_plain_twins_load_and_agree(settings: dict[str, Any], recurrent: bool) -> None:
    """State dicts of the plain networks load into the rdk ones; outputs, gradients and running statistics agree."""
    model = Model(**settings, recurrent=recurrent)
    shape = {"maze": Shape(3, 9, 2), "imagenet": Shape(3, 32, 7)}.get(model.family, EMNIST)
    plain = models.build(model.replaced(plain=True), shape).double()
    ours = models.build(model, shape).double()
    for norm in (part for part in plain.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_mean, -1, 1)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3, shape.channels, shape.size, shape.size, dtype=torch.float64)
    for net in (plain, ours):
        net.train()
        net(x).square().mean().backward()
    assert sum(_gradients(plain)) == pytest.approx(sum(_gradients(ours)), rel=1e-9)
    assert sorted(_gradients(plain)) == pytest.approx(sorted(_gradients(ours)), rel=1e-7)
    plain.eval(), ours.eval()
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.states(x), plain.states(x), rtol=1e-10, atol=1e-12)


def _gradients(net: DepthNet) -> list[float]:
    return [float(p.grad.norm()) for p in net.parameters() if p.grad is not None and p.grad.norm() > 1e-12]


def test_outputs_end_with_the_forward_pass() -> None:
    net = models.build(Model(family="maze", depth=16, width=6), MAZE).eval()
    x = torch.randn(2, 3, 11, 11)
    outputs = net.outputs(x, iterations=5)
    assert outputs.shape == (5, 2, 2, 11, 11)
    torch.testing.assert_close(outputs[2], net(x))
    torch.testing.assert_close(outputs[-1], net(x, iterations=5))


@pytest.mark.parametrize(("sharing", "same", "different"), [
    ("A", [("layer3.1.conv2", "layer3.5.conv2"), ("layer1.1.conv1", "layer1.2.conv1")], [("layer3.0.conv2", "layer3.1.conv2")]),
    ("B", [("layer3.0.conv3", "layer3.5.conv3"), ("layer2.0.conv2", "layer2.3.conv2")], [("layer3.0.conv1", "layer3.1.conv1")]),
    ("C", [("layer3.0.conv2", "layer3.5.conv2")], [("layer3.1.conv1", "layer3.2.conv1")]),
])  # fmt: skip
def test_shared_weights_of_resnet_50(sharing: str, same: Any, different: Any) -> None:
    with torch.device("meta"):
        net = models.build(Model(family="resnet50", depth=50, width=64, sharing=sharing), IMAGENET)  # type: ignore[arg-type]
    stem = list(net.stem)

    def weight(name: str) -> object:
        stage, block, conv = name.split(".")
        return getattr(stem[3 + int(stage[-1])][int(block)], conv).weight

    assert all(weight(a) is weight(b) for a, b in same)
    assert all(weight(a) is not weight(b) for a, b in different)
