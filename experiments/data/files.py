"""Reads digits, CIFAR-10, SVHN and EMNIST as uint8 tensors, through scikit-learn and torchvision; called by sets.open_source."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.data.atomic import write_atomic
from experiments.data.base import DataError, Where
from experiments.vision import torchvision

Pair = tuple[Tensor, Tensor]


def digits(where: Where) -> tuple[Pair, Pair]:
    """The 1,797 handwritten digits that scikit-learn brings (8x8, no download), enlarged to 28x28; 1,437 train, 360 test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return (images[train], labels[train]), (images[test], labels[test])


def cifar10(where: Where) -> tuple[Pair, Pair]:
    CIFAR10 = torchvision("datasets").CIFAR10

    folder = where.root / CIFAR10.base_folder
    wanted = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    _ready(where, "CIFAR-10", folder, wanted, CIFAR10.url, lambda: CIFAR10(str(where.root), download=True))

    def part(train: bool) -> Pair:
        found = CIFAR10(str(where.root), train=train)
        return torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(found.targets)

    return part(True), part(False)


def svhn(where: Where) -> tuple[Pair, Pair]:
    SVHN = torchvision("datasets").SVHN

    root = where.root / "svhn"
    splits = ("train", "test")
    wanted = [SVHN.split_list[split][1:3] for split in splits]

    def fetch() -> None:
        for split in splits:
            SVHN(str(root), split=split, download=True)

    _ready(where, "SVHN", root, wanted, SVHN.split_list["train"][0], fetch)

    def part(split: str) -> Pair:
        found = SVHN(str(root), split=split)
        return torch.from_numpy(found.data), torch.from_numpy(found.labels).long()

    return part("train"), part("test")


def emnist(where: Where) -> tuple[Pair, Pair]:
    """The balanced split. Images stay transposed, as torchvision and the authors have them."""
    EMNIST = torchvision("datasets").EMNIST

    archive = where.root / "EMNIST" / "raw" / "gzip.zip"
    raw = [archive.parent / f"emnist-balanced-{part}" for part in _idx_names()]
    if not all(file.exists() for file in raw):
        fetch = lambda: EMNIST(str(where.root), split="balanced", download=True)  # noqa: E731
        _ready(where, "EMNIST", archive.parent, [[archive.name, EMNIST.md5]], EMNIST.url, fetch)
        torchvision("datasets.utils").extract_archive(str(archive), str(archive.parent))
        _unpack(archive.parent)

    def part(train: bool) -> Pair:
        try:
            found = EMNIST(str(where.root), split="balanced", train=train)
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(
                f"EMNIST: the files emnist-balanced-* in {archive.parent} cannot be read ({error}). Remove them and "
                f"{archive.name}, and run the same command with --download."
            ) from error
        return found.data[:, None], found.targets.long()

    return part(True), part(False)


def _idx_names() -> list[str]:
    return [f"{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")]


def _unpack(folder: Path) -> None:
    """The archive holds gzip/emnist-balanced-*.gz; torchvision reads the unpacked files one folder up."""
    for name in _idx_names():
        packed = folder / "gzip" / f"emnist-balanced-{name}.gz"
        content = gzip.decompress(packed.read_bytes())
        _write(folder / f"emnist-balanced-{name}", content)


def _write(path: Path, content: bytes) -> None:
    write_atomic(path, lambda file: file.write(content))


def _ready(
    where: Where, name: str, folder: Path, wanted: Sequence[Sequence[str]], url: str, fetch: Callable[[], Any]
) -> None:
    """Raises DataError unless every file is there with its MD5; fetches first where that is allowed."""
    problem = _problem(folder, wanted)
    if problem and where.download:
        try:
            fetch()
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{name}: {problem}, and fetching {url} failed ({error}). Put the files into {folder} by hand."
            ) from error
        problem = _problem(folder, wanted)
    if problem:
        raise DataError(
            f"{name}: {problem}. Run the same command with --download to fetch {url}, or name the folder above "
            f"{folder.name!r} with --data-root; {where.root} was searched."
        )


def _problem(folder: Path, wanted: Sequence[Sequence[str]]) -> str:
    for name, checksum in wanted:
        file = folder / name
        if not file.exists():
            return f"the file {name} (MD5 {checksum}) is missing in {folder}"
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "md5").hexdigest()
        if found != checksum:
            return f"the file {name} in {folder} is damaged: its MD5 is {found}, expected {checksum}"
    return ""


READERS: dict[str, Callable[[Where], tuple[Pair, Pair]]] = {
    "digits": digits,
    "cifar10": cifar10,
    "svhn": svhn,
    "emnist": emnist,
}
