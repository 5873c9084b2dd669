"""Which mazes the demo trains and tests on, and what right means; called by training, evaluation, comparison and run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.data import mazes
from experiments.data.mazes import MazeSet

TEST_STREAM = 1  # of a seed; training takes the streams from 2 on
STEPS_PER_STREAM = 64


def test_mazes(cells: int, count: int, seed: int, exclude: Collection[bytes]) -> MazeSet:
    """Mazes that training never sees: training here excludes them by key, or they exclude those of an earlier training."""
    return mazes.generate(cells, count, seed=seed, stream=TEST_STREAM, exclude=exclude)


def tensors(chosen: MazeSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S), float32, channels_last, and targets (N, S, S), int64; one pixel per unit."""
    images = torch.from_numpy(chosen.images()).to(device, torch.float32, memory_format=torch.channels_last)
    return images, torch.from_numpy(chosen.targets()).to(device, torch.int64)


def training_keys(cells: int, about: dict[str, Any], source: object) -> frozenset[bytes]:
    """The keys of the mazes that a network was trained on, drawn again from what its file says. Raises ValueError."""
    try:
        steps, batch, seed, tests = (int(about[name]) for name in ("steps", "batch", "seed", "test_mazes"))
    except (KeyError, TypeError, ValueError) as reason:
        raise ValueError(
            f"demo: {source} does not say which mazes the network was trained on, so no maze can be called unseen. Train "
            f"again with --save; --solve works with this file."
        ) from reason
    known = frozenset(test_mazes(cells, tests, seed, ()).keys())
    keys: set[bytes] = set()
    for first in range(0, steps, STEPS_PER_STREAM):
        drawn = mazes.generate(
            cells,
            min(STEPS_PER_STREAM, steps - first) * batch,
            seed=seed,
            stream=TEST_STREAM + 1 + first // STEPS_PER_STREAM,
            exclude=known,
        )
        keys.update(drawn.keys())
    return frozenset(keys)


class TrainingMazes:
    """Fresh mazes for every step, a function of seed and step alone, so that a resumed run sees the same ones."""

    def __init__(self, cells: int, batch: int, seed: int, exclude: frozenset[bytes], device: torch.device) -> None:
        self.cells, self.batch, self.seed, self.exclude, self.device = cells, batch, seed, exclude, device
        self._stream = -1
        self._images = self._targets = torch.empty(0)

    def of_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and targets of one step, as `tensors`."""
        stream, place = divmod(step, STEPS_PER_STREAM)
        if stream != self._stream:
            drawn = mazes.generate(
                self.cells,
                STEPS_PER_STREAM * self.batch,
                seed=self.seed,
                stream=TEST_STREAM + 1 + stream,
                exclude=self.exclude,
            )
            self._images, self._targets = tensors(drawn, self.device)
            self._stream = stream
        chosen = slice(place * self.batch, (place + 1) * self.batch)
        return self._images[chosen], self._targets[chosen]


def free_pixels(images: Tensor) -> Tensor:
    """(N, H, W): every pixel that is no wall."""
    return images.amax(dim=1) > 0


def loss(scores: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the free pixels of the whole batch."""
    free = free_pixels(images)
    return F.cross_entropy(scores.permute(0, 2, 3, 1)[free], targets[free])


def prediction(scores: Tensor, images: Tensor) -> Tensor:
    """(N, H, W) bool: which pixels are said to be on the path; walls never are."""
    return (scores[:, 1] > scores[:, 0]) & free_pixels(images)


def exactly_right(scores: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """(N,) bool: mazes whose every pixel is right."""
    return (prediction(scores, images) == targets.bool()).flatten(1).all(dim=1)
