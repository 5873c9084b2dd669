"""The presets: one experiment per table, figure and claim of the paper, with its runs; called by cli, runner, analysis, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from experiments.configs import recipes
from experiments.configs.scales import at_scale
from experiments.settings import Run, SettingsError, nearest

IMAGES = ("cifar10", "svhn", "emnist")
SEEDS = (0, 1, 2)
MAZE_DEPTHS = (8, 12, 16, 20, 24, 28, 36, 44)


@dataclass(frozen=True)
class Experiment:
    """A table, figure or claim. runs: what is trained for it; analysis: what is computed from that, by name."""

    name: str
    title: str
    runs: Callable[[], list[Run]] = list
    analysis: str = ""
    needs_data: tuple[str, ...] = ()
    at_laptop: bool = True
    """False: what it compares is the same or left out at that scale"""

    def runs_at(self, scale: str) -> list[Run]:
        return at_scale(self.runs(), scale) if self.at_laptop or scale != "laptop" else []


def _sweep(home: str, family: str, depths: dict[str, tuple[int, ...]], seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    return [
        recipes.image_run(home, family, data, depth, recurrent, seed)
        for seed in seeds
        for data, listed in depths.items()
        for recurrent in (True, False)
        for depth in listed
    ]


def f2a() -> list[Run]:
    return _sweep("F2a", "mlp", dict.fromkeys(IMAGES, tuple(range(3, 11))))


def f2b() -> list[Run]:
    return _sweep("F2b", "convnet", dict.fromkeys(IMAGES, (4, 5, 6, 7, 8)))


def f2b_wide() -> list[Run]:
    """EMNIST ConvNets of the authors' launch files: width 128, where the paper's Table 5 says 64."""
    found = _sweep("F2b-wide", "convnet", {"emnist": (4, 5, 6, 7, 8)})
    return [run.replaced(model=run.model.replaced(width=128)) for run in found]


def f2c() -> list[Run]:
    return _sweep("F2c", "residual", dict.fromkeys(IMAGES, (7, 11, 15, 19)))


def f2d() -> list[Run]:
    return [recipes.imagenet_run("F2d", "imagenet", d, r, 0) for r in (True, False) for d in (7, 11, 15, 19)]


def f2() -> list[Run]:
    return f2a() + f2b() + f2c()


def f5() -> list[Run]:
    return [
        recipes.maze_run("F5", cells, depth, recurrent, seed)
        for seed in (0, 1)
        for cells in (5, 6, 7)
        for depth in MAZE_DEPTHS
        for recurrent in (True, False)
    ]


def f5_adam() -> list[Run]:
    return [recipes.maze_adam_run("F5-adam", depth, seed) for seed in (0, 1) for depth in (8, 12, 16, 20)]


def t1() -> list[Run]:
    found = []
    for seed in SEEDS:
        for data in IMAGES:
            found += [recipes.image_run("T1", "residual_bn", data, depth, True, seed) for depth in (15, 19)]
            found.append(recipes.image_run("T1", "resnet18", data, 18, False, seed))
    return found


def t1_depths() -> list[Run]:
    """All depths of Table 1's networks with their feed-forward twins, as the authors swept them."""
    return _sweep("T1", "residual_bn", dict.fromkeys(IMAGES, (7, 11, 15, 19)))


def t2() -> list[Run]:
    variants = [("A", seed) for seed in SEEDS] + [("B", 0)]
    return [
        recipes.maze_run("T2", 5, depth, recurrent, seed, dilation)
        for dilation, seed in variants
        for depth in (8, 12, 16, 20)
        for recurrent in (True, False)
    ]


def c4() -> list[Run]:
    return [recipes.imagenet_run("C4", "resnet50", 50, False, 0, sharing) for sharing in ("none", "A", "B", "C")]


def c9() -> list[Run]:
    plain = [run for run in f5() if run.data.cells == 5 and run.model.depth <= 20]
    return [run for run in t2() if run.model.dilation == "A"] + plain


def _some(
    runs: Callable[[], list[Run]],
    data: str,
    depths: tuple[int, ...],
    recurrent: tuple[bool, ...],
    seeds: tuple[int, ...],
) -> Callable[[], list[Run]]:
    """Those runs of a sweep that an analysis looks at; their folders are the sweep's."""

    def found() -> list[Run]:
        return [
            run
            for run in runs()
            if run.data.name == data
            and run.model.depth in depths
            and run.model.recurrent in recurrent
            and run.seed in seeds
        ]

    return found


BOTH, R, F = (True, False), (True,), (False,)
PROBE_NETS = _some(f2c, "cifar10", (19,), BOTH, (0,))


def t7() -> list[Run]:
    return _some(f2a, "cifar10", (8,), R, (0,))() + _some(f2b, "cifar10", (7,), R, (0,))()


def c11() -> list[Run]:
    return (
        _some(f2b, "cifar10", (8,), R, (0,))()
        + _some(f2b, "svhn", (8,), R, (0,))()
        + _some(f2c, "cifar10", (19,), R, (0,))()
    )


EXPERIMENTS = {
    entry.name: entry
    for entry in [
        Experiment("T1", "Recurrent nets with BatchNorm against ResNet-18", t1, "", IMAGES),
        Experiment("T1-depths", "The same at every depth, with feed-forward twins", t1_depths, "", IMAGES),
        Experiment("T2", "Dilated maze nets: share of small mazes solved", t2),
        Experiment("T3", "Linear probes on the features after each module", PROBE_NETS, "probes_raw", ("cifar10",)),
        Experiment("T4", "Sizes of the MLPs", analysis="sizes_mlp"),
        Experiment("T5", "Channels of the ConvNets", analysis="sizes_convnet"),
        Experiment("T6", "Linear probes on average-pooled features", PROBE_NETS, "probes_pooled", ("cifar10",)),
        Experiment("T7", "Linear probes on a recurrent MLP and ConvNet", t7, "probes_small", ("cifar10",)),
        Experiment("F1", "Effective depth of a small recurrent net", analysis="effective_depth"),
        Experiment("F2", "Accuracy against effective depth (F2a, F2b and F2c)", f2, "", IMAGES),
        Experiment("F2a", "Accuracy against effective depth: MLPs", f2a, "", IMAGES),
        Experiment("F2b", "Accuracy against effective depth: ConvNets", f2b, "", IMAGES),
        Experiment("F2b-wide", "EMNIST ConvNets of width 128, as the authors launched them", f2b_wide, "", ("emnist",)),
        Experiment("F2c", "Accuracy against effective depth: residual nets", f2c, "", IMAGES),
        Experiment("F2d", "Accuracy against effective depth: residual nets on ImageNet", f2d, "", ("imagenet",)),
        Experiment("F3", "A maze and its solution", analysis="sample_maze"),
        Experiment("F4", "Lengths of the solution paths", analysis="path_lengths"),
        Experiment("F5", "Share of mazes solved against effective depth", f5, "halting"),
        Experiment("F5-adam", "Small mazes with the authors' unused Adam recipe", f5_adam, at_laptop=False),
        Experiment(
            "F6", "Active neurons of a recurrent ConvNet", _some(f2b, "cifar10", (8,), R, (0,)), "neurons", ("cifar10",)
        ),
        Experiment("F7", "Feature visualisation, ImageNet (with F12)", f2d, "visualise_imagenet", ("imagenet",)),
        Experiment(
            "F8",
            "Feature visualisation, CIFAR-10 (with F13)",
            _some(t1_depths, "cifar10", (19,), BOTH, (0,)),
            "visualise",
            ("cifar10",),
        ),
        Experiment(
            "F9",
            "Active neurons of untrained ConvNets",
            _some(f2b, "cifar10", (8,), R, SEEDS),
            "neurons_untrained",
            ("cifar10",),
        ),
        Experiment("F10", "Active neurons, SVHN", _some(f2b, "svhn", (8,), R, (0,)), "neurons", ("svhn",)),
        Experiment(
            "F11",
            "Active neurons of a recurrent residual net",
            _some(f2c, "cifar10", (19,), R, (0,)),
            "neurons",
            ("cifar10",),
        ),
        Experiment("F12", "More feature visualisation, ImageNet", f2d, "visualise_imagenet", ("imagenet",)),
        Experiment(
            "F13",
            "More feature visualisation, CIFAR-10",
            _some(t1_depths, "cifar10", (19,), BOTH, (0,)),
            "visualise",
            ("cifar10",),
        ),
        Experiment("C1", "12 M against 31 M parameters", analysis="parameters_residual"),
        Experiment("C2", "3.56 M, 3.57 M and 11.2 M parameters", analysis="parameters_batch_norm"),
        Experiment("C3", "Effective depth = outside + iterations × layers per module", analysis="depth_formula"),
        Experiment("C4", "ResNet-50 against weight-shared forms", c4, "", ("imagenet",)),
        Experiment(
            "C5",
            "CKA: same depth is more alike than same kind",
            _some(f2b, "cifar10", (4, 7, 8), BOTH, SEEDS),
            "cka",
            ("cifar10",),
        ),
        Experiment("C6", "Receptive fields and the mazes' size", analysis="receptive_field"),
        Experiment("C7", "Duplicates among the training mazes", analysis="duplicates"),
        Experiment("C8", "Mazes of training and test are disjoint", analysis="disjoint"),
        Experiment("C9", "Dilated nets solve more mazes", c9, at_laptop=False),
        Experiment("C10", "Compute that the runs took", lambda: f2() + f5() + t1() + t2()),
        Experiment("C11", "Every filter is active on more than one iteration", c11, "reuse", ("cifar10", "svhn")),
    ]
}


def experiment(name: str) -> Experiment:
    """The preset of that name. Raises SettingsError with the nearest names."""
    if name not in EXPERIMENTS:
        raise SettingsError(
            f"unknown experiment {name!r}.{nearest(name, EXPERIMENTS)} `python -m experiments list` shows all."
        )
    return EXPERIMENTS[name]
