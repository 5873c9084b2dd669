"""Augmentation of uint8 images on the device: each gets its own window and flip, by one gather; called by sets and imagenet."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class EpochDraws(NamedTuple):
    """All that is random in an epoch, one entry per position: which image, where its window begins, whether it is mirrored."""

    order: Tensor  # (N,) numbers of images
    top: Tensor  # (N,) in [0, 2 * shift]
    left: Tensor
    flip: Tensor  # (N,) bool

    @staticmethod
    def of(count: int, seed: int, epoch: int, shift: int, flip: bool) -> EpochDraws:
        """Draws from the seed and the epoch's number alone, so that a restart in mid-epoch finds the same ones."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
        order = torch.randperm(count, generator=generator)
        top, left = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
        return EpochDraws(order, top, left, mirrored)

    def to(self, device: torch.device) -> EpochDraws:
        return EpochDraws(*(part.to(device) for part in self))

    def at(self, positions: slice) -> EpochDraws:
        return EpochDraws(*(part[positions] for part in self))


def windows(images: Tensor, labels: Tensor, draws: EpochDraws, shift: int) -> tuple[Tensor, Tensor]:
    """Cuts each image's window from `shift` pixels of zeros around it and mirrors where drawn; maps of labels move along.

    images: (N, C, H, W), labels: (N,) or (N, H, W); sizes and dtypes stay.
    """
    if labels.dim() == 3:
        if shift:
            labels = _gather(labels[:, None], draws, shift)[:, 0]
        return _gather(images, draws, shift) if shift else images, labels
    return _gather(images, draws, shift), labels


def _gather(images: Tensor, draws: EpochDraws, shift: int) -> Tensor:
    count, _, height, width = images.shape
    rows = draws.top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = draws.left[:, None] + torch.where(draws.flip[:, None], width - 1 - columns, columns)
    padded = F.pad(images, (shift, shift, shift, shift)) if shift else images
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # gathered as (N, H, W, C)


def normalised(images: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """uint8 (N, C, H, W) in 0 … 255 as floats: (x / 255 - mean) / deviation per channel."""
    scale = [1 / (255 * d) for d in deviation]
    offset = [-m / d for m, d in zip(mean, deviation, strict=True)]
    return images * images.new_tensor(scale, dtype=torch.float32).view(-1, 1, 1) + images.new_tensor(
        offset, dtype=torch.float32
    ).view(-1, 1, 1)
