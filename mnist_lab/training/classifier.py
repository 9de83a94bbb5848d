"""The LightningModule: a network, its loss, its optimiser and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from mnist_lab.training.loss_scaling import scale_loss, weight_of
from mnist_lab.training.metrics import Accuracy, Confusion, MeanLoss
from mnist_lab.training.schedules import lr_scheduler_config

Stage = Literal["train", "val", "test"]


class Classifier(L.LightningModule):
    """Trains a network that maps images to one logit a class.

    It logs `train/loss`, `train/acc`, `val/loss`, `val/acc`, `test/loss` and `test/acc`, each over the images of an
    epoch. Those of `train/` are taken while the weights change, with dropout on, as in Keras.

    Args:
        net: float32 (B, C, H, W) → logits (B, num_classes).
        loss: (logits, labels int64 (B,)) → the mean loss over the batch, a scalar.
        optimizer: called with the network's parameters.
        schedule: called with the optimiser, see `mnist_lab.training.schedules`; None: a constant learning rate.
        num_classes: 2 or more.
        metrics: more of them by name, logged as `val/NAME` and `test/NAME`: of probabilities, float32 (B, num_classes),
            and labels.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[..., LRScheduler] | None = None,
        num_classes: int = 10,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.metrics = nn.ModuleDict()
        for stage in ("train", "val", "test"):
            self.metrics[f"{stage}/loss"] = MeanLoss()
            self.metrics[f"{stage}/acc"] = Accuracy(num_classes)
        for name, metric in (metrics or {}).items():
            self.metrics[f"val/{name}"], self.metrics[f"test/{name}"] = metric.clone(), metric.clone()
        self.metrics["confusion"] = Confusion(num_classes)  # of the test; no number to log

    @property
    def backbone(self) -> nn.Module:
        """Return the network's `backbone`, which `BackboneFinetuning` freezes and unfreezes."""
        return self.net.backbone  # type: ignore[return-value]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (B, num_classes), of images, float32 (B, C, H, W)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss of a mini-batch, for Lightning to differentiate."""
        images, labels = batch
        loss = self.measure("train", images, labels)
        return scale_loss(self, self.loss, loss, labels, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure loss and accuracy on a mini-batch of validation images."""
        self.measure("val", *batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure loss and accuracy on a mini-batch of test images."""
        self.measure("test", *batch)

    def measure(self, stage: Stage, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a mini-batch; log loss and accuracy."""
        logits, loss, weight = self.predict(images, labels)
        self.update_metrics(stage, logits, labels, loss.detach(), weight)
        self.log_metrics(stage)
        return loss

    def predict(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return logits, their mean loss, and what the mean was divided by.

        A process's share of a small mini-batch may have no images, or none whose class has a weight. Its loss is 0,
        where the mean would be NaN.
        """
        logits, weight = self(images), weight_of(self.loss, labels)
        return logits, self.loss(logits, labels) if weight > 0 else logits.sum() * 0.0, weight

    def update_metrics(
        self, stage: Stage, logits: Tensor, labels: Tensor, losses: Tensor, weights: Tensor | float
    ) -> None:
        """Update a stage's metrics.

        Args:
            stage: "train", "val" or "test".
            logits: float (B, num_classes).
            labels: int64 (B,).
            losses: float, () of one mini-batch or (steps,) of several.
            weights: what the mean of each loss was divided by, one number or (steps,).
        """
        logits, shares = logits.detach(), None
        for name, metric in self.metrics_of(stage):
            if name == "loss":
                metric.update(losses, weights)
            elif name == "acc":
                metric.update(logits, labels)
            elif len(labels) > 0:
                shares = logits.float().softmax(1) if shares is None else shares
                metric.update(shares, labels)
        if stage == "test":
            self.confusion.update(logits, labels)

    def log_metrics(self, stage: Stage) -> None:
        """Hand a stage's metrics to Lightning, which reads them when the epoch ends."""
        for name, metric in self.metrics_of(stage):
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True)

    def metrics_of(self, stage: Stage) -> list[tuple[str, Any]]:
        """Return a stage's metrics, each with its name without the stage."""
        return [(name.partition("/")[2], each) for name, each in self.metrics.items() if name.startswith(f"{stage}/")]

    @property
    def confusion(self) -> Confusion:
        """Return the test's confusion matrix."""
        return cast(Confusion, self.metrics["confusion"])

    def on_test_start(self) -> None:
        """Reset the confusion matrix."""
        self.confusion.reset()

    def on_test_epoch_end(self) -> None:
        """Sum the confusion matrix over all processes; the metric caches the result."""
        self.confusion.compute()

    def on_validation_model_zero_grad(self) -> None:
        """Keep the epoch's last gradients, which Lightning would drop, for callbacks that show them."""

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        # A finetuning callback adds the parameters that it unfreezes to the optimiser itself.
        finetuned = any(isinstance(callback, BaseFinetuning) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        optimizer = self.make_optimizer(p for p in self.net.parameters() if p.requires_grad or not finetuned)
        if self.make_schedule is None:
            return optimizer
        scheduler = lr_scheduler_config(self.make_schedule, optimizer, self.trainer, self.steps_per_epoch())
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def steps_per_epoch(self) -> int:
        """Return the number of optimiser steps in an epoch."""
        _ = self.trainer.estimated_stepping_batches  # makes the loaders, whose lengths are not known before
        return -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
