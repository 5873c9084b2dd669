"""Trains the demo's network, saves as it goes and resumes bit for bit; called by run and show."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rdk
from experiments import signals
from experiments.data.atomic import write_atomic
from experiments.demo import problem
from experiments.demo.network import Architecture, MazeNetwork
from experiments.demo.options import Options

SPREAD = 3  # iterations of a step are drawn from [n - 3, n + 3]
WARM_UP = 0.15  # of the steps
WEIGHT_DECAY, BETAS, CLIP = 1e-4, (0.9, 0.99), 1.0
SAVE_EVERY, SECONDS_BETWEEN_SAVES = 50, 5.0  # steps; whichever comes first


def trained_iterations(architecture: Architecture) -> tuple[int, int]:
    """The fewest and the most iterations that a training step runs."""
    n = architecture.iterations
    return (max(n - SPREAD, 1), n + SPREAD) if architecture.tied else (n, n)


class Stopped(Exception):  # noqa: N818 (it is no error)
    """A signal ended training early; everything is saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step


class Training:
    """Network, optimiser and place in the run. A step depends on these and on its own number, on nothing else."""

    def __init__(self, options: Options, exclude: frozenset[bytes]) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        self.network = MazeNetwork(options.architecture, **options.run_settings())
        self.network.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self.mazes = problem.TrainingMazes(
            options.architecture.cells, options.batch, options.seed, exclude, options.device
        )
        self.backends = self._backends()
        self.made_on = self.backends  # where the steps taken so far ran
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []

    def _backends(self) -> str:
        """The backends that a training step runs on."""
        size = 2 * self.options.architecture.cells + 1
        images = torch.zeros(self.options.batch, 3, size, size, device=self.options.device)
        with torch.enable_grad():
            state, inject = self.network.enter(images)
            found = rdk.explain(self.network.core, state, inject=inject)
        return found.forward if found.forward == found.backward else f"{found.forward}, backward {found.backward}"

    def file(self) -> Path:
        """The checkpoint of this configuration."""
        return self.options.folder() / "checkpoint.pt"

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        stored = {
            "identity": self.options.identity(),
            "backends": self.backends,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_atomic(self.file(), lambda file: torch.save(stored, file))

    def resume(self) -> bool:
        """Goes on from the checkpoint, where there is one. Raises ValueError, a sentence, where it can't be read."""
        if not self.file().is_file():
            return False
        try:
            stored: dict[str, Any] = torch.load(self.file(), map_location=self.options.device, weights_only=True)
            if stored["identity"] != self.options.identity():
                raise ValueError("another configuration")
            self.network.load_state_dict(stored["network"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.made_on = stored["backends"]
            self.step, self.seconds, self.losses = stored["step"], stored["seconds"], stored["losses"]
        except Exception as reason:  # foreign bytes make torch.load raise nearly anything
            raise ValueError(
                f"demo: the checkpoint {self.file()} was not read: it is truncated, altered or of another configuration. "
                f"Add --fresh to start anew."
            ) from reason
        return True

    def iterations_of(self, step: int) -> int:
        """Drawn for each batch: with recall this keeps accuracy flat when the network runs longer than it was trained.
        The feed-forward twin has only its own."""
        fewest, most = trained_iterations(self.options.architecture)
        return int(np.random.default_rng([self.options.seed, step]).integers(fewest, most + 1))

    def learning_rate_of(self, step: int) -> float:
        """Linear warm-up, then a cosine to 0."""
        warm = WARM_UP * self.options.steps
        if step < warm:
            return self.options.learning_rate * min((step + 1) / warm, 1.0)
        return self.options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (self.options.steps - warm)))

    def take_step(self) -> None:
        """One step of AdamW on fresh mazes."""
        images, targets = self.mazes.of_step(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate_of(self.step)
        self.optimizer.zero_grad()
        loss = problem.loss(self.network(images, self.iterations_of(self.step)), images, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.losses.append(float(loss.detach()))
        if not math.isfinite(self.losses[-1]):
            raise ValueError(
                f"demo: the loss is {self.losses[-1]} at step {self.step + 1}. Try a smaller --learning-rate than "
                f"{self.options.learning_rate}, or another --seed."
            )
        self.step += 1

    def run(self, report: Callable[[Training], None]) -> None:
        """Trains to the last step. SIGINT and SIGTERM end it after the step under way, saved: raises Stopped.

        A second SIGINT interrupts the step: raises KeyboardInterrupt, and what was last saved stands.
        """
        with signals.noted() as received:
            saved = time.monotonic()
            while self.step < self.options.steps:
                began = time.perf_counter()
                self.take_step()
                self.seconds += time.perf_counter() - began
                report(self)
                due = self.step % SAVE_EVERY == 0 or time.monotonic() - saved > SECONDS_BETWEEN_SAVES
                if due or received or self.step == self.options.steps:
                    self.save()
                    saved = time.monotonic()
                if received:
                    raise Stopped(received[0], self.step)
