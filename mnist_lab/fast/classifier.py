"""The classifier that makes several optimiser steps in each of Lightning's training steps."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from mnist_lab.fast.chunks import Chunk
from mnist_lab.fast.replay import Replay
from mnist_lab.training.classifier import Classifier, Stage


class FastClassifier(Classifier):
    """A `Classifier` whose training step takes a `Chunk` of mini-batches, and makes an optimiser step for each.

    Weights are those of `Classifier`, bit for bit on a CPU. Losses are within 1e-6: they are summed in another order.
    Where a batch is no `Chunk` it is a `Classifier`: `mnist_lab.fast.steps` decides that.

    Of an epoch of A3 (469 steps) on two cores `Classifier` takes 2.3 s, this 1.6: Lightning's loop, hooks, metrics and
    logging take as long as a small network's arithmetic, and are needed once a chunk.
    """

    several = False
    """Whether batches are chunks."""
    replay: Replay | None = None
    """Repeats the operations of the first step."""
    compiled = False
    """Whether PyTorch has compiled the network."""
    _logged: Stage | None = None
    """The stage whose metrics Lightning has for this epoch."""
    schedule: dict[str, Any] | None = None
    """The schedule as `Classifier.configure_optimizers` describes it."""

    def make_several_steps(self, replay: bool, compiled: bool) -> None:
        """Expect chunks; call this before the Trainer's `fit`.

        Args:
            replay: whether to repeat the operations of the first step.
            compiled: whether PyTorch has compiled the network.
        """
        self.several, self.compiled = True, compiled
        self.automatic_optimization = False
        self.replay = Replay(self.net, self.loss) if replay else None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Make a step for each mini-batch of a chunk.

        Returns:
            `loss`, of the last mini-batch; `losses`, (steps,); and `lr`, the learning rate of the last step.
        """
        if not isinstance(batch, Chunk):
            return super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        schedule = self.schedule if self.schedule is not None and self.schedule["interval"] == "step" else None
        if self.replay is not None:  # between training steps callbacks may have changed the network or its loss
            self.replay.check(self.net, self.loss)
        outcomes, lr = [], optimizer.param_groups[0]["lr"]
        for images, labels in batch.mini_batches():
            outcomes.append(self._differentiate(optimizer, images, labels))
            lr = optimizer.param_groups[0]["lr"]
            optimizer._on_before_step()  # counts the step, as `LightningOptimizer.step` does around its hooks
            optimizer.optimizer.step()
            optimizer._on_after_step()
            if schedule is not None:
                schedule["scheduler"].step()
        losses = self._log_chunk("train", batch, outcomes)
        # Loggers see the steps of the optimiser; Lightning counts its own training steps, and one more after this.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = max(0, self.trainer.global_step - 1)
        return {"loss": losses[-1], "losses": losses, "lr": lr}

    def _differentiate(
        self, optimizer: LightningOptimizer, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """Leave the gradients of a mini-batch's loss in the parameters. Return what `predict` returns."""
        if self.replay is not None and (found := self.replay(images, labels)) is not None:
            return *found, len(labels)
        optimizer.zero_grad()
        logits, loss, weight = self._predict(images, labels)
        loss.backward()
        return logits.detach(), loss.detach(), weight

    def _predict(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        logits, loss, weight = self.predict(self.trainer.precision_plugin.convert_input(images), labels)
        return logits.clone() if self.compiled else logits, loss, weight  # a CUDA graph writes to the same place again

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure loss and accuracy on the mini-batches of a chunk of validation images."""
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure loss and accuracy on the mini-batches of a chunk of test images."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: Stage, batch: Any) -> None:
        if not isinstance(batch, Chunk):
            self.measure(stage, *batch)
            return
        self._log_chunk(stage, batch, [self._predict(*mini_batch) for mini_batch in batch.mini_batches()])

    def _log_chunk(self, stage: Stage, batch: Chunk, outcomes: list[tuple[Tensor, Tensor, float]]) -> Tensor:
        """Count and log what a chunk has given. Return the losses of its mini-batches: float, (steps,)."""
        logits, losses, weights = zip(*outcomes, strict=True)
        found = torch.stack(losses)
        of_each = torch.tensor(weights, dtype=torch.float32, device=found.device)
        self.update_metrics(stage, torch.cat(logits), batch.labels, found, of_each)
        if self._logged != stage:
            self.log_metrics(stage)
            self._logged = stage
        return found

    def on_train_epoch_start(self) -> None:
        """Log the training's metrics anew: Lightning needs a metric once an epoch, and takes 1 ms for it."""
        self._logged = None

    on_validation_epoch_start = on_test_epoch_start = on_train_epoch_start

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, which is stepped here: Lightning leaves it to manual optimisation."""
        found = super().configure_optimizers()
        if not self.several or not isinstance(found, dict):
            return found
        self.schedule = found["lr_scheduler"]
        return found | {"lr_scheduler": {"scheduler": self.schedule["scheduler"]}}

    def on_train_epoch_end(self) -> None:
        """Step a schedule that is stepped once an epoch."""
        described, number = self.schedule, self.trainer.current_epoch + 1
        if described is None or described["interval"] != "epoch" or number % described.get("frequency", 1) != 0:
            return
        if "monitor" not in described:
            described["scheduler"].step()
        elif described["monitor"] in self.trainer.callback_metrics:
            described["scheduler"].step(self.trainer.callback_metrics[described["monitor"]])

    def steps_per_epoch(self) -> int:
        """Return the number of optimiser steps in an epoch."""
        steps = super().steps_per_epoch()
        batches: Any = self.trainer.train_dataloader
        return batches.mini_batches if self.several else steps
