"""The paper's training recipes, one function per kind of data; called by the presets and analysis/arithmetic.

Where text and code of the authors differ, the code is followed and the difference is said in README.md.
"""

from __future__ import annotations

from experiments.settings import Data, Model, Run, Train

WIDTHS = {"mlp": 500, "convnet": 64, "residual": 512, "residual_bn": 256, "resnet18": 64}
AUGMENT = {"cifar10": "crop_flip", "svhn": "flip", "emnist": "flip", "digits": "none"}
SVHN_CONVNET_LR = {4: 0.05, 5: 0.05, 6: 0.04, 7: 0.03, 8: 0.03}


def image_run(
    home: str, family: str, data: str, depth: int, recurrent: bool, seed: int, width: int | None = None
) -> Run:
    """A classification run of Figure 2 or Table 1."""
    if width is None:
        width = 200 if (family, data) == ("mlp", "cifar10") else WIDTHS[family]
    model = Model(family=family, depth=depth, width=width, recurrent=recurrent)  # type: ignore[arg-type]
    train = image_recipe(family, data, depth, recurrent)
    return Run(home, model=model, data=Data(name=data, augment=AUGMENT[data]), train=train, seed=seed)  # type: ignore[arg-type]


def image_recipe(family: str, data: str, depth: int, recurrent: bool) -> Train:
    """SGD with momentum 0.9, batch 128; learning rate, milestones and epochs as the authors' launch files give them."""
    milestones: tuple[int, ...]
    if family == "mlp":
        milestones, epochs = {"svhn": ((50, 125), 150), "emnist": ((100, 150), 150)}.get(data, ((100, 150), 200))
        return Train(lr=0.01, milestones=milestones, epochs=epochs)
    if family == "convnet":
        if recurrent:
            lr = SVHN_CONVNET_LR[depth] if data == "svhn" else 0.01
        else:
            lr = 0.05
        return Train(lr=lr, milestones=(50, 100, 150), epochs=200)
    if family == "residual":
        milestones = (50, 150, 175) if data == "emnist" else (100, 150, 175)
        return Train(lr=0.01 if recurrent and depth == 19 else 0.1, milestones=milestones, epochs=200)
    if data == "cifar10":
        return Train(lr=0.1, milestones=(100, 150, 175), epochs=200)
    late = family == "residual_bn" and not recurrent and depth == 19
    return Train(lr=0.1, milestones=(80, 140) if late else (60, 120), epochs=160)


# depth: (lr, milestones, factor, epochs) for recurrent nets; (lr, milestones, epochs) for feed-forward ones
_FEED_FORWARD: dict[int, dict[int, tuple[float, tuple[int, ...], int]]] = {
    5: {8: (0.1, (60, 120), 150), 12: (0.05, (50, 100), 150), 16: (0.001, (175,), 200), 20: (0.001, (175,), 200)},
    7: {8: (0.1, (60, 120), 160), 12: (0.05, (50, 100), 150), 16: (0.005, (175,), 200), 20: (0.002, (175,), 200)},
}
_FEED_FORWARD[6] = _FEED_FORWARD[5]
_DEEP_FEED_FORWARD_LR = {5: 0.001, 6: 0.001, 7: 0.002}  # from depth 24 on
_RECURRENT: dict[int, dict[int, tuple[float, tuple[int, ...], float, int]]] = {
    5: {
        16: (0.02, (50, 100), 0.1, 150),
        20: (0.01, (50, 100), 0.1, 150),
        24: (0.002, (60, 120), 0.5, 160),
        28: (0.002, (60, 120), 0.25, 160),
        36: (0.001, (40, 100), 0.25, 160),
        44: (0.001, (60, 120), 0.25, 160),
    },
    6: {
        16: (0.05, (50, 100), 0.1, 150),
        20: (0.04, (50, 100), 0.1, 150),
        24: (0.008, (60, 120), 0.5, 160),
        28: (0.006, (60, 120), 0.25, 160),
        36: (0.006, (40, 80), 0.25, 120),
        44: (0.004, (40, 80), 0.25, 120),
    },
    7: {
        16: (0.04, (75, 125), 0.1, 150),
        20: (0.02, (75, 125), 0.1, 150),
        24: (0.01, (80, 140), 0.1, 180),
        28: (0.006, (80, 140), 0.25, 180),
        36: (0.004, (80, 140), 0.25, 200),
        44: (0.006, (60, 120), 0.25, 180),
    },
}
for _size in _RECURRENT.values():
    _size.update({8: (0.1, (175,), 0.1, 200), 12: (0.05, (50, 100), 0.1, 150)})


def maze_run(home: str, cells: int, depth: int, recurrent: bool, seed: int, dilation: str = "none") -> Run:
    """A maze run of Figure 5 or Table 2; recurrent modules train with lr / n."""
    model = Model(family="maze", depth=depth, width=128, recurrent=recurrent, dilation=dilation)  # type: ignore[arg-type]
    if recurrent:
        lr, milestones, factor, epochs = _RECURRENT[cells][depth]
    else:
        fallback = (_DEEP_FEED_FORWARD_LR[cells], (175,), 200)
        (lr, milestones, epochs), factor = _FEED_FORWARD[cells].get(depth, fallback), 0.1
    train = Train(lr=lr, milestones=milestones, factor=factor, epochs=epochs, batch=50, lr_per_iteration=recurrent)
    return Run(home, model=model, data=Data(name="mazes", cells=cells), train=train, seed=seed)


def maze_adam_run(home: str, depth: int, seed: int) -> Run:
    """The authors' Adam recipe for small recurrent mazes, which the paper does not use; a fallback that needs fewer epochs."""
    model = Model(family="maze", depth=depth, width=128)
    milestones, epochs = ((40, 100), 140) if depth == 8 else ((40, 80), 120)
    train = Train("adam", 5e-4, milestones, 0.25, epochs, batch=50, lr_per_iteration=True)
    return Run(home, model=model, data=Data(name="mazes"), train=train, seed=seed)


def imagenet_run(home: str, family: str, depth: int, recurrent: bool, seed: int, sharing: str = "none") -> Run:
    """ImageNet, 90 epochs at batch 256; a proposal, for the paper states no recipe."""
    width = 512 if family == "imagenet" else 64
    model = Model(family=family, depth=depth, width=width, recurrent=recurrent, sharing=sharing)  # type: ignore[arg-type]
    train = Train(lr=0.1, milestones=(30, 60, 80), epochs=90, batch=256, weight_decay=1e-4, dtype="bfloat16")
    return Run(home, model=model, data=Data(name="imagenet", augment="crop_flip"), train=train, seed=seed)
