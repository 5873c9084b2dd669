"""How many unseen mazes a network solves after every iteration; called by run, its curves read by show and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from experiments.data.mazes import MazeSet
from experiments.demo import problem
from experiments.demo.network import MazeNetwork

TOGETHER = 125  # mazes per forward pass

GOAL_TRAINED, GOAL_LONG, LONG = 0.95, 0.90, 20  # exact match at the trained iterations, and at 20


@dataclass(frozen=True)
class Curve:
    """Accuracy on one set of unseen mazes."""

    cells: int
    mazes: int
    accuracy: tuple[float, ...]  # after iteration 1, 2, …: share of mazes whose every pixel is right
    settled: torch.Tensor  # (N,) first iteration at which a maze is right, if it stays right to the last; else 0
    ended: bool  # the network can't run longer

    def at(self, iterations: int) -> float | None:
        """Accuracy after that many iterations; None where it was not run so long."""
        return self.accuracy[iterations - 1] if iterations <= len(self.accuracy) else None

    def best(self) -> tuple[float, int]:
        """The highest accuracy and the first iteration that reaches it."""
        highest = max(self.accuracy)
        return highest, self.accuracy.index(highest) + 1


@torch.no_grad()
def curve(network: MazeNetwork, chosen: MazeSet, longest: int, device: torch.device) -> Curve:
    """Runs every maze for `longest` iterations (an untied network: for its own) and counts after each."""
    iterations = network.longest(longest)
    parts = []
    for first in range(0, len(chosen), TOGETHER):
        images, targets = problem.tensors(chosen[first : first + TOGETHER], device)
        every = network.every_iteration(images, iterations)
        parts.append(torch.stack([problem.exactly_right(scores, images, targets) for scores in every]).cpu())
    right = torch.cat(parts, dim=1)  # (iterations, N)
    accuracy = tuple((right.sum(dim=1).double() / len(chosen)).tolist())
    wrong = iterations - right.sum(dim=0)
    stays = right.int().argmax(dim=0) == wrong  # as many wrong ones as come before the first right one
    return Curve(
        chosen.cells, len(chosen), accuracy, torch.where(stays & right[-1], wrong + 1, 0), not network.architecture.tied
    )


@dataclass(frozen=True)
class Goal:
    """What the demo promises, and whether this run keeps it."""

    what: str
    wanted: float
    got: float

    @property
    def reached(self) -> bool:
        return self.got >= self.wanted

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "NOT reached"
        return f"{self.what}: {percent(self.got)} of unseen mazes exactly right; goal {percent(self.wanted)}: {verdict}"


def goals(trained: Curve, iterations: int) -> list[Goal]:
    """The promises about mazes of the trained size."""
    found = []
    for number, wanted in ((iterations, GOAL_TRAINED), (LONG, GOAL_LONG)):
        got = trained.at(number)
        if got is not None:
            found.append(Goal(f"{trained.cells} cells at {number} iterations", wanted, got))
    return found


def percent(share: float) -> str:
    """0.9954 → "99.5 %"; never rounded up to 100."""
    return f"{min(100 * share, 99.9 if share < 1 else 100.0):.1f} %"
