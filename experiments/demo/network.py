"""The demo's maze network, and its file; called by options, training, evaluation, comparison and run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rdk
from experiments.data.atomic import write_atomic

FORMAT = "rdk maze network 1"


@dataclass(frozen=True)
class Architecture:
    """What a network is built from; stands in its file."""

    width: int = 16
    iterations: int = 6
    recall: bool = True
    tied: bool = True
    cells: int = 5  # size of the mazes that it is trained on


class MazeNetwork(nn.Module):
    """Conv 3→w, ReLU; `iterations` × two BasicBlocks; conv w→32, ReLU, 32→8, ReLU, 8→2: two scores per pixel.

    The maze network of Schwarzschild et al. (2022). recall=True shows it the image at every iteration (Bansal et al.
    2022): one linear stage takes conv(image) as its inject. tied=False is the feed-forward twin: every iteration owns its
    weights, and none can be added at test time. No biases, PyTorch's default initialisation.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        checkpoint: str | int = "auto",
        memory_budget: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.architecture = architecture
        w = architecture.width
        self.stem = nn.Conv2d(3, w, 3, padding=1, bias=False)
        self.look = nn.Conv2d(3, w, 3, padding=1, bias=False) if architecture.recall else None
        self.core = rdk.RecurrentResidual(
            w,
            architecture.iterations,
            recall=architecture.recall,
            tied=architecture.tied,
            checkpoint=checkpoint,
            memory_budget=memory_budget,
            backend=backend,
        )
        self.head = nn.Sequential(
            nn.Conv2d(w, 32, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(32, 8, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 2, 3, padding=1, bias=False),
        )

    def enter(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state before the first iteration, and the map that every iteration gets: both (N, w, H, W)."""
        return torch.relu(self.stem(images)), None if self.look is None else self.look(images)

    def forward(self, images: Tensor, iterations: int | None = None) -> Tensor:
        """images: (N, 3, H, W) of 0 and 1. Returns (N, 2, H, W) scores: off and on the path."""
        state, inject = self.enter(images)
        scores: Tensor = self.head(self.core(state, iterations=iterations, inject=inject))
        return scores

    def every_iteration(self, images: Tensor, iterations: int, together: int = 10) -> Iterator[Tensor]:
        """The scores (N, 2, H, W) after iteration 1, 2, …, `iterations`; `together` states are held at a time."""
        state, inject = self.enter(images)
        for start in range(0, iterations, together):
            count = min(together, iterations - start)
            first = 0 if self.architecture.tied else start
            states = self.core(state, iterations=count, start=first, inject=inject, return_states=True)
            state = states[-1]
            yield from (self.head(one) for one in states)

    def longest(self, wanted: int) -> int:
        """How many of `wanted` iterations it can run: an untied network has only its own."""
        return wanted if self.architecture.tied else min(wanted, self.architecture.iterations)


def save_network(path: str | Path, network: MazeNetwork, about: dict[str, Any]) -> None:
    """Writes weights and architecture, whole or not at all. `about`: how it was trained, plain numbers and words."""
    stored = {
        "format": FORMAT,
        "architecture": dataclasses.asdict(network.architecture),
        "about": about,
        "weights": {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()},
    }
    write_atomic(path, lambda file: torch.save(stored, file))


def load_network(path: str | Path, **settings: Any) -> tuple[MazeNetwork, dict[str, Any]]:
    """The network of a file that `save_network` wrote, and how it was trained. settings: checkpoint, backend, …

    Raises ValueError, in a sentence that names the file, where it is missing, truncated or foreign.
    """
    if not Path(path).is_file():
        raise ValueError(f"demo: there is no file {path}. Name one that --save has written.")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r}")
        network = MazeNetwork(Architecture(**stored["architecture"]), **settings)
        network.load_state_dict(stored["weights"])
        return network, dict(stored["about"])
    except Exception as reason:  # foreign bytes make torch.load raise nearly anything
        raise ValueError(
            f"demo: {path} was not read: expected a whole file in the format {FORMAT!r}, but it is truncated or of "
            f"another kind. Name a file that --save has written."
        ) from reason
