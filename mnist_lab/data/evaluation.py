"""The part of a training transform that evaluation needs: preparation, which all images need, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist_lab.data.dataset_images import seeded
from mnist_lab.errors import UserError

Transform = Callable[[Tensor], Tensor]
TRIALS = 64
"""Seeds with which a transform is applied to each example to see whether it is random."""
AUGMENTATIONS = {
    *("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide", "ColorJitter", "ElasticTransform"),
    *("GaussianBlur", "GaussianNoise", "JPEG", "ScaleJitter"),
}
"""Classes of torchvision.transforms, beside those called Random..., that change images but not their scale."""
GROUPS = ("RandomApply", "RandomChoice", "RandomOrder")
"""Transforms that apply others at random."""
WHERE = "validation, test, predict, export and report"
TO_TENSOR = (
    "takes no tensors, which images are here: in its place use {_target_: torchvision.transforms.v2.ToDtype, dtype: "
    "{_target_: hydra.utils.get_object, path: torch.float32}, scale: true}"
)


class Steps:
    """Several transforms, one after the other.

    Args:
        parts: each takes what the one before gives.
    """

    def __init__(self, parts: Sequence[Transform]) -> None:
        self.parts = parts

    def __call__(self, image: Tensor) -> Tensor:
        """Apply them to an image, (C, H, W)."""
        for part in self.parts:
            image = part(image)
        return image


def evaluation_transform(
    transform: Transform | None, eval_transform: Transform | None, shape: Sequence[int], floating: bool
) -> Transform | None:
    """Return what images go through for validation, test, predict, export and report.

    Args:
        transform: that of training images, from uint8 or float32 (C, H, W) to the same or the other; None: none.
        eval_transform: what the user wants for evaluation; None: what of `transform` isn't random.
        shape: (C, H, W) of the images.
        floating: whether images are float32, 0 to 1, instead of uint8.

    Returns:
        The transform; None where images stay as they are.

    Raises:
        UserError: a transform can't take images, or gives something else; preparation can't be told from augmentation;
            or evaluation would see another type or shape of images than training.
    """
    if transform is None:
        if eval_transform is not None:
            raise UserError("data.eval_transform without data.transform: training images would be on another scale")
        return None
    images = _examples(shape, floating)
    trained = _applied(transform, images, "data.transform")
    _require_images(trained, "data.transform")
    chosen = eval_transform or _preparation(transform, images)
    evaluated = images if chosen is None else _applied(chosen, images, "data.eval_transform")
    _require_images(evaluated, "data.eval_transform")
    if (trained[0].dtype, trained[0].shape) != (evaluated[0].dtype, evaluated[0].shape):
        given = "data.eval_transform" if eval_transform else "data.transform without what is random in it"
        raise UserError(
            f"data.transform gives {_kind(trained[0])}, and {given} {_kind(evaluated[0])}: data.eval_transform must "
            f"prepare images for {WHERE} as data.transform does for training"
        )
    return chosen


def _preparation(transform: Transform, images: list[Any]) -> Transform | None:
    """Return the part of a transform that is not random; None where all of it is.

    Raises:
        UserError: something random may be preparation, too.
    """
    parts, kept = _parts(transform), []
    for part in parts:
        if not _is_random(part, images):
            kept.append(part)
            images = _applied(part, images, "data.transform")
        elif not _is_augmentation(part):
            name = getattr(part, "__name__", type(part).__name__)
            raise UserError(
                f"data.transform: {name} is random, and may be what brings images to the scale of training, too: say "
                f"with data.eval_transform what images go through for {WHERE}"
            )
    if len(kept) == len(parts):
        return transform
    return Steps(kept) if kept else None


def _parts(transform: Transform) -> list[Transform]:
    """Return the parts of torchvision's Compose or PyTorch's Sequential; of any other transform itself."""
    if type(transform) is nn.Sequential:
        inner = list(transform)
    elif _is_torchvisions(transform) and type(transform).__name__ == "Compose":
        inner = transform.transforms  # type: ignore[attr-defined]
    else:
        return [transform]
    return [part for each in inner for part in _parts(each)]


def _is_torchvisions(transform: Transform) -> bool:
    return type(transform).__module__.startswith("torchvision.transforms.")


def _is_augmentation(transform: Transform) -> bool:
    """Return whether a transform is a class of torchvision that changes images, but not their type and scale."""
    name = type(transform).__name__
    if not _is_torchvisions(transform) or not (name.startswith("Random") or name in AUGMENTATIONS):
        return False
    return name not in GROUPS or all(map(_is_augmentation, transform.transforms))  # type: ignore[attr-defined]


def _is_random(transform: Transform, images: list[Any]) -> bool:
    """Return whether a transform gives different results for the same images with different seeds."""
    probability = getattr(transform, "p", 1.0)
    if _is_augmentation(transform) and isinstance(probability, float) and 0 < probability < 1:
        return True
    first = _applied(transform, images, "data.transform")
    for seed in range(1, TRIALS):
        again = _applied(transform, images, "data.transform", seed)
        if not all(map(_is_same, first, again)):
            return True
    return False


def _examples(shape: Sequence[int], floating: bool) -> list[Tensor]:
    """Four images of random pixels."""
    images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return list(images / 255 if floating else images)


def _applied(transform: Transform, images: list[Any], key: str, seed: int = 0) -> list[Any]:
    """Apply a transform, or a part of one, to some images: tensors, or what the part before gives.

    Raises:
        UserError: it is torchvision's old ToTensor, which takes no tensors.
        Exception: the transform's own.
    """
    if type(next(iter(_parts(transform)), None)).__name__ == "ToTensor" and isinstance(images[0], Tensor):
        raise UserError(f"{key} (ToTensor) {TO_TENSOR}")
    with seeded(seed):
        return [transform(deepcopy(image)) for image in images]


def _require_images(images: list[Any], key: str) -> None:
    """Raise UserError unless all are uint8 or float32 (C, H, W)."""
    for image in images:
        if not isinstance(image, Tensor) or image.dim() != 3 or image.dtype not in (torch.uint8, torch.float32):
            raise UserError(f"{key} gives {_kind(image)}, and must give a tensor, uint8 or float32 (C, H, W)")


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two images, tensors or others, have the same values."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return np.array_equal(np.asarray(one), np.asarray(other))


def _kind(image: object) -> str:
    if not isinstance(image, Tensor):
        return type(image).__name__
    return f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
