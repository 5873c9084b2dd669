"""The same runs at a size that a laptop can do, and at one that only shows that they work; called by Experiment.runs_at."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.settings import Data, Run, Train

LAPTOP_WIDTHS = {"mlp": 200, "convnet": 32, "residual": 64, "residual_bn": 64}
LAPTOP_IMAGES = Data(name="digits")
# the paper's SGD does not leave the plateau of nets without BatchNorm in the 880 steps that digits give
LAPTOP_TRAIN = Train("adamw", 1e-3, epochs=20, lr_rule="cosine", weight_decay=1e-4, clip=1.0, batch=32, test_batch=180)
# the demo's optimiser: fresh mazes, one pass, clipped gradients
LAPTOP_MAZES = Train(
    "adamw", 8e-3, epochs=1, lr_rule="cosine", weight_decay=1e-4, betas=(0.9, 0.99), clip=1.0, batch=64, test_batch=250
)


def laptop(run: Run) -> Run | None:
    """Digits in place of CIFAR-10 (20 epochs of 44 steps), mazes at one pixel per unit; None where that would say nothing.

    One recipe for all, recurrent or not, so that what differs is the net alone.
    """
    if run.data.name == "mazes":
        if run.model.dilation != "none":
            return None  # dilation 2 belongs to the raster of two pixels per unit
        data = run.data.replaced(canvas=0, posts="closed", train_count=51_200, test_count=2_000)
        return run.replaced(scale="laptop", model=run.model.replaced(width=32), data=data, train=LAPTOP_MAZES)
    if run.model.family not in LAPTOP_WIDTHS or run.data.name != "cifar10":
        return None
    model = run.model.replaced(width=LAPTOP_WIDTHS[run.model.family])
    return run.replaced(scale="laptop", model=model, data=LAPTOP_IMAGES, train=LAPTOP_TRAIN)


def smoke(run: Run) -> Run:
    """Five steps of a narrow net on digits or on 80 small mazes."""
    train = run.train.replaced(epochs=1, milestones=(), batch=16, steps_per_epoch=5, dtype="float32")
    if run.data.name == "mazes":
        data = run.data.replaced(cells=3, canvas=0, posts="closed", train_count=80, test_count=20)
    else:
        data = LAPTOP_IMAGES
    return run.replaced(scale="smoke", model=run.model.replaced(width=16), data=data, train=train)


def at_scale(runs: Iterable[Run], scale: str) -> list[Run]:
    """The runs at full, laptop or smoke scale, without repetitions; smoke keeps the shallowest of each kind."""
    if scale == "full":
        return list(runs)
    if scale == "laptop":
        found = [small for run in runs if (small := laptop(run)) is not None]
    else:
        first: dict[object, Run] = {}
        for run in sorted(runs, key=lambda run: (run.seed, run.model.depth)):
            kind = run.model.family, run.model.recurrent, run.model.dilation, run.model.sharing
            first.setdefault(kind, smoke(run))
        found = list(first.values())
    return list({run.key: run for run in reversed(found)}.values())[::-1]
