"""The problems that are measured, once for benchmarks and tests alike: W1–W7, the CPU's, the mazes' and the linear shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

import rdk


@dataclass(frozen=True)
class Case:
    """One network on one input: everything that fixes the arithmetic, and no tensor."""

    workload: str
    kind: str  # "conv" (RecurrentConv), "residual" (RecurrentResidual, two blocks) or "linear" (RecurrentLinear, 1x1)
    batch: int
    channels: int
    height: int
    width: int
    iterations: int
    norm: bool = False
    recall: bool = False
    dilation: int = 1

    @property
    def stages(self) -> int:
        """Convolutions, or linear layers, per iteration."""
        return (5 if self.recall else 4) if self.kind == "residual" else 1

    @property
    def taps(self) -> int:
        """Weights per pair of channels."""
        return 1 if self.kind == "linear" else 9

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the state: (N, C, H, W), or (N, C) for a linear layer."""
        maps = () if self.kind == "linear" else (self.height, self.width)
        return self.batch, self.channels, *maps

    @property
    def convolutions(self) -> int:
        return self.iterations * self.stages

    @property
    def conv_flop(self) -> int:
        """Operations of one 3x3 convolution, or linear layer, over the batch, a multiply-add counted as two."""
        return 2 * self.taps * self.channels**2 * self.height * self.width * self.batch

    @property
    def map_elements(self) -> int:
        return self.batch * self.channels * self.height * self.width

    @property
    def label(self) -> str:
        """How tables name the case: W4 n=10, W4s 9x9 n=10."""
        size = f" {self.height}x{self.width}" if self.workload in ("W4s", "maze", "cpu", "grid") else ""
        return f"{self.workload}{size} n={self.iterations}"

    @property
    def description(self) -> str:
        """C128 32x32, batch 50, 4 convs, n = 10; 500 features, batch 128, n = 10."""
        if self.kind == "linear":
            return f"{self.channels} features, batch {self.batch}, n = {self.iterations}"
        extras = "".join(
            [", BatchNorm" if self.norm else "", f", dilation {self.dilation}" if self.dilation > 1 else ""]
            + [", recall" if self.recall else ""]
        )
        convs = "1 conv" if self.stages == 1 else f"{self.stages} convs"
        return (
            f"C{self.channels} {self.height}x{self.width}, batch {self.batch}, {convs}{extras}, n = {self.iterations}"
        )

    def with_batch(self, batch: int) -> Case:
        return replace(self, batch=batch)

    def module(self, **settings: object) -> rdk.RecurrentConv | rdk.RecurrentResidual | rdk.RecurrentLinear:
        """The rdk module of the case, initialised by PyTorch's defaults; settings as for the module."""
        norm = "batch" if self.norm else None
        if self.kind == "linear":
            return rdk.RecurrentLinear(self.channels, self.iterations, norm=norm, **settings)  # type: ignore[arg-type]
        if self.kind == "conv":
            return rdk.RecurrentConv(self.channels, self.iterations, norm=norm, dilation=self.dilation, **settings)  # type: ignore[arg-type]
        return rdk.RecurrentResidual(
            self.channels,
            self.iterations,
            recall=self.recall,
            norm=norm,
            dilation=self.dilation,
            **settings,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Workload:
    """A family of cases: one network at several depths, and on several maps where `maps` holds more than one."""

    name: str
    title: str
    kind: str
    channels: int
    maps: tuple[tuple[int, int], ...]
    batch: int
    iterations: tuple[int, ...]
    headline: tuple[int, ...]  # the iterations that the win/lose table shows
    passes: tuple[str, ...] = ("forward", "training")
    norm: bool = False
    recall: bool = False
    dilation: int = 1

    def case(self, iterations: int, size: tuple[int, int] | None = None) -> Case:
        height, width = size or self.maps[0]
        return Case(
            self.name,
            self.kind,
            self.batch,
            self.channels,
            height,
            width,
            iterations,
            self.norm,
            self.recall,
            self.dilation,
        )

    def cases(self, headline_only: bool = False) -> Iterator[Case]:
        for size in self.maps:
            for iterations in self.headline if headline_only else self.iterations:
                yield self.case(iterations, size)


MAZE_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("W1", "ConvNet", "conv", 64, ((28, 28),), 128, (1, 5, 32, 64), (5, 64)),
        Workload("W2", "ResNet", "residual", 512, ((16, 16),), 128, (1, 2, 3, 4), (4,)),
        Workload("W3", "BatchNorm ResNet", "residual", 256, ((16, 16),), 128, (1, 2, 3, 4), (4,), norm=True),
        Workload("W4", "maze", "residual", 128, ((32, 32),), 50, MAZE_DEPTHS, (10,)),
        Workload("W4s", "small maps", "residual", 128, ((9, 9), (11, 11), (13, 13)), 50, MAZE_DEPTHS, (10,)),
        Workload(
            "W4r", "roll-out", "residual", 128, ((32, 32),), 1, (100, 300, 1000), (100, 1000), passes=("rollout",)
        ),
        Workload("W5", "dilated maze", "residual", 128, ((32, 32),), 50, (1, 2, 3, 4), (4,), dilation=2),
        Workload("W6", "recall", "residual", 128, ((32, 32),), 50, MAZE_DEPTHS, (10,), recall=True),
        Workload("W7", "ImageNet at depth", "residual", 512, ((28, 28),), 64, (4, 16, 64), (4, 16, 64)),
    )
}

# single convolutions at the batch of one CPU step
CPU_SHAPES: tuple[Case, ...] = tuple(
    Case("cpu", "conv", batch, channels, size, size, iterations)
    for batch, channels, size, iterations in (
        (128, 64, 28, 5),
        (50, 128, 32, 10),
        (32, 256, 16, 4),
        (32, 512, 16, 4),
        (1, 128, 32, 30),
        (64, 128, 9, 10),
        (64, 128, 13, 10),
    )
)

# the residual networks of the mazes on the maps they are trained and tested on, with the batch of one CPU step
MAZE_SHAPES: tuple[Case, ...] = tuple(
    Case("maze", "residual", batch, 128, size, size, iterations, recall=recall)
    for batch, size, iterations, recall in (
        (10, 9, 5, False),
        (10, 11, 5, False),
        (10, 13, 5, False),
        (4, 32, 5, False),
        (4, 32, 5, True),
        (1, 32, 30, False),
    )
)

# calls whose arithmetic is nothing: what is measured is the fixed cost of a call
TINY_SHAPES: tuple[Case, ...] = tuple(Case("tiny", kind, 1, 8, 4, 4, 1) for kind in ("conv", "residual"))

# the fully connected networks of the paper: 500 features, one layer repeated
LINEAR_SHAPES: tuple[Case, ...] = tuple(
    Case("linear", "linear", 128, 500, 1, 1, iterations) for iterations in (1, 2, 5, 10)
)

# the growth curves vary one of iterations, batch, channels and map of this case, by type of device
CURVE_BASE = {"cpu": Case("curve", "conv", 1, 64, 16, 16, 10), "cuda": Case("curve", "conv", 64, 64, 28, 28, 10)}


class UnknownWorkloadError(ValueError):
    """No workload has the name asked for; the message lists the nearest names."""


def named(name: str) -> Workload:
    """The workload of that name, in any case. Raises UnknownWorkloadError."""
    for key, workload in WORKLOADS.items():
        if key.lower() == name.lower():
            return workload
    nearest = get_close_matches(name.upper(), WORKLOADS, n=3, cutoff=0.3) or list(WORKLOADS)
    raise UnknownWorkloadError(
        f"unknown workload {name!r}; the nearest are {', '.join(nearest)} (all: {', '.join(WORKLOADS)})."
    )
