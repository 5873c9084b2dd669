"""Which filters are active at which iteration (Figures 6, 9, 10, 11 and claim C11); called by name.

a[t, i, c] counts the positive entries of channel c after iteration t on image i; r = a[t] / max over t. The figures show, per
iteration, the distribution of r over the pairs (i, c) whose most active iteration is another one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import models
from experiments.configs import Experiment
from experiments.data.sets import open_source, shape_of
from experiments.engine import Place, load
from experiments.models.network import DepthNet
from experiments.settings import Run

IMAGES, BINS = 1_000, 50


@torch.no_grad()
def active_counts(net: DepthNet, x: Tensor) -> Tensor:
    """(n, N, C): positive entries of each channel's map after each iteration."""
    states = net.states(x)
    return (states > 0).flatten(3).sum(3)


def summary(counts: Tensor) -> dict[str, Any]:
    """Histograms of r per iteration, and how far filters are used again. counts: (n, N, C)."""
    counts = counts.double()
    most, at = counts.max(0)  # (N, C)
    alive = most > 0
    ratio = torch.where(alive, counts / most.clamp_min(1), torch.zeros_like(counts))
    histograms = []
    for iteration in range(len(counts)):
        chosen = ratio[iteration][alive & (at != iteration)]
        histograms.append(torch.histc(chosen, BINS, 0, 1).long().tolist())
    again = (ratio > 0).sum(0) >= 2  # (N, C)
    elsewhere = torch.cat([ratio[t][alive & (at != t)] for t in range(len(counts))])
    used = (counts.sum(1) > 0).sum(0)  # (C,) iterations on which a channel is active for any image
    return {
        "bins": BINS,
        "histograms": histograms,
        "pairs": int(alive.numel()),
        "pairs_never_active": int((~alive).sum()),
        "share_of_pairs_active_twice": float(again.sum() / alive.sum().clamp_min(1)),
        "channels": counts.shape[2],
        "channels_never_active": int((used == 0).sum()),
        "channels_active_twice": int((used >= 2).sum()),
        "mean_ratio_elsewhere": float(elsewhere.mean()) if len(elsewhere) else 0.0,
    }


def measure(net: DepthNet, run: Run, place: Place, scale: str) -> dict[str, Any]:
    """The summary over 1,000 test images, drawn once with seed 0; over all where there are fewer."""
    source = open_source(run.data, place.where)
    parts, images = [], IMAGES if scale != "smoke" else 50
    chosen = torch.randperm(source.test_size, generator=torch.Generator().manual_seed(0))[:images].sort().values
    batch = run.train.test_batch
    for number, (x, _) in enumerate(source.test(batch)):
        inside = chosen[(chosen >= number * batch) & (chosen < number * batch + len(x))] - number * batch
        if len(inside):
            parts.append(active_counts(net, x[inside.to(x.device)]).cpu())
    return summary(torch.cat(parts, dim=1))


def trained(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Figures 6, 10 and 11."""
    return {"nets": [{"seed": run.seed, **measure(load(run, place), run, place, scale)} for run in runs]}


def untrained(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Figure 9: the same nets before training, and how far their distribution is from the trained ones'."""
    nets = []
    for run in runs:
        torch.manual_seed(run.seed)
        fresh = models.build(run.model, shape_of(run.data)).to(place.device).eval()
        before, after = (measure(net, run, place, scale) for net in (fresh, load(run, place)))
        nets.append({"seed": run.seed, "distance_to_trained": total_variation(before, after), **before})
    return {"nets": nets}


def total_variation(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Half the L1 distance of the two histograms of r over all iterations, each made to sum to 1."""
    shares = []
    for entry in (one, other):
        bins = torch.tensor(entry["histograms"], dtype=torch.float64).sum(0)
        shares.append(bins / bins.sum().clamp_min(1))
    return float((shares[0] - shares[1]).abs().sum() / 2)


def reuse(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Claim C11: of the filters that are ever active, how many are active on more than one iteration."""
    rows = []
    for run in runs:
        found = measure(load(run, place), run, place, scale)
        active = found["channels"] - found["channels_never_active"]
        share = found["channels_active_twice"] / active if active else 0.0
        rows.append(
            {"net": run.title, "channels": found["channels"], "ever_active": active, "share_active_twice": share}
        )
    return {"rows": rows}
