"""Trains one run to its result, and goes on bit for bit where it was stopped; called by cli, runner, cluster and the analyses.

What is random in an epoch is drawn from the seed and the epoch's number (data/augment.py), and the initial weights from the
seed, so a checkpoint holds weights, optimiser, position and sums, and no random state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rdk
from experiments import distributed, models, signals
from experiments.data.base import Batches, Where
from experiments.data.sets import Source, open_source, shape_of
from experiments.distributed import World
from experiments.folders import RunFolder, provenance
from experiments.models.network import DepthNet, memory_format
from experiments.settings import Run, SettingsError, as_dict
from experiments.steps import Step, autocast, check_dtype, learning_rate, optimizer, scores, set_learning_rate
from rdk.modules import Recurrent

POLL_STEPS = 20  # how often a GPU, or several processes, look whether to stop, to save, or whether the loss is a number


@dataclass(frozen=True)
class Place:
    """Where and how runs happen; nothing in it changes what is computed."""

    where: Where = field(default_factory=Where)
    runs: Path = Path("runs")
    save_seconds: float = 300.0
    tensorboard: bool = False

    @property
    def device(self) -> torch.device:
        return self.where.device


class Interrupted(Exception):  # noqa: N818 (no error)
    """Ctrl-C or SIGTERM came; the checkpoint is written."""


class Diverged(RuntimeError):  # noqa: N818 (what happened, not who erred)
    """The loss or a weight is no longer a number; the last good checkpoint stands."""


@dataclass
class Progress:
    """Where a run stands: after `step` steps of `epoch`."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    restarts: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))  # see steps.scores
    history: list[dict[str, Any]] = field(default_factory=list)


def train(run: Run, place: Place, world: World | None = None) -> dict[str, Any]:
    """The run's result: read if it stands, else computed. Every process of the run calls this.

    Raises SettingsError, DataError, FolderError for what cannot be run, Diverged where the loss is no number, and
    Interrupted after Ctrl-C or SIGTERM; all but the last two before anything is computed. A second Ctrl-C raises
    KeyboardInterrupt at once, and the last checkpoint stands.
    """
    run.check()
    world = distributed.start(place.device) if world is None else world
    if run.train.batch % world.size:
        raise SettingsError(
            f"train.batch = {run.train.batch} cannot be shared by {world.size} processes; give a multiple."
        )
    check_dtype(run, place.device)
    folder = RunFolder(place.runs, run)
    if not world.first:
        return _train(run, place, folder, world)
    with folder.locked() as free:
        if not free:
            raise SettingsError(f"{folder.path} is being run by another process; wait for it, or stop it.")
        return _train(run, place, folder, world)


def _train(run: Run, place: Place, folder: RunFolder, world: World) -> dict[str, Any]:
    finished = distributed.from_first(folder.finished() if world.first else None, world)
    if finished is not None:
        return finished
    if world.first:
        folder.write_json(folder.path / "run.json", as_dict(run))
    distributed.barrier(world)
    source = _open(run, place, world)
    return Training(run, place, folder, world, source).complete()


def _open(run: Run, place: Place, world: World) -> Source:
    """The data, opened by the first process before the others, which then find it downloaded."""
    if world.first:
        source = open_source(run.data, place.where)
    distributed.barrier(world)
    return source if world.first else open_source(run.data, place.where)


class Training:
    """One run under way."""

    def __init__(self, run: Run, place: Place, folder: RunFolder, world: World, source: Source) -> None:
        self.run, self.place, self.folder, self.world, self.source = run, place, folder, world, source
        torch.manual_seed(run.seed)
        net = models.build(run.model, shape_of(run.data)).to(place.device)
        self.net = memory_format(net, run.train.channels_last)
        self.optimizer = optimizer(self.net, run, place.device)
        self.progress = Progress()
        if folder.checkpoint.exists():
            self._restore()
        self.progress.totals = self.progress.totals.to(place.device)
        wrapped: nn.Module = self.net
        if world.size > 1:
            ids = [place.device.index] if place.device.type == "cuda" else None
            wrapped = DistributedDataParallel(self.net, device_ids=ids)
        self.step = Step(wrapped, run, place.device, world)
        steps = source.train_size // run.train.batch
        self.steps_per_epoch = min(steps, run.train.steps_per_epoch or steps)
        if self.steps_per_epoch < 1:
            raise SettingsError(f"train.batch = {run.train.batch} exceeds the {source.train_size} training images.")
        self.poll = POLL_STEPS if world.size > 1 or place.device.type == "cuda" else 1
        self.saved_at = self.started_at = time.monotonic()

    def complete(self) -> dict[str, Any]:
        run, progress = self.run, self.progress
        with signals.noted() as stop:
            while progress.epoch < run.train.epochs:
                self._epoch(stop)
            self._save()
            result = self._finished()
            (stopping,) = distributed.any_process([bool(stop)], self.world, self.place.device)
        if stopping:
            raise Interrupted(f"{run.title} is finished; nothing after it was begun.")
        return result

    def _finished(self) -> dict[str, Any]:
        """Tests, and writes the result."""
        run, progress = self.run, self.progress
        metrics = self._final_metrics()
        result = {
            "home": run.home,
            "scale": run.scale,
            "epoch_scale": run.epoch_scale,
            "key": run.key,
            "settings": as_dict(run),
            "metrics": metrics,
            "parameters": models.parameter_count(self.net),
            "steps": run.train.epochs * self.steps_per_epoch,
            "seconds": round(self._seconds(), 2),
            "restarts": progress.restarts,
            "processes": self.world.size,
            "backend": self._backend(),
            **provenance(self.place.device),
        }
        if self.world.first:
            self.folder.write_metrics(progress.history)
            self.folder.write_tensors(self.folder.final, {"model": _on_cpu(self.net.state_dict())})
            self.folder.write_json(self.folder.result, result)
            self.folder.checkpoint.unlink(missing_ok=True)
        distributed.barrier(self.world)
        return result

    def _epoch(self, stop: list[int]) -> None:
        run, progress, train = self.run, self.progress, self.run.train
        self.net.train()
        batches = Batches(train.batch, progress.step, self.steps_per_epoch, self.world.rank, self.world.size)
        for x, y in self.source.train(run.seed, progress.epoch, batches):
            lr = learning_rate(train, progress.epoch, progress.step, self.steps_per_epoch)
            set_learning_rate(self.optimizer, lr)
            progress.totals += self.step(x, y)
            if train.clip:
                nn.utils.clip_grad_norm_(self.net.parameters(), train.clip)
            self.optimizer.step()
            progress.step += 1
            if progress.step % self.poll == 0 or progress.step == self.steps_per_epoch:
                self._look(stop)
        lr = learning_rate(train, progress.epoch, self.steps_per_epoch - 1, self.steps_per_epoch)
        loss, right, images, _ = distributed.summed(progress.totals, self.world).tolist()
        entry = {"epoch": progress.epoch, "lr": lr, "loss": loss / images, "accuracy": 100 * right / images}
        progress.history.append(entry)
        progress.epoch, progress.step, progress.totals = progress.epoch + 1, 0, torch.zeros_like(progress.totals)
        self._log(entry)

    def _look(self, stop: list[int]) -> None:
        """Stops on a signal (after saving) and where the loss is no number; saves when it is time."""
        bad = not bool(self.progress.totals.isfinite().all())
        due = time.monotonic() - self.saved_at >= self.place.save_seconds
        bad, stopping, due = distributed.any_process([bad, bool(stop), due], self.world, self.place.device)
        if bad:
            raise Diverged(self._diverged("the loss"))
        if stopping or due:
            self._save()
        if stopping:
            raise Interrupted(
                f"{self.run.title} stopped after {self._position()}; its checkpoint is {self.folder.checkpoint}."
            )

    def _save(self) -> None:
        finite = all(bool(value.isfinite().all()) for value in self.net.state_dict().values())
        if not finite:
            raise Diverged(self._diverged("a weight"))
        totals = distributed.gathered(self.progress.totals, self.world)
        if self.world.first:
            content = {
                "model": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.progress.epoch,
                "step": self.progress.step,
                "seconds": self._seconds(),
                "restarts": self.progress.restarts,
                "totals": [part.cpu() for part in totals],
                "history": self.progress.history,
            }
            self.folder.write_tensors(self.folder.checkpoint, content)
        self.saved_at = time.monotonic()

    def _restore(self) -> None:
        content = self.folder.read_tensors(self.folder.checkpoint)
        self.net.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        totals = content["totals"]
        if len(totals) != self.world.size:  # saved by another number of processes: the first carries all
            totals = [sum(totals, torch.zeros(4, dtype=torch.float64))] + [
                torch.zeros(4, dtype=torch.float64)
            ] * self.world.size
        self.progress = Progress(
            content["epoch"],
            content["step"],
            content["seconds"],
            content["restarts"] + 1,
            totals[self.world.rank],
            content["history"],
        )

    def _final_metrics(self) -> dict[str, float]:
        distributed.same_buffers(self.net, self.world)
        last = self.progress.history[-1]
        tested = evaluate(self.net, self.run, self.source, self.place.device, self.world)
        # a second pass over training images would cost a third of an epoch
        if self.run.data.name in ("mazes", "imagenet"):
            return {**tested, "train_accuracy": last["accuracy"], "train_loss": last["loss"]}
        count = min(self.steps_per_epoch, -(-self.source.test_size // self.run.train.batch))
        batches = Batches(self.run.train.batch, 0, count, self.world.rank, self.world.size)
        seen = self.source.train(self.run.seed, self.run.train.epochs, batches)
        trained = accuracy(self.net, self.run, seen, self.place.device, self.world)
        return {**tested, "train_accuracy": trained["accuracy"], "train_loss": last["loss"]}

    def _backend(self) -> str:
        """Which kernels a training step runs on, as rdk says it of one process's share of a batch."""
        if not isinstance(self.net.internal, Recurrent):
            return "plain PyTorch"
        shape = shape_of(self.run.data)
        x = torch.zeros(self.run.train.batch // self.world.size, shape.channels, shape.size, shape.size)
        x = x.to(self.place.device)
        if self.run.train.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        self.net.eval()  # the stem's running statistics stay
        self.net.internal.train()
        with autocast(self.run, self.place.device), torch.enable_grad():
            inject = None if self.net.inject is None else self.net.inject(x)
            explained = rdk.explain(self.net.internal, self.net.stem(x), inject=inject)
        return (
            explained.forward
            if explained.forward == explained.backward
            else f"{explained.forward}/{explained.backward}"
        )

    def _log(self, entry: dict[str, Any]) -> None:
        if not self.world.first:
            return
        self.folder.write_metrics(self.progress.history)
        if self.place.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(str(self.folder.path / "tensorboard")) as writer:
                for name in ("lr", "loss", "accuracy"):
                    writer.add_scalar(name, entry[name], entry["epoch"])

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self.started_at

    def _position(self) -> str:
        return f"epoch {self.progress.epoch}, step {self.progress.step} of {self.steps_per_epoch}"

    def _diverged(self, what: str) -> str:
        kept = (
            f"The last good checkpoint is {self.folder.checkpoint}"
            if self.folder.checkpoint.exists()
            else "Nothing was saved yet"
        )
        return (
            f"{self.run.title}: {what} is no longer a finite number at {self._position()}. {kept}. Training is repeatable, so "
            f"it would diverge again: override train.lr or train.clip."
        )


def evaluate(net: DepthNet, run: Run, source: Source, device: torch.device, world: World = World()) -> dict[str, float]:  # noqa: B008
    """Accuracy in percent on the test set; for mazes also without forcing walls to 0."""
    batches = source.test(run.train.test_batch, world.rank, world.size)
    found = accuracy(net, run, batches, device, world)
    tested = {"test_accuracy": found["accuracy"], "test_loss": found["loss"]}
    return tested | ({"test_accuracy_unmasked": found["unmasked"]} if run.data.name == "mazes" else {})


@torch.no_grad()
def accuracy(
    net: DepthNet, run: Run, batches: Iterator[tuple[Tensor, Tensor]], device: torch.device, world: World
) -> dict[str, float]:
    net.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for x, y in batches:
        with autocast(run, device):
            outputs = net(x)
        totals += scores(outputs, x, y, World())[1]
    loss, right, images, unmasked = distributed.summed(totals, world).tolist()
    return {"accuracy": 100 * right / images, "loss": loss / images, "unmasked": 100 * unmasked / images}


def load(run: Run, place: Place) -> DepthNet:
    """The trained network of a finished run, in evaluation mode."""
    folder = RunFolder(place.runs, run)
    content = folder.read_tensors(folder.final)
    net = models.build(run.model, shape_of(run.data)).to(place.device)
    net.load_state_dict(content["model"])
    return memory_format(net, run.train.channels_last).eval()


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in state.items()}
