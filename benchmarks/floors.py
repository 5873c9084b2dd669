"""The least arithmetic and the least bytes of a case, and the two ceilings of a device; called by profile, plots and suites."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from benchmarks.problem import Precision
from benchmarks.timing import stopwatch
from benchmarks.workloads import Case


@dataclass(frozen=True)
class Floor:
    """What no version can do without."""

    flop: int
    bytes: int

    def milliseconds(self, flop_per_second: float, bytes_per_second: float) -> float:
        """The larger of the two times."""
        return 1e3 * max(self.flop / flop_per_second, self.bytes / bytes_per_second)

    @property
    def intensity(self) -> float:
        return self.flop / self.bytes


def floor(case: Case, training: bool, itemsize: int) -> Floor:
    """Forward: every convolution's products; input, inject and weights read once, the output written once.

    Training adds the products of the two gradients, the upstream gradient read, and the gradients of input, inject and weights
    written; states that a schedule could recompute are not counted. Products are those of a direct convolution: a Winograd
    transform does fewer.
    """
    weights = case.stages * case.taps * case.channels**2
    maps = 2 + case.recall
    if not training:
        return Floor(case.convolutions * case.conv_flop, itemsize * (maps * case.map_elements + weights))
    return Floor(3 * case.convolutions * case.conv_flop, itemsize * (2 * maps * case.map_elements + 2 * weights))


@dataclass(frozen=True)
class Ceilings:
    """What the device was measured to do: a large matrix product, and a large copy, bytes read and written."""

    flop_per_second: float
    bytes_per_second: float


def measure_ceilings(device: torch.device, precision: Precision, rounds: int = 10) -> Ceilings:
    """The best of several rounds of each, on random data."""
    precision.apply()
    size, count = (8192, 2**29) if device.type == "cuda" else (1536, 2**25)
    a = torch.randn(size, size, device=device).to(precision.dtype)
    b = torch.randn(size, size, device=device).to(precision.dtype)
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    watch = stopwatch(device)
    product, copy = [], []
    began = time.perf_counter()
    for _ in range(rounds):
        product.append(watch(lambda: a @ b))
        copy.append(watch(lambda: target.copy_(source)))
        if time.perf_counter() - began > 10:
            break
    return Ceilings(2e3 * size**3 / min(product), 2e3 * 4 * count / min(copy))
