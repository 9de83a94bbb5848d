"""Predictions of a network for images, and the numbers of a report that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Subset

from mnist_lab.data import DatasetImages
from mnist_lab.show.style import drawable, shortened

BINS = 15
"""Bins of confidence, as in Guo et al. 2017."""


@dataclass(frozen=True)
class Answers:
    """Predictions of a network for images.

    Attributes:
        probabilities: float (N, classes); NaN where training diverged.
        labels: int64 (N,).
        images: uint8 or float32 (N, C, H, W).
        classes: the classes' names.
    """

    probabilities: Tensor
    labels: Tensor
    images: Tensor | DatasetImages | Subset[Tensor]
    classes: tuple[str, ...]

    @property
    def predicted(self) -> Tensor:
        """Return the most probable class of each image, int64 (N,)."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """The probability of that class, (N,)."""
        return self.probabilities.amax(1)

    @property
    def mistakes(self) -> Tensor:
        """Positions of the misclassified images, highest confidence first: int64 (M,)."""
        wrong = (self.predicted != self.labels).nonzero().flatten()
        sure = self.confidence[wrong].nan_to_num(0)
        return wrong[sure.argsort(descending=True, stable=True)]

    def confusion(self) -> Tensor:
        """Count images by label (row) and predicted class (column): int64 (classes, classes)."""
        k = len(self.classes)
        return torch.bincount(self.labels * k + self.predicted, minlength=k * k).reshape(k, k)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names as figures show them: shortened, and with every $ escaped, which would begin a formula."""
        return tuple(name.replace("$", r"\$") for name in shortened(self.classes, 20))

    def at(self, positions: Tensor) -> Tensor:
        """Return the images at some positions, on the CPU: uint8 or float32 (n, C, H, W)."""
        return torch.stack([self.images[int(n)].cpu() for n in positions])

    def shown(self, positions: Tensor) -> Tensor:
        """Return the images at some positions as they are drawn: 0 to 255."""
        return drawable(self.at(positions))


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of the proportion `correct` / `n` (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Bin:
    """Images of about equal confidence.

    Attributes:
        n: number of images.
        correct: how many of them were classified correctly.
        confidence: their mean probability of the predicted class.
    """

    n: int
    correct: int
    confidence: float


def calibration_bins(answers: Answers) -> list[Bin]:
    """Divide the test images by confidence into BINS bins of equal width in [0, 1]. Empty bins and NaN are left out."""
    known = answers.confidence.isfinite()
    confidence, right = answers.confidence[known].double(), (answers.predicted == answers.labels)[known]
    number = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
    found = []
    for k in number.unique().tolist():
        inside = number == k
        found.append(Bin(int(inside.sum()), int(right[inside].sum()), float(confidence[inside].mean())))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3): the mean |accuracy − confidence| by images."""
    return sum(abs(b.correct - b.n * b.confidence) for b in bins) / sum(b.n for b in bins)
