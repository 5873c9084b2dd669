"""Linear probes on the frozen features after every iteration (Tables 3, 6 and 7); called by name.

Adam 1e-3, batch 128, 25 epochs, × 0.1 at epoch 15, no weight decay: the paper does not state the probes' training. All probes
of a net train together while its frozen features stream by, so nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.configs import Experiment
from experiments.data.base import Batches
from experiments.data.sets import Source, open_source
from experiments.engine import Place, load
from experiments.models.network import DepthNet
from experiments.settings import Run

EPOCHS, MILESTONE, BATCH, LEARNING_RATE = 25, 15, 128, 1e-3

Pool = Callable[[Tensor], Tensor]


def raw(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Table 3: the features as they are (512x16x16), no augmentation."""
    return {_kind(run): probe(run, place, scale, augment=False)[0] for run in runs}


def pooled(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Table 6: averaged to 4x4 per channel, the default; and to one number per channel, for the pool's size is not stated."""
    found = {}
    pools: list[Pool] = [lambda x: F.adaptive_avg_pool2d(x, 4), lambda x: x.mean((2, 3))]
    for run in runs:
        found[_kind(run)], found[f"{_kind(run)}, global"] = probe(run, place, scale, augment=False, pools=pools)
    return found


def small(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Table 7: a recurrent MLP and ConvNet, trained and measured under the nets' own augmentation."""
    return {f"{_kind(run)} {run.model.family}": probe(run, place, scale, augment=True)[0] for run in runs}


def _kind(run: Run) -> str:
    return "recurrent" if run.model.recurrent else "feed_forward"


def probe(
    run: Run, place: Place, scale: str, augment: bool, pools: Sequence[Pool] = (lambda x: x,)
) -> list[list[dict[str, float]]]:
    """Accuracy in percent on training and test images, per pool and iteration."""
    net = load(run, place).requires_grad_(False)
    source = open_source(run.data if augment else run.data.replaced(augment="none"), place.where)
    steps = source.train_size // BATCH if scale != "smoke" else 2
    epochs = EPOCHS if scale != "smoke" else 2
    probes = fit(net, pools, source, run.seed, epochs, Batches(BATCH, 0, steps))
    train = _accuracies(net, pools, probes, source.train(run.seed, epochs, Batches(BATCH, 0, steps)))
    test = _accuracies(net, pools, probes, source.test(BATCH))
    pairs = [{"train": a, "test": b} for a, b in zip(train, test, strict=True)]
    return [pairs[first : first + net.iterations] for first in range(0, len(pairs), net.iterations)]


def features(net: DepthNet, pools: Sequence[Pool], x: Tensor) -> list[Tensor]:
    """The (N, F) features, for each pool those after each iteration, without gradient."""
    with torch.no_grad():
        states = net.states(x)
        return [pool(state).flatten(1).float() for pool in pools for state in states]


def fit(
    net: DepthNet, pools: Sequence[Pool], source: Source, seed: int, epochs: int, batches: Batches
) -> nn.ModuleList:
    """One linear layer with bias per pool and iteration, all trained on the same batches."""
    torch.manual_seed(seed)
    x, y = next(iter(source.test(2)))
    classes = net.head(net.states(x)[-1]).shape[1]
    widths = [found.shape[1] for found in features(net, pools, x)]
    probes = nn.ModuleList([nn.Linear(width, classes) for width in widths]).to(x.device)
    adam = torch.optim.Adam(probes.parameters(), LEARNING_RATE)
    for epoch in range(epochs):
        if epoch == MILESTONE:
            adam.param_groups[0]["lr"] = LEARNING_RATE / 10
        for x, y in source.train(seed, epoch, batches):
            found = features(net, pools, x)
            loss = torch.stack([F.cross_entropy(probe(f), y) for probe, f in zip(probes, found, strict=True)]).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return probes


@torch.no_grad()
def _accuracies(
    net: DepthNet, pools: Sequence[Pool], probes: nn.ModuleList, batches: Iterator[tuple[Tensor, Tensor]]
) -> list[float]:
    right, images = torch.zeros(len(probes)), 0
    for x, y in batches:
        found = features(net, pools, x)
        right += torch.tensor([float((probe(f).argmax(1) == y).sum()) for probe, f in zip(probes, found, strict=True)])
        images += len(y)
    return (100 * right / images).tolist()
