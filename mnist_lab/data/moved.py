"""The data that a run recorded, found again where its folder has moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mnist_lab.data.download import DataUnavailableError
from mnist_lab.errors import UserError
from mnist_lab.files import CONF_DIR
from mnist_lab.words import path_of

if TYPE_CHECKING:
    from mnist_lab.data.datamodule import ImageDataModule


def read_recorded(data: ImageDataModule, recorded: Mapping[str, Any]) -> None:
    """Read the images of a run that has begun: those that it recorded, and no others in their place.

    They are read from `data.root`; where that can't be, from where today's settings say, if the digest is the recorded
    one. What neither has is downloaded there. `data.root` is where they were found.

    Args:
        data: a data module that has read nothing yet.
        recorded: `digest` and `fallback`, as a checkpoint and a result have them; empty where nothing was recorded.

    Raises:
        UserError: the images are in neither place.
    """
    if (reason := recorded.get("fallback")) is not None:
        data.use_fallback(reason)
        return
    if "digest" not in recorded:
        return
    data.fallback = None
    before, today = data.root, path_of(_root_of_today())
    try:
        data.read(download=False)
        return
    except (UserError, OSError) as error:
        problem = error
    data.root = today
    for download in (False, isinstance(problem.__cause__, DataUnavailableError)):
        try:
            data.read(download)
        except (UserError, OSError) as error:
            problem = error if download else problem
            continue
        if data.images is not None and data.images.digest == recorded["digest"]:
            return
        data.images = None
    places = f"in {before}" if before == today else f"in {before}, nor the same in {today}"
    reason = str(problem).splitlines()[0].rstrip(".")
    raise UserError(
        f"the run's data is not {places}: {reason}. Three ways out: put it back there; "
        "say where it is now, with data.root=DIR or MNIST_LAB_DATA; or start a new run on other data"
    ) from problem


def _root_of_today() -> str:
    """Return the data folder that conf/ and the environment name now, for a command that names none."""
    return str(OmegaConf.select(OmegaConf.load(CONF_DIR / "base.yaml"), "data.root"))
