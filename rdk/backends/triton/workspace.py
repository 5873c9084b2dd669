"""Peak bytes that a call holds beside its kept states and tapes; asked by the planner through the backend in __init__.py."""

from __future__ import annotations

from rdk.backends.base import Problem
from rdk.backends.triton.setting import setting_of


def peak_bytes(problem: Problem) -> int:
    """Upper bound of what forward and backward hold at once.

    Maps: a gradient for every stage and iteration of a block (see Setting.run_length), with a norm also the inputs that are
    built again; a stage's input, result and open skip, or their gradients; input and gradient in the other memory layout.
    Beside maps: packed weights, split sums of weight gradients, per-tile sums, the vectors of every norm, and the inject's
    gradient in float32.
    """
    setting = setting_of(problem)
    stages, channels = len(problem.stages), setting.channels
    block = setting.run_length(problem.iterations)
    sources = {stage.skip for stage in problem.stages}
    built = sum(
        1
        for number, stage in enumerate(problem.stages[:-1])
        if stage.norm and (stage.skip is not None or number + 1 in sources or (number == 0 and problem.inject))
    )
    skips = 2 if any(source is not None for source in sources) else 0
    maps = block * (stages + built) + 5 + skips + (1 if problem.inject else 0)
    weight = setting.columns * channels
    weights = 2 * stages if problem.tied else 2
    weights += 2 if problem.precision == "tf32" else 0  # while one is rounded
    partials = setting.splits * (stages if problem.tied else 1)
    vectors = setting.tiles * channels * (2 + stages)
    if problem.norm:
        vectors += 8 * problem.iterations * stages * channels
    inject = 4 * problem.map_bytes // problem.dtype.itemsize if problem.inject else 0
    return (
        maps * problem.map_bytes
        + weights * weight * problem.dtype.itemsize
        + 4 * (partials * weight + vectors)
        + inject
    )
