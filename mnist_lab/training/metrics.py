"""The metrics of a classifier: torchmetrics objects, which sum on the device and are read once an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


class MeanLoss(Metric):
    """The mean of a loss over the images of an epoch.

    Unlike `torchmetrics.MeanMetric` it keeps values that are not finite: a diverged training must show.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, losses: Tensor, weights: Tensor | float) -> None:
        """Add mean losses of mini-batches.

        Args:
            losses: float, one or several.
            weights: of each: what its mean was divided by, as `weight_of` says.
        """
        self.total = self.total + (losses.float() * weights).sum()
        self.weight = self.weight + (weights.sum() if isinstance(weights, Tensor) else weights)

    def compute(self) -> Any:
        """Return the mean: float64, a scalar."""
        return self.total.cpu().double() / self.weight.cpu()


class Accuracy(MulticlassAccuracy):
    """The share of images whose highest logit is their label's: correct / all, in float64.

    Args:
        num_classes: 2 or more.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="micro", validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits, (B, num_classes), and labels, int64 (B,); a process's share of a mini-batch may be empty."""
        if len(target) > 0:
            super().update(preds, target)

    def compute(self) -> Any:
        """Return the share: float64, a scalar."""
        right, missed = torch.as_tensor(self.tp).cpu().double(), torch.as_tensor(self.fn).cpu()
        return right / (right + missed)


class Confusion(Metric):
    """Confusion matrix: int64 (num_classes, num_classes), rows are labels, columns are predictions.

    Unlike `torchmetrics.classification.MulticlassConfusionMatrix` it doesn't wait for the device at each mini-batch.

    Args:
        num_classes: 2 or more.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(num_classes * num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits, (B, num_classes), and labels, int64 (B,)."""
        self.counts = self.counts.scatter_add(0, target * self.num_classes + preds.argmax(1), torch.ones_like(target))

    def compute(self) -> Any:
        """Return the counts."""
        return self.counts.view(self.num_classes, self.num_classes)


def precision_recall(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall of each class.

    Args:
        confusion: int64 (classes, classes), one row per label.

    Returns:
        float64 (classes,) each; precision is NaN for a class that was never predicted, recall for one without images.
    """
    correct = confusion.diagonal().double()
    return correct / confusion.sum(0), correct / confusion.sum(1)
