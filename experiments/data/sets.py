"""Opens the data set that a settings.Data names and hands out its batches; called by engine.py, estimate.py and the analyses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from experiments.data import files, imagenet
from experiments.data.augment import EpochDraws, normalised, windows
from experiments.data.base import STATISTICS, Batches, Where
from experiments.data.mazes import train_and_test, widest_shift
from experiments.settings import Data, Shape

SHAPES = {
    "digits": Shape(1, 28, 10),
    "cifar10": Shape(3, 32, 10),
    "svhn": Shape(3, 32, 10),
    "emnist": Shape(1, 28, 47),
    "imagenet": Shape(3, 224, 1000),
}
SIZES = {"digits": (1437, 360), "cifar10": (50_000, 10_000), "svhn": (73_257, 26_032), "emnist": (112_800, 18_800)}
SIZES["imagenet"] = (1_281_167, 50_000)
CROP = 4  # pixels of zeros around CIFAR-10 images, from which a window is cut


class Source(Protocol):
    """Images, float and normalised, with labels (N,) or targets (N, H, W), on the device; equal arguments, equal batches."""

    train_size: int
    test_size: int

    def train(self, seed: int, epoch: int, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]: ...

    def test(self, batch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]: ...


class InMemory:
    """uint8 images (N, C, H, W) with labels (N,) or targets (N, H, W), kept on the device and augmented there."""

    def __init__(self, data: Data, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], device: torch.device):
        self.images, self.labels = (part.to(device) for part in train)
        self.test_images, self.test_labels = (part.to(device) for part in test)
        self.statistics = STATISTICS[data.name]
        self.shift = CROP if data.augment == "crop_flip" else maze_shift(data)
        self.shift_tests = data.name == "mazes"  # the authors' loader moves test mazes too
        self.flip = data.augment in ("flip", "crop_flip")
        self.train_size, self.test_size = len(self.images), len(self.test_images)

    def train(self, seed: int, epoch: int, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        draws = EpochDraws.of(self.train_size, seed, epoch, self.shift, self.flip).to(self.images.device)
        for step in range(batches.first, batches.last):
            chosen = draws.at(batches.own(step))
            images, labels = windows(self.images[chosen.order], self.labels[chosen.order], chosen, self.shift)
            yield normalised(images, *self.statistics), labels

    def test(self, batch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        shift = self.shift if self.shift_tests else 0
        draws = EpochDraws.of(self.test_size, 0, -1, shift, False).to(self.images.device)
        for begin in range(rank * batch, self.test_size, world * batch):
            images, labels = self.test_images[begin : begin + batch], self.test_labels[begin : begin + batch]
            images, labels = windows(images, labels, draws.at(slice(begin, begin + batch)), shift)
            yield normalised(images, *self.statistics), labels


def shape_of(data: Data) -> Shape:
    if data.name == "mazes":
        return Shape(3, data.canvas or 2 * data.cells + 1, 2)
    return SHAPES[data.name]


def sizes_of(data: Data) -> tuple[int, int]:
    """Images for training and for testing."""
    return (data.train_count, data.test_count) if data.name == "mazes" else SIZES[data.name]


def maze_shift(data: Data) -> int:
    """Pixels by which mazes move either way: the authors' 4, 2, 0 on their canvas, none at one pixel per unit."""
    return widest_shift(data.cells) if data.name == "mazes" and data.canvas else 0


def open_source(data: Data, where: Where) -> Source:
    """The data set, checked. Raises DataError where it is missing or damaged."""
    if data.name == "imagenet":
        return imagenet.ImageNet(data, where)
    if data.name == "mazes":
        return InMemory(data, *_mazes(data), where.device)
    train, test = files.READERS[data.name](where)
    return InMemory(data, train, test, where.device)


def _mazes(data: Data) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    sets = train_and_test(data.cells, data.train_count, data.test_count, seed=data.maze_seed, posts=data.posts)
    scale, canvas = (2, data.canvas) if data.canvas else (1, None)
    train, test = (
        (torch.from_numpy(part.images(scale, canvas)), torch.from_numpy(part.targets(scale, canvas)).long())
        for part in sets
    )
    return train, test
