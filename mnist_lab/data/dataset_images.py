"""The user's own PyTorch datasets: what `__getitem__` returns, always, and the same each time where that is needed."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

from mnist_lab.errors import UserError
from mnist_lab.pictures import eight_bits, flat

SAMPLE = 100
"""Items that are read again to see whether a dataset is random, where not all are read again anyway."""
WITH_TARGETS = (
    *(datasets.MNIST, datasets.FashionMNIST, datasets.KMNIST, datasets.EMNIST),
    *(datasets.CIFAR10, datasets.CIFAR100),
)
"""Classes whose `__getitem__` returns `targets[position]` through `target_transform`. A subclass may do otherwise."""


class DatasetImages:
    """The images of a PyTorch dataset, each read or computed when it is indexed.

    Each item is read once at first, for its label and a checksum of its image.

    Args:
        dataset: gives pairs (image, label) by position. The image is uint8 or finished float32 (C, H, W), or a PIL
            image.

    Attributes:
        labels: int64 (N,), those that `__getitem__` returns.

    Raises:
        TypeError, ValueError, IndexError, KeyError, NotImplementedError: the dataset has no length, or gives no pairs
            with a whole number as the label.
        UserError: it gives a picture of a mode that isn't read.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self._checksums: dict[int, int] = {}
        labels = _known_labels(dataset)
        if labels is None:
            labels = []
            with seeded(0):
                for position in range(len(self)):
                    image, label = self.item(position)
                    self._checksums[position] = _checksum(image)
                    labels.append(label)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> Tensor:
        return self.item(position)[0]

    def item(self, position: int) -> tuple[Tensor, int]:
        """Return an image, uint8 or float32 (C, H, W), and its label, both of one call of `__getitem__`."""
        image, label = self.dataset[position][:2]
        if (number := int(label)) != label:
            raise ValueError(f"the label {label!r} is no whole number")
        if isinstance(image, Tensor):
            return image, number
        if image.mode == "1" or image.mode.startswith("I"):
            image = eight_bits(image).convert("L")
        # The values of "P" number colours. "F" is finished float32, as a tensor of that type.
        pixels: Tensor = pil_to_tensor(flat(image) if image.mode in ("P", "PA") else image)
        return pixels, number

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W), with C, H and W of the first image."""
        return torch.Size([len(self), *self[0].shape])

    def read(self, random_hint: str) -> Tensor:
        """Read all images: uint8 (N, C, H, W).

        Args:
            random_hint: the end of the error's line where the dataset is random.

        Raises:
            UserError: they are not uint8, or differ in shape; or an item is another one than when it was read first.
        """
        with seeded(1):
            items = [self.item(position) for position in range(len(self))]
        images = [image for image, _ in items]
        kind = type(self.dataset).__name__
        if images[0].dtype != torch.uint8:
            raise UserError(f"{kind} gives {images[0].dtype}, and memory holds uint8: add data.loader=workers")
        for position, (image, label) in enumerate(items):
            self._require_same(position, image, label, random_hint)
        shapes = list(dict.fromkeys(image.shape for image in images))
        if len(shapes) > 1:
            raise UserError(f"{kind} gives images of different shapes: {list(shapes[0])} and {list(shapes[1])}")
        if not self._checksums:
            self.require_repeatable(range(len(self)), random_hint)
        return torch.stack(images)

    def require_repeatable(self, positions: Sequence[int], random_hint: str) -> None:
        """Read some items again, with other random numbers, and compare.

        Args:
            positions: from which at most SAMPLE are taken.
            random_hint: the end of the error's line.

        Raises:
            UserError: an item is another one than before.
        """
        chosen = list(positions)[:: max(1, len(positions) // SAMPLE)]
        with seeded(2):
            first = {n: self._checksums.get(n) or _checksum(self[n]) for n in chosen}
        with seeded(3):
            for position in chosen:
                image, label = self.item(position)
                if _checksum(image) != first[position]:
                    raise self._is_random(random_hint)
                self.require_label(position, label)

    def require_label(self, position: int, label: int) -> None:
        """Raise UserError where an item's label is another one than when it was read first."""
        if label != int(self.labels[position]):
            raise UserError(
                f"{type(self.dataset).__name__} gives item {position} the label {int(self.labels[position])}, and the "
                f"label {label} when it is read again: the labels of a dataset must stay the same"
            )

    def _require_same(self, position: int, image: Tensor, label: int, random_hint: str) -> None:
        self.require_label(position, label)
        if self._checksums and _checksum(image) != self._checksums[position]:
            raise self._is_random(random_hint)

    def _is_random(self, random_hint: str) -> UserError:
        return UserError(
            f"{type(self.dataset).__name__} gives another image each time that an item is read: {random_hint}"
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch, NumPy and Python for a while; the random numbers of the process go on afterwards as before."""
    with isolate_rng(include_cuda=False):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


def _known_labels(dataset: Any) -> Any:
    """Return the labels from an attribute where `__getitem__` is torchvision's own; else None."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if type(dataset) in WITH_TARGETS:
        return dataset.targets
    return [label for _, label in dataset.samples] if type(dataset) is datasets.ImageFolder else None


def _checksum(image: Tensor) -> int:
    return zlib.crc32(image.contiguous().numpy().tobytes(), sum(image.shape))
