"""Facts about the test set in a result, so that only results of the same images and classes are compared."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from mnist_lab.data.datamodule import ImageDataModule


def test_facts(data: ImageDataModule, seen: int, processes: int) -> dict[str, Any]:
    """Return what tells a run's test from others.

    Args:
        data: a data module that has been set up.
        seen: the number of images that the test has seen: the first ones, where it was limited in a single process.
        processes: the number of processes that tested.

    Returns:
        test_counts: the number of images seen of each class, or None where it is not known which were seen.
        test_digest: SHA-256 of the images and labels of the whole test set; None where images are read one by one.
    """
    images = data.images
    assert images is not None
    labels = images.test_labels
    asked = labels if data.one_vs_rest is None else (labels == data.one_vs_rest).long()
    known = seen == len(labels) or processes == 1
    counts = torch.bincount(asked[:seen], minlength=len(data.class_names)).tolist() if known else None
    digest = None
    if isinstance(images.test_images, Tensor):
        content = hashlib.sha256(repr((images.test_images.dtype, tuple(images.test_images.shape))).encode())
        for tensor in (images.test_images, labels):
            content.update(tensor.cpu().contiguous().numpy().data)
        digest = content.hexdigest()
    return {"test_counts": counts, "test_digest": digest}
