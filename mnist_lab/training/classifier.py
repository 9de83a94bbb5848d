"""The LightningModule: a network, its loss, its optimiser, and sums that cost nothing until an epoch ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_lab.data import Batches


class Classifier(L.LightningModule):
    """Trains any network that turns images into one logit a class.

    Loss and accuracy are sums over the images of an epoch, kept as tensors on the device and read once when it ends.
    Those of `train/` are taken during the epoch, with dropout on and weights changing, as Keras does.

    Args:
        net: float32 (B, C, H, W) → logits (B, num_classes).
        loss: (logits, labels int64 (B,)) → the mean loss over the batch, a scalar.
        optimizer: makes an optimiser of the network's parameters.
        schedule: makes its schedule, called as schedule(optimizer, total_steps=, epochs=); None for a constant rate.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[..., LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.metrics: dict[str, float] = {}
        """Of the latest epoch: train/loss, train/acc, val/loss, val/acc, lr; of a test: test/loss, test/acc, test/n."""
        self._sums: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes), of images, float32 (B, C, H, W)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch: (images float32 (B, C, H, W), labels int64 (B,)) → scalar."""
        self.metrics["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        loss = self._measure("train", batch)
        if self.trainer.world_size > 1:
            # Gradients are averaged over processes, whose shares of a batch need not be equal: weigh each by its share.
            batches = self.trainer.train_dataloader
            assert isinstance(batches, Batches)
            whole = batches.batch_length(batch_idx)
            loss = loss * (len(batch[1]) * self.trainer.world_size / whole)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Counts one batch of validation images."""
        self._measure("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Counts one batch of test images."""
        self._measure("test", batch)

    def on_train_epoch_start(self) -> None:
        """Forgets the epoch before."""
        self.metrics.clear()

    def on_train_epoch_end(self) -> None:
        """Logs train/loss, train/acc and the learning rate of the last step."""
        self._log_sums("train")
        self.log("lr", self.metrics["lr"])

    def on_validation_epoch_end(self) -> None:
        """Logs val/loss and val/acc."""
        self._log_sums("val")

    def on_test_epoch_end(self) -> None:
        """Logs test/loss and test/acc."""
        self._log_sums("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, and its schedule step by step."""
        optimizer = self.make_optimizer(self.net.parameters())
        if self.make_schedule is None:
            return optimizer
        total_steps, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs
        schedule = self.make_schedule(optimizer, total_steps=total_steps, epochs=epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _measure(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self(images)
        n = len(labels)
        # Of a batch smaller than the number of processes some get nothing, and the mean of nothing would be NaN.
        loss = self.loss(logits, labels) if n > 0 else logits.sum()
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            sums = torch.stack([loss.detach().float() * n, correct.float(), torch.full_like(correct, n).float()])
            self._sums[stage] = self._sums[stage] + sums if stage in self._sums else sums
        return loss

    def _log_sums(self, stage: str) -> None:
        if stage not in self._sums:  # an epoch without batches, as limit_val_batches=0 makes them
            return
        sums: Any = self.trainer.strategy.reduce(self._sums.pop(stage), reduce_op="sum")
        loss, correct, n = sums.tolist()
        self.metrics |= {f"{stage}/loss": loss / n, f"{stage}/acc": correct / n}
        if stage == "test":
            self.metrics["test/n"] = n
        self.log_dict(
            {f"{stage}/loss": loss / n, f"{stage}/acc": correct / n},
            logger=stage != "test",  # the hyperparameter table logs the test's, beside what they were reached with
        )
