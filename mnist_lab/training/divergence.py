"""Ends a training whose loss or weights are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mnist_lab.errors import Diverged


class Divergence(Callback):
    """Raises `Diverged` when a loss that a training step returns, or a weight, is infinite or not a number.

    One process on a CPU looks after each training step. On other devices looking would be waiting for them, and of
    several processes none may stop alone: they look when an epoch ends and before a checkpoint is written.
    """

    takes_chunks = True

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the losses of the epoch before."""
        self._sum = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the losses of the step, or keep their sum."""
        found = outputs.get("losses", outputs.get("loss")) if isinstance(outputs, Mapping) else outputs
        if not isinstance(found, Tensor):
            return
        losses = found.detach().float()
        if pl_module.device.type != "cpu" or trainer.world_size > 1:
            self._sum = losses.sum() if self._sum is None else self._sum + losses.sum()
        elif not math.isfinite(float(losses.sum())):
            self._raise(trainer, losses, getattr(batch, "first", batch_idx))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the epoch's losses and at the weights."""
        self.check(trainer, pl_module)

    def check(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Raise `Diverged`, in all processes, if a loss of one of them in this epoch, or a weight, is not finite."""
        epoch = trainer.current_epoch + 1
        if self._sum is not None:
            loss = float(trainer.strategy.reduce(self._sum.clone(), reduce_op="sum"))
            if not math.isfinite(loss):
                raise Diverged(f"training diverged: in epoch {epoch} the loss is {loss}, at {_rate(trainer)}")
        # Where a ReLU or a max-pool drops NaN, the loss doesn't show it.
        weights = dict(module.named_parameters())
        if not weights:
            return
        # Finite sums are those of finite weights, and take a fifth of the time of looking at each weight.
        finite = torch.stack([weight.detach().sum().float() for weight in weights.values()]).isfinite().all().float()
        if float(trainer.strategy.reduce(finite, reduce_op="mean")) == 1:
            return
        for name, weight in weights.items():
            if not bool(weight.isfinite().all()):
                where = f"weights of {name.removeprefix('net.')}"
                raise Diverged(f"training diverged: in epoch {epoch} {where} are infinite or not a number")

    @staticmethod
    def _raise(trainer: L.Trainer, losses: Tensor, first: int) -> None:
        for number, loss in enumerate(losses.flatten().tolist(), first + 1):
            if not math.isfinite(loss):
                where = f"mini-batch {number:,} of epoch {trainer.current_epoch + 1}"
                raise Diverged(f"training diverged: in {where} the loss is {loss}, at {_rate(trainer)}")


def _rate(trainer: L.Trainer) -> str:
    return f"a learning rate of {float(trainer.optimizers[0].param_groups[0]['lr']):g}"
