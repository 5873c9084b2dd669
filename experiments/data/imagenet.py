"""ImageNet from a local folder, decoded by worker processes; called by sets.open_source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.data.augment import normalised
from experiments.data.base import STATISTICS, Batches, DataError, Where
from experiments.settings import Data
from experiments.vision import torchvision

SIZE, SHORT_SIDE = 224, 256


class ImageNet:
    """train/<class>/*.JPEG and val/<class>/*.JPEG under data-root/imagenet; archives that lie there are unpacked."""

    def __init__(self, data: Data, where: Where) -> None:
        self.where = where
        self.files = {split: _samples(where, split) for split in ("train", "val")}
        self.augment = data.augment == "crop_flip"
        self.train_size, self.test_size = len(self.files["train"]), len(self.files["val"])

    def train(self, seed: int, epoch: int, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
        order = torch.randperm(self.train_size, generator=generator).tolist()
        positions = [order[batches.own(step)] for step in range(batches.first, batches.last)]
        images = _Images(self.files["train"], self.augment, seed * 1_000_003 + epoch + 1)
        yield from self._load(images, positions)

    def test(self, batch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        begins = range(rank * batch, self.test_size, world * batch)
        positions = [list(range(begin, min(begin + batch, self.test_size))) for begin in begins]
        yield from self._load(_Images(self.files["val"], False, 0), positions)

    def _load(self, images: _Images, positions: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        pinned = self.where.device.type == "cuda"
        loader = DataLoader(images, batch_sampler=positions, num_workers=self.where.workers, pin_memory=pinned)
        for pixels, labels in loader:
            pixels = pixels.to(self.where.device, non_blocking=True)
            yield normalised(pixels, *STATISTICS["imagenet"]), labels.to(self.where.device, non_blocking=True)


class _Images(Dataset[tuple[Tensor, int]]):
    """Decoded 224x224 windows; what is random depends on the epoch's seed and the image alone, not on the worker."""

    def __init__(self, files: list[tuple[str, int]], augment: bool, seed: int) -> None:
        self.files, self.augment, self.seed = files, augment, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path, label = self.files[number]
        image = _decoded(path)
        if not self.augment:
            return _centre(image), label
        generator = torch.Generator().manual_seed(self.seed * 1_300_021 + number)
        return _random_window(image, generator), label


def _decoded(path: str) -> Tensor:
    """(3, H, W) uint8, by torchcodec; by PIL, which gives the same bits, where that refuses a file or is not installed."""
    decode_jpeg = _jpeg_decoder()
    if decode_jpeg is not None:
        try:
            return decode_jpeg(path, mode="RGB")
        except (RuntimeError, ValueError):
            pass  # a PNG that is called .JPEG is among the training images
    return _decoded_by_pil(path)


@cache
def _jpeg_decoder() -> Callable[..., Tensor] | None:
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError):  # not installed, or built for another version of PyTorch
        return None
    return decode_jpeg


def _decoded_by_pil(path: str) -> Tensor:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"ImageNet: {path} cannot be decoded ({error}). Replace the file.") from error


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    found = F.interpolate(image[None].float(), size=(height, width), mode="bilinear", antialias=True)
    return found[0].round().clamp(0, 255).to(torch.uint8)


def _centre(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    scale = SHORT_SIDE / min(height, width)
    image = _resized(image, max(SHORT_SIDE, round(height * scale)), max(SHORT_SIDE, round(width * scale)))
    top, left = (image.shape[1] - SIZE) // 2, (image.shape[2] - SIZE) // 2
    return image[:, top : top + SIZE, left : left + SIZE]


def _random_window(image: Tensor, generator: torch.Generator) -> Tensor:
    """8 to 100 % of the area at an aspect of 3/4 to 4/3, resized, mirrored half of the time (Szegedy et al. 2015)."""
    height, width = image.shape[1:]
    draws = torch.rand(33, generator=generator).tolist()
    mirror = draws.pop() < 0.5
    window = (0, 0, height, width)
    for first in range(0, 32, 4):
        area, aspect, down, right = draws[first : first + 4]
        pixels = height * width * (0.08 + 0.92 * area)
        ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            window = (int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
            break
    top, left, h, w = window
    image = _resized(image[:, top : top + h, left : left + w], SIZE, SIZE)
    return image.flip(2) if mirror else image


def _samples(where: Where, split: str) -> list[tuple[str, int]]:
    datasets = torchvision("datasets")
    root = where.root / "imagenet"
    if not (root / split).is_dir():
        try:
            datasets.ImageNet(str(root), split=split)  # unpacks the archives, after comparing their MD5
        except (RuntimeError, OSError) as error:
            raise DataError(_missing(str(root), split)) from error
    try:
        return list(datasets.ImageFolder(str(root / split)).samples)
    except OSError as error:
        raise DataError(f"ImageNet: {root / split} holds no folders of images, one per class ({error}).") from error


def _missing(root: str, split: str) -> str:
    known = torchvision("datasets.imagenet").ARCHIVE_META
    archives = ", ".join(f"{name} (MD5 {md5})" for name, md5 in (known[split], known["devkit"]))
    return (
        f"ImageNet: {root} has no folder {split!r}, and not the archives {archives}. They can't be fetched by a program: "
        f"get them from image-net.org, put them there, or name the folder above 'imagenet' with --data-root."
    )
