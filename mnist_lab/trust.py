"""Which code a run's config may name: any if this user wrote it, otherwise only layers and the like."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnist_lab.errors import UserError
from mnist_lab.files import cache_dir

HARMLESS = re.compile(
    r"(torch\.nn|torch\.optim|torchvision\.transforms\.v2)\.\w+"
    r"|mnist_lab\.models\.(CNN|MLP|ConvPool2d|ConvStack|Dropout|Linear|Neuron)"
    r"|mnist_lab\.data\.(Augment|ImageDataModule|cifar10|emnist|fashion_mnist|from_datasets|image_folder|kmnist|mnist"
    r"|mnist_5k|qmnist)"
    r"|mnist_lab\.training\.(SGD|Adam|AdamW|RMSprop|Dashboard|NeuronForwardPass)"
    r"|mnist_lab\.training\.schedules\.(step|cosine|one_cycle|Plateau)"
    r"|lightning\.Trainer|lightning\.pytorch\.(callbacks\.EarlyStopping|loggers\.(TensorBoardLogger|CSVLogger))"
)
"""Classes and functions that only build networks, data and their training."""


def seal(content: str) -> str | None:
    """A seal that shows later that this user wrote a text: HMAC-SHA256 with a key kept in the user's cache folder.

    Args:
        content: the text.

    Returns:
        The seal in hexadecimal; None if no key can be stored.
    """
    path = cache_dir() / "key"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
        key = path.read_bytes()
        if len(key) == 32:
            return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()
    return None


def is_sealed(content: str, sealed: Any) -> bool:
    """Whether the seal that came with a text shows that this user wrote it."""
    own = seal(content)
    return own is not None and isinstance(sealed, str) and hmac.compare_digest(own, sealed)


def trusts(name: str) -> bool:
    """Whether MNIST_LAB_TRUST, a list with commas, names this package (or `sweep`)."""
    return name in os.environ.get("MNIST_LAB_TRUST", "").split(",")


def check_origin(path: Path, config: Any, sealed: Any) -> None:
    """Makes sure that a config from somebody else can't run code of their choice.

    Args:
        path: the file.
        config: its content, as dictionaries and lists.
        sealed: the seal that came with it, if any.

    Raises:
        UserError: the file is not as this user wrote it, and contains an interpolation or names code that is neither
            HARMLESS nor from a package in MNIST_LAB_TRUST.
    """
    if is_sealed(path.read_text(encoding="utf-8"), sealed):
        return
    for value in interpolations(config):
        raise UserError(
            f"{path} was not written here and has {value[:100]}, which could become the name of code. "
            "Write there what it stands for"
        )
    for value in values(config):
        if not isinstance(value, str | int | float | None):  # as YAML's own tags make of it
            raise UserError(
                f"{path} was not written here and has a {type(value).__name__}, {value}: write it as a text"
            )
    for target in targets(config):
        package = str(target).partition(".")[0]
        if not HARMLESS.fullmatch(str(target)) and not trusts(package):
            raise UserError(
                f"{path} was not written here and names {target}, which would be run. If you trust it: "
                f"MNIST_LAB_TRUST={package}"
            )


def targets(config: Any) -> Iterator[Any]:
    """Every `_target_` in a config."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "_target_":
                yield value
            yield from targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets(value)


def interpolations(config: Any) -> Iterator[str]:
    """Every string in a config that contains an interpolation, which is replaced when the config is used."""
    return (value for value in values(config) if isinstance(value, str) and "${" in value)


def values(config: Any) -> Iterator[Any]:
    """Every value in a config that is neither a dictionary nor a list."""
    if not isinstance(config, dict | list):
        yield config
        return
    for value in config.values() if isinstance(config, dict) else config:
        yield from values(value)
