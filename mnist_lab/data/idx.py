"""Data sets in the IDX format, as MNIST and its relatives come: downloaded, checked, read by torchvision."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mnist_lab.data.archive import Archive
from mnist_lab.data.download import fetch
from mnist_lab.data.image_set import ImageSet
from mnist_lab.errors import UserError
from mnist_lab.files import digests

# SHA-256 of the uncompressed files, as their authors publish them.
DIGESTS = {
    "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "FashionMNIST/raw/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def idx_set(
    name: str,
    cls: Any,
    file_names: Sequence[str],
    classes: tuple[str, ...],
    root: Path,
    download: bool,
    **kwargs: Any,
) -> ImageSet:
    """Read a data set of IDX files: images and labels to train, images and labels to test.

    Args:
        name: its name in results.
        cls: torchvision's class for it.
        file_names: the four files.
        classes: the classes' names.
        root: the folder of the data sets.
        download: whether missing files may be downloaded.
        kwargs: further arguments of the class.

    Raises:
        DataUnavailableError: the files are missing and can't be downloaded.
        UserError: a file is damaged or can't be read or written.
    """
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
        if found[path.name] != DIGESTS.get(f"{cls.__name__}/raw/{path.name}", found[path.name]):
            raise UserError(f"{path} is damaged: its digest is not the published one. Delete it to download it again")
    # QMNIST's labels come with seven more columns: writer, hand-set form, ...
    labels = [part.targets[:, 0] if name == "qmnist" else part.targets for part in (train, test)]
    for part, (images_file, labels_file) in ((train, paths[:2]), (test, paths[2:])):
        if len(part.data) != len(part.targets):
            raise UserError(f"{images_file} has {len(part.data)} images, {labels_file.name} {len(part.targets)} labels")
    return ImageSet(name, train.data.unsqueeze(1), labels[0], test.data.unsqueeze(1), labels[1], classes, found)


@lru_cache(maxsize=1)
def _read_idx(cls: Any, root: Path, digests: tuple[str, ...], **kwargs: Any) -> tuple[Any, Any]:
    """Return torchvision's training and test parts, read once per process for files of these digests."""
    return cls(root, train=True, **kwargs), cls(root, train=False, **kwargs)


def _archives(cls: Any, paths: Sequence[Path]) -> list[Archive]:
    """Return the archives of a data set, as torchvision's class lists them."""
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
    """Check an IDX file against its name and its header (format: yann.lecun.com/exdb/mnist).

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
