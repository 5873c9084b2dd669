"""How long runs would take, by arithmetic alone; called by runner.py for --dry-run and by the report."""

from __future__ import annotations

import functools
from typing import NamedTuple

from experiments import models
from experiments.data.sets import shape_of, sizes_of
from experiments.settings import Data, Model, Run


class Rate(NamedTuple):
    """What a device is assumed to do. A step takes the longer of its arithmetic and the floor."""

    tflops: float
    step_ms: float


RATES = {"cuda": Rate(300.0, 0.5), "cpu": Rate(0.05, 2.0)}  # one H100 in bf16; one core in fp32


class Estimate(NamedTuple):
    steps: int
    pflop: float
    hours: float


def estimate(run: Run, rate: Rate) -> Estimate:
    """Steps, arithmetic (3 forward passes, 2 FLOP per multiply-accumulate) and hours of one run."""
    per_epoch = sizes_of(run.data)[0] // run.train.batch
    steps = run.train.epochs * min(per_epoch, run.train.steps_per_epoch or per_epoch)
    flop = (
        6.0
        * _macs(run.model.replaced(recurrent=True, backend="auto", checkpoint="auto"), run.data)
        * run.train.batch
        * steps
    )
    seconds = max(flop / (rate.tflops * 1e12), steps * rate.step_ms * 1e-3)
    return Estimate(steps, flop / 1e15, seconds / 3600)


@functools.cache
def _macs(model: Model, data: Data) -> int:
    return models.forward_macs(model, shape_of(data))
