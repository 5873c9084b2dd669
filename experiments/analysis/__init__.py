"""What is computed beyond training, by name; called by runner.analyse. Each takes (experiment, runs, place, scale, pictures)
and returns plain values for a record; `pictures` is a folder for those that draw while they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.analysis import arithmetic, cka, halting, maze_claims, neurons, probes, receptive, visualise
from experiments.configs import Experiment
from experiments.engine import Place
from experiments.settings import Run

Analysis = Callable[[Experiment, list[Run], Place, str, Path], dict[str, Any]]

ANALYSES: dict[str, Analysis] = {
    "sizes_mlp": arithmetic.sizes_mlp,
    "sizes_convnet": arithmetic.sizes_convnet,
    "effective_depth": arithmetic.effective_depth,
    "parameters_residual": arithmetic.parameters_residual,
    "parameters_batch_norm": arithmetic.parameters_batch_norm,
    "depth_formula": arithmetic.depth_formula,
    "sample_maze": maze_claims.sample_maze,
    "path_lengths": maze_claims.path_lengths,
    "duplicates": maze_claims.duplicates,
    "disjoint": maze_claims.disjoint,
    "receptive_field": receptive.receptive_field,
    "probes_raw": probes.raw,
    "probes_pooled": probes.pooled,
    "probes_small": probes.small,
    "neurons": neurons.trained,
    "neurons_untrained": neurons.untrained,
    "reuse": neurons.reuse,
    "cka": cka.compare,
    "visualise": visualise.cifar,
    "visualise_imagenet": visualise.imagenet,
    "halting": halting.halting,
}
