"""Sends runs to a Slurm cluster through submitit, requeued where they end too early; called by cli.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import distributed
from experiments.engine import Place, train
from experiments.settings import Run

TIMEOUTS = 1000  # after which submitit no longer requeues a job; its own 3 would end a long run


@dataclass(frozen=True)
class Slurm:
    """A cluster's queue; with a partition named, the runs become one job array there, one run per job."""

    partition: str = ""
    hours: float = 8.0
    """per job; a run that takes longer is requeued and goes on from its checkpoint"""
    gpus: int = 1
    """per run; with more than one the run is shared by that many processes"""
    cpus: int = 8
    at_once: int = 16
    """jobs of the array that may run together"""
    cluster: str = "slurm"
    """submitit's executor: slurm, or local or debug to try it here"""


class RunJob:
    """What a job does; submitit calls it, and `checkpoint` when the job's time ends."""

    def __init__(self, run: Run, place: Place, device: str) -> None:
        self.run, self.place, self.device = run, place, device

    def __call__(self) -> dict[str, Any]:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        where = replace(self.place.where, device=distributed.local_device(self.device))
        return train(self.run, replace(self.place, where=where))

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(RunJob(self.run, self.place, self.device))


def submit(runs: Sequence[Run], slurm: Slurm, place: Place, device: str, console: Console) -> list[Any]:
    """Queues the runs and returns their jobs; `device` is a word of --device, resolved inside each job.

    `run` without a partition later collects and analyses them.
    """
    import submitit

    logs = Path(place.runs) / "slurm"
    executor = submitit.AutoExecutor(folder=str(logs), cluster=slurm.cluster, slurm_max_num_timeout=TIMEOUTS)
    executor.update_parameters(
        name="rdk-experiments",
        timeout_min=int(slurm.hours * 60),
        gpus_per_node=slurm.gpus,
        tasks_per_node=max(1, slurm.gpus),
        cpus_per_task=slurm.cpus,
        slurm_partition=slurm.partition,
        slurm_array_parallelism=slurm.at_once,
    )
    with executor.batch():
        jobs = [executor.submit(RunJob(run, place, device)) for run in runs]
    console.print(
        f"{len(jobs)} jobs queued; their logs are in {logs}. `python -m experiments status` shows how far they are."
    )
    return jobs
