"""The state that a resumed run needs besides what Lightning keeps, so that it ends with the same numbers."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import Metric

from mnist_lab.data import Batches, ImageDataModule
from mnist_lab.seeds import seed_of
from mnist_lab.training import random_numbers
from mnist_lab.training.classifier import Classifier
from mnist_lab.training.weights import restore, same


class ResumeState(Checkpoint):
    """Keeps in each checkpoint, and restores:

    - the states of all random number generators, of each process;
    - the states of torchmetrics objects within an epoch, of each process;
    - the weights to train on with, where callbacks have put others in their place for the test;
    - which weights are frozen, and the place in the epoch of our loaders;
    - the step of a plateau schedule that Lightning makes after the epoch's checkpoint is written.

    A `DataLoader` of somebody's own begins its epoch anew: Lightning can't tell its place. Its random numbers are
    restored before it is asked for its order, so that an epoch that begins visits the images as it would have.

    A Checkpoint, because Lightning calls those after the callbacks that change weights.
    """

    def __init__(self) -> None:
        self.processes: list[int] = []
        """Numbers of processes that have trained the run, one after the other where a resumed run changed it."""
        self.progress = (0, 0)
        """Mini-batches of the latest epoch, and how many it has."""
        self._saved: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state."""
        own, loop = pl_module.state_dict(), trainer.fit_loop
        epoch: Any = loop.epoch_progress.current
        within = epoch.processed < epoch.started
        self.progress = _progress(trainer)
        metrics = {
            name: {key: _detached(value) for key, value in metric.metric_state.items()}
            for name, metric in pl_module.named_modules()
            if within and isinstance(metric, Metric) and metric.update_called
        }
        checkpoint |= {
            "processes": self.processes,
            "progress": list(self.progress),
            "within_epoch": within,
            "accumulated": trainer.accumulate_grad_batches,
            "frozen": [name for name, weight in pl_module.named_parameters() if not weight.requires_grad],
            "resume_from": None if same(own, checkpoint["state_dict"]) else own,
            "random": _of_each_process(trainer, random_numbers.collect(pl_module.device)),
            "metrics": _of_each_process(trainer, metrics),
            "plateau": {} if within or not pl_module.automatic_optimization else _monitored(trainer),
        }
        if pl_module.automatic_optimization or isinstance(pl_module, Classifier):
            # The step at which loggers see the run: Lightning adds 1 when a run goes on from within a training step.
            total: Any = loop.epoch_loop.batch_progress.total
            stepped = trainer.global_step - (total.completed < total.processed)
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] = stepped

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state until the training begins; count steps and batches as this module does."""
        # That of LearningRateFinder is of before the training, where nothing is to be restored later.
        self._saved = checkpoint if checkpoint["processes"] else {}
        self.processes = list(checkpoint["processes"])
        self.progress = tuple(checkpoint.get("progress", self.progress))
        if isinstance(pl_module, Classifier):
            _convert_counts(trainer, checkpoint)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the random numbers for a loader that draws its order when Lightning first asks for it."""
        if self._saved and not isinstance(trainer.datamodule, ImageDataModule):  # type: ignore[attr-defined]
            _restore_random(self._saved, trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the rest."""
        saved, self._saved = self._saved, {}
        before = self.processes[-1:]
        if before != [trainer.world_size]:
            self.processes.append(trainer.world_size)
        if not saved:
            return
        restore(pl_module, saved.get("resume_from") or saved["state_dict"])  # which others may have changed by now
        for name, weight in pl_module.named_parameters():
            weight.requires_grad_(name not in saved["frozen"])
        for number, value in saved.get("plateau", {}).items():
            trainer.lr_scheduler_configs[number].scheduler.step(value)
        if saved.get("within_epoch"):
            _restore_metrics(pl_module, saved["metrics"][trainer.global_rank])
            # GradientAccumulationScheduler sets it when an epoch begins, which Lightning doesn't say within one.
            trainer.accumulate_grad_batches = saved.get("accumulated", trainer.accumulate_grad_batches)
            batches = trainer.train_dataloader
            if isinstance(batches, Batches):
                # Lightning does this too, but not where a schedule has asked it for the number of steps before.
                batches.load_state_dict({"mini_batches": self.progress[0]})
        if isinstance(trainer.datamodule, ImageDataModule):  # type: ignore[attr-defined]
            _restore_random(saved, trainer, pl_module)


def _restore_random(saved: dict[str, Any], trainer: L.Trainer, module: L.LightningModule) -> None:
    """Set this process's random number generators; with another number of processes, seed them anew."""
    states, rank = saved["random"], trainer.global_rank
    if saved["processes"][-1:] != [trainer.world_size]:
        torch.manual_seed(seed_of("dropout", torch.initial_seed(), trainer.current_epoch))
        return
    # Earlier versions kept a tensor of all processes for each generator.
    mine = states[rank] if isinstance(states, list) else {kind: state[rank] for kind, state in states.items()}
    random_numbers.restore(mine, module.device)


def _progress(trainer: L.Trainer) -> tuple[int, int]:
    """Return the mini-batches of this epoch so far, and how many it has."""
    batches, count = trainer.train_dataloader, trainer.num_training_batches
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if isinstance(batches, Batches):
        done = batches.state_dict()["mini_batches"]
        count = batches.mini_batches if batches.steps > 1 else count
    return done, int(count) if count != float("inf") else 0


def _convert_counts(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Count a checkpoint's optimiser steps and batches for either kind of optimisation, and for today's chunks."""
    loop, step = checkpoint["loops"]["fit_loop"], checkpoint["global_step"]
    counted = {"ready": step, "completed": step}
    loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"] = dict(counted)
    loop["epoch_loop.manual_optimization.optim_step_progress"]["total"] = dict(counted)
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not checkpoint.get("within_epoch") or not isinstance(data, ImageDataModule):
        return
    batches, done = data.train_dataloader(), checkpoint["progress"][0]
    left = -(-(checkpoint["progress"][1] - done) // batches.steps)
    progress = loop["epoch_loop.batch_progress"]
    total = len(batches) if batches.steps > 1 else checkpoint["progress"][1]
    more = total - left - progress["current"]["ready"]
    for counts in (progress["current"], progress["total"]):
        for key in counts:
            counts[key] += more


def _monitored(trainer: L.Trainer) -> dict[int, float]:
    """Return the values with which plateau schedules step when this epoch ends, by the schedules' numbers."""
    metrics, number = trainer.callback_metrics, trainer.current_epoch + 1
    return {
        place: float(metrics[str(config.monitor)])
        for place, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and number % config.frequency == 0
        and config.monitor in metrics
    }


def _restore_metrics(module: L.LightningModule, states: dict[str, dict[str, Any]]) -> None:
    modules = dict(module.named_modules())
    for name, state in states.items():
        for key, value in state.items():
            moved = [part.to(module.device) for part in value] if isinstance(value, list) else value.to(module.device)
            setattr(modules[name], key, moved)


def _detached(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [part.detach() for part in value] if isinstance(value, list) else value.detach()


def _of_each_process(trainer: L.Trainer, mine: Any) -> list[Any]:
    """Return the values of all processes, by their numbers."""
    if trainer.world_size == 1:
        return [mine]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, move_data_to_device(mine, torch.device("cpu")))
    return found
