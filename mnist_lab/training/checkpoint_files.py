"""The files of checkpoints: written whole, read without running code, checked for damage."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from mnist_lab.errors import UserError, brief
from mnist_lab.files import sync_folder
from mnist_lab.processes import is_helper_process
from mnist_lab.schema import COUNT, mismatch
from mnist_lab.terminal import relative

log = logging.getLogger(__name__)
PROGRESS = {"total": {str: COUNT}, "current": {str: COUNT}}
CHECKPOINT: dict[Any, Any] = {
    "epoch": COUNT,
    "global_step": COUNT,
    "state_dict": {},
    "loops?": {
        "fit_loop": {
            "epoch_loop.state_dict": {},
            "epoch_loop.batch_progress": PROGRESS,
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": PROGRESS}},
            "epoch_loop.manual_optimization.optim_step_progress": PROGRESS,
            "epoch_progress": PROGRESS,
        }
    },
    "callbacks?": {"History?": {"rows": [{}], "elapsed": float}, "Checkpoints?": {"over": (COUNT, {}, None)}},
    "optimizer_states?": [{}],
    "lr_schedulers?": [{}],
    "ImageDataModule?": {
        "digest?": str,
        "fallback?": (str, None),
        "finished?": bool,
        "shape?": [COUNT],
        "class_names?": [str],
        **dict.fromkeys(("shift?", "divisor?"), torch.Tensor),
    },
    "processes?": [COUNT],
    "progress?": [COUNT],
    "within_epoch?": bool,
    "accumulated?": COUNT,
    "frozen?": [str],
    "resume_from?": ({}, None),
    "random?": ([{}], {}),
    "metrics?": [{}],
    "plateau?": {},
    "counted?": {},
}
"""The types of what is read of a checkpoint, declared as in `mnist_lab.schema.RESULT`."""


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint straight to its file, and returns when the disk has it."""

    def __init__(self) -> None:
        super().__init__()
        self._read_back = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. Lightning calls this in the first process.

        Raises:
            UserError: what a callback has given can be written, but not be read without running code.
        """
        file = Path(path)
        if not file.parent.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(file.parent.parent)
        file.unlink(missing_ok=True)  # it may be another checkpoint's second name
        with file.open("wb") as stream:
            torch.save(_without_objects(checkpoint), stream)
            stream.flush()
            os.fsync(stream.fileno())
        if not self._read_back:
            try:
                read(file)
            except pickle.UnpicklingError as error:
                held = f", for they would hold {code}" if (code := _code(error)) else ""
                raise UserError(
                    f"checkpoints could not be read again{held}: the state_dict of a callback may have numbers, texts, "
                    "tensors, and lists and dicts of them"
                ) from error
            self._read_back = True

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint. Lightning calls this in each process.

        Raises:
            UserError: the file is damaged.
        """
        if (damaged := damage(Path(path))) is not None:
            raise UserError(f"{path} is damaged ({damaged})")
        return super().load_checkpoint(path, *args, **kwargs)


def _without_objects(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without those of `save_hyperparameters`' values that only running code could read again."""
    kept = {key: value for key, value in checkpoint.items() if not key.endswith("hparams_type")}
    for key in (L.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY):
        if key in kept:
            kept[key] = {name: value for name, value in dict(kept[key]).items() if _is_plain(value)}
    return kept


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Never run code that the file holds.

    Raises:
        pickle.UnpicklingError: the file holds more than numbers, texts, tensors, lists and dicts.
    """
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def _code(error: Exception) -> str | None:
    """Return the name of the class or function that a checkpoint holds and PyTorch has refused; None: none."""
    found = re.search(r"(?:GLOBAL|global):? (?:GLOBAL )?([^\s,]+)", str(error))
    return found[1] if found and isinstance(error, pickle.UnpicklingError) else None


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's file; None where nothing is.

    Every part of a checkpoint carries a CRC-32, which PyTorch writes and doesn't look at. No part is compressed or lies
    in another: they take no more memory than the file has bytes.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            found = parts.infolist()
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in found)
            if not stored or sum(part.file_size for part in found) > path.stat().st_size:
                return "its parts are compressed, and could fill the memory"
            return parts.testzip()
    except Exception as error:  # a bit more or less in a header makes zipfile raise whatever reads what follows it
        return str(error) or type(error).__name__


def newest(folder: Path) -> Path | None:
    """Return the last whole checkpoint; None where there is none. Set a damaged one aside, with a warning."""
    for path in (folder / "last.ckpt", folder / "previous.ckpt"):
        if not path.exists():
            continue
        if (damaged := damage(path)) is None:
            return path
        if is_helper_process():  # the first sets it aside
            continue
        before = path.name == "last.ckpt" and (folder / "previous.ckpt").exists()
        then = "the one before is used" if before else "the run begins anew"
        log.warning(f"{relative(path)} is damaged ({damaged}): {then}, and it is kept as .damaged")
        path.replace(path.with_suffix(".damaged"))
    return None


def to_resume(folder: Path, limits: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint that a run goes on from, and its content; None where there is none.

    Where a limit has ended the training within an epoch and is another now, that is the state of that moment.

    Args:
        folder: of the checkpoints.
        limits: values of trainer.max_epochs, max_steps and max_time now.

    Raises:
        UserError: the file is no checkpoint of a run.
    """
    if (path := newest(folder)) is None:
        return None, {}
    saved = read_checkpoint(path)
    over = saved.get("callbacks", {}).get("Checkpoints", {}).get("over")
    cut = folder / "cut.ckpt"
    if over not in (None, limits, limits["max_epochs"]) and cut.exists() and damage(cut) is None:
        was_cut = read_checkpoint(cut)
        if was_cut["global_step"] == saved["global_step"]:
            return cut, was_cut
    return path, saved


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run. Never run code that the file holds.

    Raises:
        UserError: the file can't be read, or is no checkpoint of a run.
    """
    if (damaged := damage(path)) is not None:
        raise UserError(f"{path} can't be read as a checkpoint, it is damaged: {damaged}")
    try:
        saved = read(path)
        if (wrong := mismatch(saved, CHECKPOINT)) is not None:
            raise TypeError(wrong)
        if not all(isinstance(name, str) for name in saved["state_dict"]):
            raise TypeError("state_dict has names that are no texts")
    except Exception as error:  # torch raises what its unpickler and its zip reader raise
        code = _code(error)
        why = f"it holds code, {code}, which was not run" if code else brief(error)
        raise UserError(f"{path} can't be read as a checkpoint: {why}") from error
    return saved


def link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of the file that has it; copy it where the file system has no links."""
    new = target.with_suffix(".new")
    new.unlink(missing_ok=True)
    try:
        os.link(source, new)
    except OSError:
        try:
            shutil.copyfile(source, new)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    new.replace(target)
