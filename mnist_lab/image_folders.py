"""The layout of a dataset of image folders: DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/*."""

from __future__ import annotations

from pathlib import Path

from mnist_lab.errors import UserError
from mnist_lab.words import path_of

TRAINING, TEST = ("train", "training"), ("test", "testing")
VALIDATION = ("val", "valid", "validation", "dev")
"""Names that folders of training, test and validation images have; the last are not read."""


def class_folders(folder: str | None) -> list[str]:
    """Return the sorted names of the folders that hold one class each: in DIR/train where there is one, else in DIR.

    Raises:
        UserError: `folder` is None, does not exist, or has fewer than two class folders.
    """
    if folder is None:
        raise UserError("data.root must be given: data.root=DIR, a folder that has a folder for each class")
    root = path_of(folder)
    if not root.is_dir():
        raise UserError(f"data.root={folder}: there is no such folder")
    inner = part_of(root, TRAINING) or root
    names = sorted(d.name for d in inner.iterdir() if d.is_dir() and not d.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"data.root={folder}: {inner} has {len(names)} class folder(s), and at least two are needed")
    return names


def part_of(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first folder in `root` with one of these names; None where there is none.

    Accept any case, as in Train, and "training" or "testing", only where every folder beside it is a part as well:
    elsewhere it may be a class.
    """
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    parts = all(folder.name.lower() in (*TRAINING, *TEST, *VALIDATION) for folder in folders)
    names = names if parts else tuple(name for name in names if not name.endswith("ing"))
    return next((folder for folder in folders if (folder.name.lower() if parts else folder.name) in names), None)
