"""Images that excite single filters (Figures 7, 8, 12, 13), by gradient ascent with the paper's regularisers; called by name.

Adam 0.01 with a cosine to 0 over 1,000 steps; circular jitter; minimised is -main · L + tv · TV + bn · BN with coefficients that
go linearly from the first shown layer to the last. What the paper leaves open (main = 1 at the first layer, the start N(0, 1),
the form of the BatchNorm term) is chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.configs import Experiment
from experiments.data.base import STATISTICS, Batches
from experiments.data.sets import open_source, shape_of
from experiments.engine import Place, load
from experiments.models.network import DepthNet
from experiments.settings import Run

JITTER = 32
MORE = ("F12", "F13")  # these go on with the filters after those of Figures 7 and 8


class Coefficients(NamedTuple):
    main: float
    tv: float
    bn: float


class Recipe(NamedTuple):
    """What differs between the two data sets: coefficients at the last layer, images at once, contrastive or not."""

    last: Coefficients
    batch: int
    contrastive: bool


CIFAR = Recipe(Coefficients(0.64, 1.0, 10.0), 64, False)
IMAGENET = Recipe(Coefficients(0.01, 5.0, 50.0), 32, True)
FIRST = Coefficients(1.0, 0.0, 0.0)


def coefficients(recipe: Recipe, layer: int, layers: int) -> Coefficients:
    """Linear in the layer's number, from FIRST to the recipe's."""
    part = layer / max(1, layers - 1)
    return Coefficients(*(a + part * (b - a) for a, b in zip(FIRST, recipe.last, strict=True)))


def layer_functions(net: DepthNet) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """The layers shown: stem, the module after each iteration, the last convolution."""
    pools = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    pool = next(number for number, layer in enumerate(net.head) if isinstance(layer, pools))
    found: list[tuple[str, Callable[[Tensor], Tensor]]] = [("stem", net.stem)]
    for n in range(1, net.iterations + 1):
        found.append((f"iteration {n}", lambda x, n=n: net.states(x, n)[-1]))  # type: ignore[misc]
    return [*found, ("last convolution", lambda x: net.head[:pool](net.states(x)[-1]))]


def total_variation(x: Tensor) -> Tensor:
    """The sum of the L2 norms of the differences to the right, down and along both diagonals. x: (N, C, H, W)."""
    right, down = x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]
    falling, rising = x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
    return right.norm() + down.norm() + falling.norm() + rising.norm()


def objective(activations: Tensor, contrastive: bool, first: int = 0) -> Tensor:
    """Σ_i |a_f(x_i)|, image i to excite filter f = first + i; contrastive: n times that, less the other images' |a_f(x_j)|."""
    norms = activations.flatten(2).norm(dim=2)  # (N, C)
    filters = (first + torch.arange(len(norms))) % norms.shape[1]
    own = norms[torch.arange(len(norms)), filters]
    if not contrastive:
        return own.sum()
    return (len(norms) * own - (norms[:, filters].sum(0) - own)).sum()


def stem_statistics(net: DepthNet, run: Run, place: Place, images: int) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel before the stem's activation: the BatchNorm's own, or measured on training images."""
    for layer in net.stem.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            return layer.running_mean, layer.running_var
    batch = run.train.batch
    parts = []
    with torch.no_grad():
        for x, _ in open_source(run.data, place.where).train(0, 0, Batches(batch, 0, max(1, images // batch))):
            parts.append(_pre_activation(net)(x))
    found = torch.cat(parts)
    return found.mean((0, 2, 3)), found.var((0, 2, 3))


def _pre_activation(net: DepthNet) -> nn.Module:
    assert isinstance(net.stem, nn.Sequential)
    return net.stem[0]


def visualise(
    net: DepthNet,
    layer: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int, int],
    weights: Coefficients,
    statistics: tuple[Tensor, Tensor],
    contrastive: bool,
    steps: int,
    first: int = 0,
) -> Tensor:
    """Images (N, C, H, W) in the net's normalised space, image i for filter first + i."""
    generator = torch.Generator().manual_seed(0)
    device = next(net.parameters()).device
    x = torch.randn(shape, generator=generator).to(device).requires_grad_()
    adam = torch.optim.Adam([x], 0.01)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / steps))
        shift = torch.randint(-JITTER + 1, JITTER, (2,), generator=generator).tolist()
        moved = x.roll(shift, (2, 3))
        loss = -weights.main * objective(layer(moved), contrastive, first)
        if weights.tv:
            loss = loss + weights.tv * total_variation(moved)
        if weights.bn:
            before = _pre_activation(net)(moved)
            mean, variance = before.mean((0, 2, 3)), before.var((0, 2, 3))
            loss = loss + weights.bn * ((mean - statistics[0]).norm() + (variance - statistics[1]).norm())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return x.detach()


def high_frequency_share(images: Tensor) -> float:
    """The part of the images' energy, without their mean, beyond half of the highest frequency."""
    power = torch.fft.fft2(images - images.mean((2, 3), keepdim=True)).abs().square().sum((0, 1))
    height, width = power.shape
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    radius = (rows[:, None].square() + columns.square()).sqrt().to(power.device)
    return float(power[radius > 0.25].sum() / power.sum())


def cifar(experiment: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Figures 8 and 13."""
    return _all(experiment, runs, place, scale, pictures, CIFAR)


def imagenet(experiment: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Figures 7 and 12, of the deepest nets."""
    deepest = max(run.model.depth for run in runs)
    return _all(experiment, [run for run in runs if run.model.depth == deepest], place, scale, pictures, IMAGENET)


def _all(
    experiment: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path, recipe: Recipe
) -> dict[str, Any]:
    steps, batch, shown = {"full": (1000, recipe.batch, 12), "laptop": (1000, 12, 12), "smoke": (3, 4, 4)}[scale]
    first = shown if experiment.name in MORE else 0
    found: dict[str, Any] = {"steps": steps, "batch": batch, "first_filter": first, "nets": []}
    for run in runs:
        net = load(run, place).requires_grad_(False)
        statistics = stem_statistics(net, run, place, 1024)
        shape = shape_of(run.data)
        rows, shares = [], {}
        functions = layer_functions(net)
        for number, (name, layer) in enumerate(functions):
            weights = coefficients(recipe, number, len(functions))
            size = (batch, shape.channels, shape.size, shape.size)
            images = visualise(net, layer, size, weights, statistics, recipe.contrastive, steps, first)
            shares[name] = high_frequency_share(images)
            rows.append(images[:shown].cpu())
        kind = "recurrent" if run.model.recurrent else "feed_forward"
        file = f"{experiment.name}.{scale}.{kind}.png"
        save_grid(pictures / file, rows, STATISTICS[run.data.name])
        found["nets"].append({"kind": kind, "seed": run.seed, "picture": file, "high_frequency": shares})
    return found


def save_grid(path: Path, rows: list[Tensor], statistics: Any) -> None:
    """One row of images per layer, each image stretched to the full range of grey or colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mean, deviation = (torch.tensor(part).view(-1, 1, 1) for part in statistics)
    lines = []
    for images in rows:
        pixels = images * deviation + mean
        low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        pixels = torch.nn.functional.pad((pixels - low) / (high - low).clamp_min(1e-6), (1, 1, 1, 1), value=1.0)
        lines.append(torch.cat(list(pixels.expand(-1, 3, -1, -1)), dim=2))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = torch.cat(lines, dim=1).permute(1, 2, 0).repeat_interleave(3, 0).repeat_interleave(3, 1)
    plt.imsave(path, grid.clamp(0, 1).numpy())
