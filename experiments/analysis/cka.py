"""Linear centred kernel alignment between nets (claim C5), in float64, biased and debiased; called by name.

Sources: Kornblith et al. (ICML 2019), the biased form, which the paper uses; the debiased form takes the unbiased estimator of
HSIC of Song et al. (JMLR 2012).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.configs import Experiment
from experiments.data.sets import open_source
from experiments.engine import Place, load
from experiments.settings import Run

# the last pooled vector, the internal module's output, its mean over the map
LAYERS = ("penultimate", "module", "module_mean")


def gram(x: Tensor) -> Tensor:
    """X Xᵀ of the column-centred features x (N, p), in float64."""
    x = x.double() - x.double().mean(0)
    return x @ x.T


def biased(k: Tensor, m: Tensor) -> float:
    """|Yᵀ X|² / (|Xᵀ X| |Yᵀ Y|) from the Gram matrices of X and Y."""
    return float((k * m).sum() / (k.norm() * m.norm()))


def debiased(k: Tensor, m: Tensor) -> float:
    """The same with unbiased estimates of HSIC; may be slightly negative for unrelated features. Needs 4 rows or more."""
    if len(k) < 4:
        raise ValueError(f"debiased CKA needs at least 4 rows, got {len(k)}.")
    return float(_hsic(k, m) / (_hsic(k, k) * _hsic(m, m)).sqrt())


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    k, m = k - k.diag().diag(), m - m.diag().diag()
    a, b = k.sum(0), m.sum(0)
    return ((k * m).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b) / (n - 2)) / (n * (n - 3))


@torch.no_grad()
def layer_features(run: Run, place: Place, layer: str, most: int) -> Tensor:
    """Features (N, p) of the test images at one of LAYERS."""
    net = load(run, place)
    parts: list[Tensor] = []
    seen = 0
    for x, _ in open_source(run.data, place.where).test(run.train.test_batch):
        state = net.states(x)[-1]
        found: dict[str, Callable[[Tensor], Tensor]] = {
            "module": lambda s: s.flatten(1),
            "module_mean": lambda s: s.mean((2, 3)),
            "penultimate": net.head[:-1],
        }
        parts.append(found[layer](state))
        seen += len(x)
        if seen >= most:
            break
    return torch.cat(parts)[:most]


def pairings(runs: list[Run]) -> dict[str, list[tuple[Run, Run]]]:
    """FF8–R8 and the pairs to compare it with, over all pairs of seeds; depths as the figures label them.

    Label 8 has 9 layers by the paper's definition and label 7 has 8, so both stand for the paper's "8 layers".
    """
    nets = {(run.model.recurrent, run.model.depth, run.seed): run for run in runs}
    seeds = sorted({run.seed for run in runs})
    found: dict[str, list[tuple[Run, Run]]] = {}
    for deep in (8, 7):
        for name, one, other in (
            (f"FF{deep}-R{deep}", (False, deep), (True, deep)),
            (f"FF{deep}-FF4", (False, deep), (False, 4)),
            (f"R{deep}-R4", (True, deep), (True, 4)),
            (f"R{deep}-FF4", (True, deep), (False, 4)),
            (f"FF{deep}-FF{deep}, other seed", (False, deep), (False, deep)),
        ):
            both = itertools.combinations(seeds, 2) if one == other else itertools.product(seeds, seeds)
            keys = [((*one, a), (*other, b)) for a, b in both]
            pairs = [(nets[a], nets[b]) for a, b in keys if a in nets and b in nets]
            if pairs:
                found[name] = pairs
    return found


def compare(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """Claim C5: mean and deviation over the pairs of seeds, per layer and form.

    A layer at a time: the Gram matrices of all nets at 10,000 images are 0.8 GB each.
    """
    most = 64 if scale == "smoke" else 10_000
    pairs = {"smoke": [(runs[0], runs[1])]} if scale == "smoke" else pairings(runs)
    found: dict[str, Any] = {"images": 0, **{name: {} for name in pairs}}
    for layer in LAYERS:
        grams = {run.key: gram(layer_features(run, place, layer, most)) for run in runs}
        found["images"] = len(next(iter(grams.values())))
        for name, nets in pairs.items():
            for form, measure in (("biased", biased), ("debiased", debiased)):
                values = [measure(grams[a.key], grams[b.key]) for a, b in nets]
                spread = statistics.stdev(values) if len(values) > 1 else None
                entry = {"mean": statistics.mean(values), "deviation": spread, "n": len(values)}
                found[name][f"{layer} {form}"] = entry
    return found
