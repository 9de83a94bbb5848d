"""A data set in memory, and its parts in which each class keeps its share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import resize, rgb_to_grayscale

from mnist_lab.data.dataset_images import DatasetImages
from mnist_lab.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """A data set in memory.

    NumPy arrays, and lists of labels, become tensors.

    Attributes:
        name: the data set's name in results.
        train_images: uint8 (N, C, H, W), 0 to 255; or images that are read each time they are needed.
        train_labels: int64 (N,), 0 to len(classes) - 1.
        test_images: uint8 (M, C, H, W), or like train_images.
        test_labels: int64 (M,).
        classes: the classes' names, in the order of their labels.
        files: the files it was read from, each with its SHA-256; none: images and labels themselves tell sets apart.

    Raises:
        UserError: images that are not uint8 or not four-dimensional, labels that are no whole numbers, or not one each.
    """

    name: str
    train_images: Tensor | DatasetImages
    train_labels: Tensor
    test_images: Tensor | DatasetImages
    test_labels: Tensor
    classes: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        for part in ("train", "test"):
            images = getattr(self, f"{part}_images")
            try:
                labels = torch.as_tensor(getattr(self, f"{part}_labels"))
            except (TypeError, ValueError, RuntimeError) as error:  # of a list of names, say
                raise UserError(f"{self.name}: {part}_labels are not whole numbers, one an image") from error
            if isinstance(images, np.ndarray):
                images = torch.from_numpy(images)
            what, kind = f"{self.name}: {part}_images", str(getattr(images, "dtype", "")).removeprefix("torch.")
            if not isinstance(images, Tensor | DatasetImages):
                raise UserError(f"{what} are {type(images).__name__}, and must be a tensor or an array")
            if isinstance(images, Tensor) and images.dtype != torch.uint8:
                raise UserError(f"{what} are {kind}, and must be uint8, 0 to 255: data.scale says how to scale them")
            if len(images.shape) != 4:
                raise UserError(f"{what} have the shape {list(images.shape)}, and must be (N, channels, height, width)")
            if labels.is_floating_point() or labels.dim() != 1:
                raise UserError(f"{self.name}: {part}_labels are not whole numbers, one an image")
            if len(images) != len(labels):
                raise UserError(f"{what} are {len(images):,}, and their labels {len(labels):,}")
            object.__setattr__(self, f"{part}_images", images)
            object.__setattr__(self, f"{part}_labels", labels.long())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the files' digests; of a data set that names no files, over its images and labels in memory.

        Of images that are read each time they are needed nothing is known: only their labels count.
        """
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        arrays = [t.contiguous().numpy() for t in tensors if isinstance(t, Tensor)] if not self.files else []
        digests = self.files or {str(n): hashlib.sha256(array.data).hexdigest() for n, array in enumerate(arrays)}
        lines = "".join(f"{name}:{digests[name]}\n" for name in sorted(digests))
        return hashlib.sha256(lines.encode()).hexdigest()


Source = Callable[[Path, bool], ImageSet]
"""A function of the folder of the data sets, and of whether missing files may be downloaded to it."""


def converted(images: Tensor | DatasetImages, shape: Sequence[int]) -> Tensor:
    """Return images in another size, bilinear with antialiasing, and in grey (1 channel) or colour (3).

    Args:
        images: uint8 or float32 (N, C, H, W), where C is 1 or 3.
        shape: (channels, height, width) of those that are returned.

    Raises:
        UserError: they are read one by one, or have neither one channel nor three.
    """
    if isinstance(images, DatasetImages):
        raise UserError("data.resize and data.channels need images in memory: add data.loader=memory")
    channels, *size = shape
    if images.shape[1] != channels and (images.shape[1] not in (1, 3) or channels not in (1, 3)):
        raise UserError(f"data.channels={channels}: images have {images.shape[1]} channels, which can't be converted")
    found: Tensor = rgb_to_grayscale(images) if images.shape[1] > channels else images
    if list(found.shape[2:]) != size:
        found = torch.cat([resize(part, size, antialias=True) for part in found.split(4096)])
    return found.repeat(1, channels // found.shape[1], 1, 1)


def stratified_part(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Choose `size` labels at random such that each class keeps its share.

    To within one, that is, where classes are of like size. Of many classes with a handful of labels each, all may be on
    one side of the cut together.

    Args:
        labels: int64 (N,), 0 or more.
        size: how many to choose, 0 to N.
        generator: the source of randomness.

    Returns:
        The chosen positions in ascending order, int64 (size,).
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    return shuffled[interleaved(labels[shuffled])[:size]].sort().values


def interleaved(labels: Tensor) -> Tensor:
    """Return positions in an order in which the classes alternate: any stretch has a fair share of each class."""
    # An element's place, as a fraction, in the queue of its class.
    place = (_rank_in_class(labels) + 0.5) / torch.bincount(labels)[labels]
    return place.argsort(stable=True)


def _rank_in_class(labels: Tensor) -> Tensor:
    """Return for each label how many equal ones come before it: [3, 3, 1, 3] → [0, 1, 0, 2]."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - starts[labels[order]]
    return rank
