"""The learning rate of an epoch's last step, and how many images a second it was trained on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.data import extract_batch_size
from torch.optim import Optimizer


class Pace(Callback):
    """Logs `lr`, of the last step, and `train/images_per_second`, of training alone, when an epoch ends."""

    takes_chunks = True

    def __init__(self) -> None:
        self.lr: float | None = None
        """The rate of the last step, of the first optimiser; None without an optimiser."""
        self._images, self._start, self._end = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._note(trainer.optimizers[0])  # of an epoch that ends before its first step
        self._images, self._start = 0, time.perf_counter()
        self._end = self._start

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Note the rate that the step is made with; a schedule changes it when the step is over."""
        if optimizer is trainer.optimizers[0]:
            self._note(optimizer)

    def _note(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups[:1]:  # Lightning's stand-in for no optimiser has none
            self.lr = float(group["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's images, this process's share of them."""
        if isinstance(outputs, Mapping) and "lr" in outputs:  # of the last of several steps
            self.lr = float(outputs["lr"])
        self._images += _size(batch)
        self._end = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give both to the loggers, at the step at which Lightning draws an epoch's metrics."""
        found: dict[str, float] = {"epoch": trainer.current_epoch} | ({} if self.lr is None else {"lr": self.lr})
        images = float(trainer.strategy.reduce(torch.tensor(float(self._images)).to(pl_module.device), reduce_op="sum"))
        if images and self._end > self._start:
            found["train/images_per_second"] = images / (self._end - self._start)
        for logger in trainer.loggers:
            logger.log_metrics(found, max(0, trainer.global_step - 1))

    def state_dict(self) -> dict[str, Any]:
        """Return what is known of the epoch so far."""
        return {"lr": self.lr, "images": self._images, "elapsed": self._end - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an epoch."""
        self.lr, self._images = state_dict["lr"], state_dict["images"]
        self._end = time.perf_counter()
        self._start = self._end - state_dict["elapsed"]


class StepLoss(Callback):
    """Gives the loss of every trainer.log_every_n_steps-th step's last mini-batch to the loggers: train/loss_step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin after the steps that are made."""
        self._before = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log it, once a step of the optimiser: gradients of several mini-batches may make one."""
        step, before, self._before = trainer.global_step, self._before, trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step != before and every > 0 and step % every == 0 and isinstance(outputs, Mapping) and "loss" in outputs:
            for logger in trainer.loggers:
                logger.log_metrics({"train/loss_step": float(outputs["loss"])}, step - 1)


def _size(batch: Any) -> int:
    """Return the number of examples in a batch; 0 where it can't be told."""
    if hasattr(batch, "labels"):
        return len(batch.labels)
    try:
        return extract_batch_size(batch)
    except MisconfigurationException:
        return 0
