"""What data sets share: error, folder, batches, means; used by sets, files, imagenet, cli, runner, engine, probes, visualise."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

# SVHN's and CIFAR-10's channels; EMNIST with MNIST's constants, as the authors have it
STATISTICS = {
    "digits": ((0.305,), (0.350,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "emnist": ((0.1307,), (0.3081,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mazes": ((0.0,), (1.0 / 255,)),  # 0 and 1 stay 0 and 1
}


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
