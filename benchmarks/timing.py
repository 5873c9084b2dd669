"""Times contenders in one process, in turns, so that drift meets all alike; for measure, profile, floors, suites and dispatch."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

L2_FLUSH_BYTES = 256 * 2**20  # more than twice the largest L2 cache (60 MB on H200)


@dataclass(frozen=True)
class Timing:
    """Order statistics of the samples of one contender, in milliseconds."""

    median: float
    p20: float
    p80: float
    least: float
    samples: int

    @property
    def spread(self) -> float:
        """(p80 - p20) / median."""
        return (self.p80 - self.p20) / self.median if self.median else 0.0

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        if not samples:
            raise ValueError("a timing needs at least one sample.")
        ordered = sorted(samples)
        return cls(
            statistics.median(ordered), _quantile(ordered, 0.2), _quantile(ordered, 0.8), ordered[0], len(ordered)
        )


def _quantile(ordered: list[float], fraction: float) -> float:
    """Linear interpolation between the two nearest order statistics."""
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


class Stopwatch(Protocol):
    """Runs a function once and returns how long it took, in milliseconds."""

    def __call__(self, run: Callable[[], object]) -> float: ...


class HostStopwatch:
    """Wall clock, for devices that finish before the call returns. An untimed call goes before each, so that caches and free
    memory are as the same call leaves them, as in a loop, and not as another contender did: a virtual machine gives memory
    that is free for a second back to its host, and whoever came next would pay for fetching it again."""

    def __call__(self, run: Callable[[], object]) -> float:
        run()
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)


class CudaStopwatch:
    """CUDA events around one call. Before each, a buffer larger than the L2 cache is overwritten, so that no contender finds
    the tensors of its last call there; the launches of the call are queued meanwhile, as in a training loop that runs ahead."""

    def __init__(self, device: torch.device) -> None:
        self.flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device=device)
        self.before = torch.cuda.Event(enable_timing=True)
        self.after = torch.cuda.Event(enable_timing=True)

    def __call__(self, run: Callable[[], object]) -> float:
        self.flush.zero_()
        self.before.record()
        run()
        self.after.record()
        self.after.synchronize()
        return float(self.before.elapsed_time(self.after))


def stopwatch(device: torch.device) -> Stopwatch:
    return CudaStopwatch(device) if device.type == "cuda" else HostStopwatch()


@dataclass(frozen=True)
class Patience:
    """How long one comparison may go on: rounds until `seconds` are over, at least `least` and at most `most` of them, after
    `warmup` runs of each contender."""

    seconds: float = 2.0
    least: int = 5
    most: int = 100
    warmup: int = 2


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    watch: Stopwatch,
    patience: Patience = Patience(),
    clock: Callable[[], float] = time.perf_counter,
    drop: Callable[[str, Exception], None] | None = None,
    begin: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Every contender (warm) once per round, in an order drawn anew for each round; the statistics of each over all rounds.

    One that raises has no statistics: `drop` is told, and the rounds go on without it. Without `drop` its error passes through.
    `begin` is told whose turn comes.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order, generator = list(contenders), random.Random(0)
    deadline = clock() + patience.seconds
    for number in range(patience.most):
        if number >= patience.least and clock() >= deadline:
            break
        generator.shuffle(order)
        for name in list(order):
            begin(name)
            try:
                samples[name].append(watch(contenders[name]))
            except Exception as error:
                if drop is None:
                    raise
                drop(name, error)
                order.remove(name)
                del samples[name]
    return {name: Timing.of(values) for name, values in samples.items()}
