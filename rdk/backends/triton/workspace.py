"""Peak bytes that a call holds beside its kept states and tapes; asked by the planner through the backend in __init__.py."""

from __future__ import annotations

from rdk.backends.base import Problem
from rdk.backends.triton.setting import built_inputs, setting_of


def peak_bytes(problem: Problem) -> int:
    """Upper bound of what forward and backward hold at once.

    Maps: a gradient for every stage and iteration of a block (see Setting.run_length), with a norm also the inputs that are
    built again; a stage's input, result and open skip, or their gradients; input and gradient in the other memory layout;
    the inject, and with a norm two states that are built again with it.
    Beside maps: packed weights, split sums of weight gradients, per-tile sums, the vectors of every norm, and the inject's
    gradient in float32.
    """
    setting = setting_of(problem)
    stages, channels = len(problem.stages), setting.channels
    block = setting.run_length(problem.iterations)
    skips = 2 if any(stage.skip is not None for stage in problem.stages) else 0
    maps = block * (stages + len(built_inputs(problem))) + 5 + skips
    if problem.inject:
        maps += 3 if problem.norm else 1
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
