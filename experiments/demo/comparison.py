"""Time and memory of one training step in plain PyTorch and in rdk, checked against each other first; called by run and show."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rdk
from experiments.demo import problem
from experiments.demo.network import MazeNetwork
from rdk.testing import peak_bytes

ROUNDS = 6
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 2e-2  # relative; a ReLU that rounding flips moves a gradient by 1e-3


@dataclass(frozen=True)
class Row:
    """One way to compute the same training step."""

    name: str
    seconds: float
    peak: int  # bytes
    difference: float  # of all gradients from plain PyTorch's, relative L2

    def stored(self) -> dict[str, Any]:
        return asdict(self)


class DisagreementError(RuntimeError):
    """Two ways to compute one training step gave different results, so no number of theirs is shown."""


def plain_iteration(network: MazeNetwork, state: Tensor, inject: Tensor | None, iteration: int) -> Tensor:
    """What rdk computes in one iteration, as anyone would write it in PyTorch; rdk.to_modules has n iterations in one piece,
    and here n changes and each iteration is a checkpoint of its own."""
    inputs = []
    for number, stage in enumerate(network.core.functional_stages()):
        inputs.append(state)
        weight = stage.weight if isinstance(stage.weight, Tensor) else stage.weight[iteration]
        state = F.conv2d(state, weight, padding=1)
        if number == 0 and inject is not None:
            state = state + inject
        if stage.skip is not None:
            state = state + inputs[stage.skip]
        if stage.relu:
            state = torch.relu(state)
    return state


def _plain(network: MazeNetwork, images: Tensor, iterations: int, checkpointed: bool) -> Tensor:
    state, inject = network.enter(images)
    for iteration in range(iterations):
        if checkpointed:
            state = checkpoint(plain_iteration, network, state, inject, iteration, use_reentrant=False)
        else:
            state = plain_iteration(network, state, inject, iteration)
    scores: Tensor = network.head(state)
    return scores


def compare(network: MazeNetwork, images: Tensor, targets: Tensor, iterations: int, rounds: int = ROUNDS) -> list[Row]:
    """One row per way; the first is plain PyTorch. Raises DisagreementError where results differ by more than rounding."""
    core = network.core
    settings = core.checkpoint, core.memory_budget

    def rdk_forward(checkpointing: str | int, budget: int | None) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            core.checkpoint, core.memory_budget = checkpointing, budget
            return network(images, iterations)

        return forward

    state = network.enter(images)[0]
    budget = fitting_budget(network, tuple(state.shape), iterations)
    forwards = {
        "PyTorch": lambda: _plain(network, images, iterations, False),
        "PyTorch, torch.utils.checkpoint": lambda: _plain(network, images, iterations, True),
        'rdk, checkpoint="none"': rdk_forward("none", None),
        'rdk, checkpoint="sqrt"': rdk_forward("sqrt", None),
        "rdk, checkpoint=3": rdk_forward(3, None),
        f"rdk, memory_budget={budget / 2**20:.1f} MiB": rdk_forward("auto", budget),
    }

    def step(forward: Callable[[], Tensor]) -> float:
        network.zero_grad()
        loss = problem.loss(forward(), images, targets)
        loss.backward()
        return float(loss.detach())

    try:
        expected = step(forwards["PyTorch"]), _gradients(network)
        differences = {}
        for name, forward in forwards.items():
            differences[name] = _checked(name, (step(forward), _gradients(network)), expected)
        steps = {name: (lambda forward=forward: step(forward)) for name, forward in forwards.items()}
        seconds = _interleaved_medians(steps, rounds, images.device)
        rows = []
        for name, run in steps.items():
            network.zero_grad()
            rows.append(Row(name, seconds[name], _peak(run, images.device), differences[name]))
        return rows
    finally:
        core.checkpoint, core.memory_budget = settings
        network.zero_grad()


def fitting_budget(network: MazeNetwork, shape: tuple[int, ...], iterations: int) -> int:
    """A quarter of what keeping everything would take, or the next doubling of it that fits."""
    inject = network.look is not None
    all_bytes = rdk.plan(network.core, shape, checkpoint="none", iterations=iterations, inject=inject).bytes_peak
    budget = max(all_bytes // 4, 1)
    while True:
        try:
            rdk.plan(network.core, shape, memory_budget=budget, iterations=iterations, inject=inject)
            return budget
        except rdk.BudgetError:
            budget *= 2


def _gradients(network: MazeNetwork) -> Tensor:
    """Every gradient in one vector; weights of iterations that did not run have none."""
    return torch.cat([p.grad.flatten().double() for p in network.parameters() if p.grad is not None])


def _checked(name: str, got: tuple[float, Tensor], expected: tuple[float, Tensor]) -> float:
    """The relative difference of the gradients. Raises DisagreementError where it, or that of the loss, is too large."""
    loss = abs(got[0] - expected[0]) / max(abs(expected[0]), 1e-3)
    gradient = float((got[1] - expected[1]).norm() / expected[1].norm().clamp_min(1e-30))
    if not (loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE):
        raise DisagreementError(
            f"demo: the training step of {name} differs from plain PyTorch's: loss by {loss:.1e} (at most "
            f"{LOSS_TOLERANCE:.0e} is rounding), gradients by {gradient:.1e} (at most {GRADIENT_TOLERANCE:.0e}). "
            f"Its time and memory are not shown. Please report this with the output of `python -m rdk.info`."
        )
    return gradient


def _interleaved_medians(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each run. Every round runs each of them once, so that whatever disturbs the machine disturbs all
    alike; the checks before were the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs.items())
    for _ in range(rounds):
        order = order[1:] + order[:1]  # no run is always the first of a round
        for name, run in order:
            _wait(device)
            began = time.perf_counter()
            run()
            _wait(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _peak(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that PyTorch's allocator of the device held at once during run(), beyond what it held before."""
    if device.type != "cuda":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the profiler announces what it clears
            return peak_bytes(run)
    gc.collect()
    _wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
