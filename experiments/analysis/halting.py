"""When to stop iterating at test time: the authors' three modes, and accuracy per iteration (with Figure 5); called by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.configs import Experiment
from experiments.data.sets import open_source
from experiments.engine import Place, load
from experiments.settings import Run

MODES = ("default", "agreement", "max_confidence")


def predictions(outputs: Tensor, x: Tensor) -> Tensor:
    """Classes after every iteration; on mazes walls are 0. outputs: (n, N, K, …) → (n, N, …)."""
    found = outputs.argmax(2)
    return found * (x.amax(1) > 0) if found.dim() == 4 else found


def chosen_iteration(mode: str, outputs: Tensor, x: Tensor) -> Tensor:
    """(N,): the iteration, from 0, whose output a mode takes.

    default: the last. agreement: the first that agrees with any earlier one, in more than 99.9 % of the pixels (99.99 % beyond
    10 iterations), else the last. max_confidence: the one whose largest class probability is highest, averaged over free pixels.
    """
    iterations, count = outputs.shape[:2]
    last = torch.full((count,), iterations - 1, device=outputs.device)
    if mode == "default":
        return last
    if mode == "max_confidence":
        confidence = outputs.float().softmax(2).amax(2)  # (n, N, …)
        if confidence.dim() == 4:
            free = (x.amax(1) > 0).float()
            confidence = (confidence * free).sum((2, 3)) / free.sum((1, 2))
        return confidence.argmax(0)
    found = predictions(outputs, x).reshape(iterations, count, -1)
    needed = (0.999 if iterations <= 10 else 0.9999) * found.shape[2]
    chosen = last.clone()
    for later in reversed(range(1, iterations)):
        equal = (found[:later] == found[later]).sum(2) > needed  # (later, N)
        chosen[equal.any(0)] = later
    return chosen


@torch.no_grad()
def accuracies(run: Run, place: Place, iterations: int, images: int) -> dict[str, Any]:
    """Percent right per mode and per iteration, and how many iterations each mode took on average."""
    net = load(run, place)
    right = dict.fromkeys(MODES, 0)
    taken = dict.fromkeys(MODES, 0.0)
    per_iteration, seen = torch.zeros(iterations), 0
    for x, y in open_source(run.data, place.where).test(run.train.test_batch):
        outputs = net.outputs(x, iterations)
        correct = (predictions(outputs, x) == y).flatten(2).all(2) if y.dim() == 3 else predictions(outputs, x) == y
        per_iteration += correct.sum(1).cpu()
        for mode in MODES:
            chosen = chosen_iteration(mode, outputs, x)
            right[mode] += int(correct[chosen, torch.arange(len(x), device=x.device)].sum())
            taken[mode] += float((chosen + 1).sum())
        seen += len(x)
        if seen >= images:
            break
    return {
        "per_iteration": (100 * per_iteration / seen).tolist(),
        "accuracy": {mode: 100 * right[mode] / seen for mode in MODES},
        "iterations": {mode: taken[mode] / seen for mode in MODES},
        "images": seen,
    }


def halting(_: Experiment, runs: list[Run], place: Place, scale: str, pictures: Path) -> dict[str, Any]:
    """For every recurrent net of Figure 5: the modes at its own n, and accuracy at each iteration up to twice as many."""
    images = 10_000 if scale == "full" else 500
    rows = []
    for run in runs:
        if not run.model.recurrent:
            continue
        own, longer = (accuracies(run, place, n, images) for n in (run.model.iterations, 2 * run.model.iterations))
        settings = {"cells": run.data.cells, "depth": run.model.depth, "seed": run.seed, "key": run.key}
        rows.append(
            {**settings, **own, "per_iteration": longer["per_iteration"], "trained_iterations": run.model.iterations}
        )
    return {"nets": rows}
