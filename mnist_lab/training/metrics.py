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
