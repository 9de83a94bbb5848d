"""What is kept of a run while it runs, so that it goes on to the same numbers whatever stops it."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from mnist_lab.errors import UserError
from mnist_lab.files import move, sync_folder
from mnist_lab.processes import is_helper_process
from mnist_lab.terminal import relative, to_go_on
from mnist_lab.training.classifier import Classifier

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""Ctrl-C, what `kill` and cluster schedulers send to end a job, and what SLURM's `--signal=USR1@60` announces it by,
which Windows hasn't."""


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint straight to its file, and returns when the disk has it."""

    def __init__(self) -> None:
        super().__init__()
        self._read_back = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Called by Lightning in the first process.

        Raises:
            UserError: what a callback has given can be written, but not be read without running code.
        """
        file = Path(path)
        file.parent.mkdir(exist_ok=True)
        sync_folder(file.parent.parent)
        file.unlink(missing_ok=True)  # it may be another checkpoint's second name
        with file.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if not self._read_back:
            try:
                torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                kind = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
                raise UserError(
                    f"checkpoints could not be read again{f', for they would hold {kind[1]}' if kind else ''}: the "
                    "state_dict of a callback may have numbers, texts, tensors, and lists and dicts of them"
                ) from error
            self._read_back = True

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Called by Lightning in each process.

        Raises:
            UserError: the file is damaged.
        """
        if (damaged := damage(Path(path))) is not None:
            raise UserError(f"{path} is damaged ({damaged})")
        return super().load_checkpoint(path, *args, **kwargs)


class Checkpoints(Checkpoint):
    """Keeps last.ckpt, previous.ckpt (the last but one) and best.ckpt (the highest val/acc), each whole or not at all.

    A run that is told to stop, in any of its processes, does so after the step that it is at: its checkpoint is
    written, the command to go on is shown, and the program ends with exit status 128 plus the signal's number. A second
    signal, more than a second later, ends it at once: terminals, torchrun and SLURM may all pass on the first.

    A Checkpoint, because Lightning calls those last: when everything else knows of the epoch.

    Args:
        folder: where they are kept.
        number: how many units pass between two checkpoints, 1 or more.
        unit: "epoch", "step" (of the optimiser) or "minute". Checkpoints come when a training step ends.
        best: whether there is validation data to choose the best by.
    """

    def __init__(self, folder: Path, number: int, unit: str, best: bool) -> None:
        self.folder, self.number, self.unit, self.best = folder, number, unit, best
        self.highest = float("-inf")
        self.over: int | None = None
        self._signal, self._told_at = 0, 0.0
        self._handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """What the best is, and whether training is over."""
        return {"highest": self.highest, "over": self.over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.highest, self.over = state_dict["highest"], state_dict["over"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens for signals from now on. A training that was stopped early isn't gone on with, but by more epochs."""
        trainer.should_stop = self.over == trainer.max_epochs
        self._step, self._time = trainer.global_step, time.monotonic()
        self._listen(self._told_to_stop)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens for signals again, which end the test at once: there is nothing to save."""
        self._listen(self._stop_the_test)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens no longer."""
        self._deafen()

    def _listen(self, handler: Callable[[int, FrameType | None], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, handler) for number in SIGNALS}

    def _told_to_stop(self, number: int, frame: FrameType | None) -> None:
        if not self._signal:
            self._signal, self._told_at = number, time.monotonic()
        elif time.monotonic() - self._told_at > 1 and not is_helper_process():
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)

    def _stop_the_test(self, number: int, frame: FrameType | None) -> None:
        self._deafen()
        if not is_helper_process():
            unfinished = not (self.folder.parent / "result.json").exists()
            how = f" To go on: {to_go_on(self.folder.parent)}" if unfinished else ""
            log.warning(f"stopped by {_name(number)} in the test.{how}")
        raise SystemExit(128 + number)

    def _told(self, trainer: L.Trainer) -> int:
        """The signal that one of the processes has got; 0: none."""
        if trainer.world_size == 1:
            return self._signal
        signals = torch.tensor(self._signal, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(signals, reduce_op="max"))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where that is due, unless the epoch's end or a validation is about to come."""
        told = self._told(trainer)
        if not (told or (self.unit != "epoch" and self._due(trainer))):
            return
        assert isinstance(pl_module, Classifier)
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if loop.batch_progress.is_last_batch or loop._should_check_val_fx(fetcher) or pl_module.accumulates(batch_idx):
            return
        pl_module.look_for_divergence_anywhere()
        self._save(trainer)
        if told:
            self._leave(trainer, told)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves what is best so far, of several validations within an epoch."""
        loop = trainer.fit_loop.epoch_loop
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not loop.batch_progress.is_last_batch:
            assert isinstance(pl_module, Classifier)
            if self._improved(pl_module):
                pl_module.look_for_divergence_anywhere()
                # Gradients that wait for more mini-batches are in no checkpoint: a run can't go on from there.
                self._save(trainer, improved=True, last=not pl_module.accumulates(loop.batch_idx))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves where that is due, where the epoch is the best, the last, or was told to be."""
        assert isinstance(pl_module, Classifier)
        told = self._told(trainer)
        epoch = trainer.current_epoch + 1
        due = epoch % self.number == 0 if self.unit == "epoch" else self._due(trainer)
        over = epoch == trainer.max_epochs or trainer.should_stop
        self.over = trainer.max_epochs if over else None
        improved = self._improved(pl_module)
        if told or due or over or improved:
            self._save(trainer, improved)
        if told:
            self._leave(trainer, told)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens no longer; and saves what an epoch that ended early, or a callback of others at the end, has left.

        But for averaged weights, which the epoch's checkpoint has: a run goes on from those that were averaged.
        """
        self._deafen()
        others = any(
            type(callback).on_train_end is not L.Callback.on_train_end
            and not type(callback).__module__.startswith("mnist_lab.")
            and not isinstance(callback, WeightAveraging)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
        )
        if others or trainer.global_step != self._step:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Says how to go on after a second Ctrl-C."""
        self._deafen()
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and (self.folder / "last.ckpt").exists():
            log.warning(f"stopped at once. To go on: {to_go_on(self.folder.parent)}")

    def _due(self, trainer: L.Trainer) -> bool:
        if self.unit == "step":
            return trainer.global_step // self.number > self._step // self.number
        return trainer.strategy.reduce_boolean_decision(time.monotonic() - self._time >= 60 * self.number, all=False)

    def _improved(self, module: Classifier) -> bool:
        """Whether validation has found the best so far. Of two that are equal the first is kept."""
        found = module.metrics.get("val/acc")
        if not self.best or found is None or found <= self.highest:
            return False
        self.highest = found
        return True

    def _save(self, trainer: L.Trainer, improved: bool = False, last: bool = True) -> None:
        """Saves as the last checkpoint, as the best where it has improved, or as both."""
        part, newest = self.folder / ".part", self.folder / "last.ckpt"
        if last:
            self._step, self._time = trainer.global_step, time.monotonic()
        for logger in trainer.loggers:
            logger.save()  # what a resumed run won't write again
        try:
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                if improved:  # before the last one says that it is: whoever goes on from the one before finds it again
                    _same_file(part, self.folder / "best.ckpt")
                if last and newest.exists():
                    _same_file(newest, self.folder / "previous.ckpt")
                if last:
                    move(part, newest)
                part.unlink(missing_ok=True)
        except BaseException:
            part.unlink(missing_ok=True)  # of a disk that is full
            raise
        trainer.strategy.barrier()

    def _leave(self, trainer: L.Trainer, number: int) -> None:
        self._deafen()
        if trainer.is_global_zero:
            when, how = f"in epoch {trainer.current_epoch + 1}", to_go_on(self.folder.parent)
            log.warning(f"stopped by {_name(number)} {when}, nothing is lost. To go on: {how}")
        raise SystemExit(128 + number)

    def _deafen(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file; None where nothing is.

    Every part of a checkpoint carries a CRC-32, which PyTorch writes and doesn't look at.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip()
    except Exception as error:  # a bit more or less in a header makes zipfile raise whatever reads what follows it
        return str(error) or type(error).__name__


def newest(folder: Path) -> Path | None:
    """The last checkpoint that is whole; one that is damaged is set aside, with a warning. None where there is none."""
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


def _same_file(source: Path, target: Path) -> None:
    """Gives a file a second name, in the place of what has it; a copy where the file system knows no second names."""
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
    move(new, target)
