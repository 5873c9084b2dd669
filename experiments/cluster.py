"""Sends runs to a Slurm cluster through submitit, requeued where they end too early; called by cli.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import distributed
from experiments.engine import Place, train
from experiments.settings import Run


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

    def __init__(self, run: Run, place: Place) -> None:
        self.run, self.place = run, place

    def __call__(self) -> dict[str, Any]:
        import submitit

        if self.place.device.type == "cuda":
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        where = self.place.where
        place = Place(
            where=type(where)(
                where.root, where.download, distributed.local_device(self.place.device.type), where.workers
            ),
            runs=self.place.runs,
            save_seconds=self.place.save_seconds,
            tensorboard=self.place.tensorboard,
        )
        return train(self.run, place)

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(RunJob(self.run, self.place))


def submit(runs: Sequence[Run], slurm: Slurm, place: Place, console: Console) -> list[Any]:
    """Queues the runs and returns their jobs. `run` without a partition later collects and analyses them."""
    import submitit

    logs = Path(place.runs) / "slurm"
    executor = submitit.AutoExecutor(folder=str(logs), cluster=slurm.cluster)
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
        jobs = [executor.submit(RunJob(run, place)) for run in runs]
    console.print(
        f"{len(jobs)} jobs queued; their logs are in {logs}. `python -m experiments status` shows how far they are."
    )
    return jobs
