"""Weights of the mini-batches' mean losses in a step of the optimiser."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor, nn

from mnist_lab.data import Batches


def weight_of(loss: Any, labels: Tensor) -> float:
    """Return what a loss divides by to make the mean over a batch.

    Args:
        loss: a function of logits and labels.
        labels: int64 (B,).

    Returns:
        B; of `CrossEntropyLoss` and `NLLLoss` with class weights, the sum of the weights of the labels; labels equal to
        their `ignore_index` don't count.
    """
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return len(labels)
    if loss.ignore_index >= 0:
        labels = labels[labels != loss.ignore_index]
    return len(labels) if loss.weight is None else float(loss.weight[labels].sum())


def scale_loss(module: L.LightningModule, loss: Any, value: Tensor, labels: Tensor, batch_idx: int) -> Tensor:
    """Return the loss to differentiate, for a step down the gradient of the mean over all images of the step.

    Lightning divides the loss of each mini-batch by `accumulate_grad_batches`, and averages the gradients of several
    processes. Both are right where all shares are of the same size. They are not for an epoch's last mini-batches, for
    processes that share a mini-batch unevenly, and for class weights, whose sums differ.

    Args:
        module: the LightningModule, in its `training_step`.
        loss: the function that made `value`.
        value: the mean over the images of this process's share of the mini-batch, a scalar.
        labels: int64 (B,), of these images.
        batch_idx: the mini-batch's number in the epoch, from 0.

    Returns:
        `value`, multiplied where it must be. `value` itself where the loader is not the `Batches` of an
        `ImageDataModule`: how many images the other mini-batches have is not known then.
    """
    trainer = module.trainer
    batches, accumulated = trainer.train_dataloader, trainer.accumulate_grad_batches
    if (accumulated == 1 and trainer.world_size == 1) or not isinstance(batches, Batches):
        return value
    first = batch_idx - batch_idx % accumulated
    end = int(min(first + accumulated, trainer.num_training_batches))
    everything = weight_of(loss, batches.labels_of(first, end))
    mine = weight_of(loss, labels) * accumulated * trainer.world_size
    return value if mine == everything else value * (mine / everything if everything > 0 else 0.0)
