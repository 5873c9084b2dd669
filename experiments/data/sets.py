"""Opens the data set that a settings.Data names and hands out its batches; called by engine.py and the analyses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from experiments.data.augment import EpochDraws, normalised, windows
from experiments.settings import Data, Shape

SHAPES = {
    "digits": Shape(1, 28, 10),
    "cifar10": Shape(3, 32, 10),
    "svhn": Shape(3, 32, 10),
    "emnist": Shape(1, 28, 47),
    "imagenet": Shape(3, 224, 1000),
}
# SVHN's and CIFAR-10's channels; EMNIST with MNIST's constants, as the authors have it
STATISTICS = {
    "digits": ((0.305,), (0.350,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "emnist": ((0.1307,), (0.3081,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mazes": ((0.0,), (1.0 / 255,)),  # 0 and 1 stay 0 and 1
}
SIZES = {"digits": (1437, 360), "cifar10": (50_000, 10_000), "svhn": (73_257, 26_032), "emnist": (112_800, 18_800)}
SIZES["imagenet"] = (1_281_167, 50_000)
CROP = 4  # pixels of zeros around CIFAR-10 images, from which a window is cut


class DataError(RuntimeError):
    """Data that is missing or damaged, in a sentence with file, checksum and folder."""


@dataclass(frozen=True)
class Where:
    """Where data lies and goes: a folder, whether files may be fetched, and the device for the batches."""

    root: Path = Path("runs/data")
    download: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 4


class Batches(NamedTuple):
    """Which batches of an epoch: `batch` images in all processes together, from `first` up to `last`."""

    batch: int
    first: int
    last: int
    rank: int = 0
    world: int = 1

    def own(self, step: int) -> slice:
        """The positions in the epoch of this process's share of a batch."""
        share = self.batch // self.world
        begin = step * self.batch + self.rank * share
        return slice(begin, begin + share)


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
            chosen = draws[batches.own(step)]
            images, labels = windows(self.images[chosen.order], self.labels[chosen.order], chosen, self.shift)
            yield normalised(images, *self.statistics), labels

    def test(self, batch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        shift = self.shift if self.shift_tests else 0
        draws = EpochDraws.of(self.test_size, 0, -1, shift, False).to(self.images.device)
        for begin in range(rank * batch, self.test_size, world * batch):
            images, labels = self.test_images[begin : begin + batch], self.test_labels[begin : begin + batch]
            images, labels = windows(images, labels, draws[begin : begin + batch], shift)
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
    from experiments.data.mazes import widest_shift

    return widest_shift(data.cells) if data.name == "mazes" and data.canvas else 0


def open_source(data: Data, where: Where) -> Source:
    """The data set, checked. Raises DataError where it is missing or damaged."""
    from experiments.data import files, imagenet

    if data.name == "imagenet":
        return imagenet.ImageNet(data, where)
    if data.name == "mazes":
        return InMemory(data, *_mazes(data), where.device)
    train, test = files.READERS[data.name](where)
    return InMemory(data, train, test, where.device)


def _mazes(data: Data) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from experiments.data.mazes import train_and_test

    sets = train_and_test(data.cells, data.train_count, data.test_count, seed=data.maze_seed, posts=data.posts)
    scale, canvas = (2, data.canvas) if data.canvas else (1, None)
    train, test = (
        (torch.from_numpy(part.images(scale, canvas)), torch.from_numpy(part.targets(scale, canvas)).long())
        for part in sets
    )
    return train, test
