"""Checkpoints, from which a run that was stopped ends with the numbers of an uninterrupted one."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelPruning
from torch import Tensor

from mnist_lab.data import Batches
from mnist_lab.files import sync_folder
from mnist_lab.terminal import to_go_on
from mnist_lab.training import weights
from mnist_lab.training.checkpoint_files import link, read
from mnist_lab.training.classifier import Classifier
from mnist_lab.training.divergence import Divergence
from mnist_lab.training.ending import is_over
from mnist_lab.training.signals import StopSignals, name_of

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Keeps last.ckpt, previous.ckpt (the last but one) and best.ckpt (by a metric), each whole or not at all.

    A checkpoint is written when a step or an epoch ends, and takes its name at the next hook: by then Lightning has
    given the loggers what that step or epoch measured, which a resumed run won't measure again. The last one takes its
    name after the training, with the weights that the callbacks have left (`finish`).

    Where a limit ends the training within an epoch, cut.ckpt is the state of that moment: with a higher limit a run
    goes on from there.

    A run that is told to stop, in any of its processes, does so after the step that it is at: its checkpoint is
    written, the command to go on is shown, and the program ends with exit status 128 plus the signal's number.
    Nothing is kept within an epoch of another's loader, which can't go on there: a stopped run begins the epoch again.

    A Checkpoint, because Lightning calls those last: when everything else knows of the epoch.

    Args:
        folder: where they are kept.
        number: how many units pass between two checkpoints, 1 or more.
        unit: "epoch", "step" (of the optimiser) or "minute". Checkpoints come when a training step ends.
        monitor: the metric to choose the best by.
        mode: "min" or "max".
        limits: values of trainer.max_epochs, max_steps and max_time: with the same ones a training that is over
            stays so.
        divergence: looks for values that are not finite, before a checkpoint within an epoch is written.
        writes: whether files are written. Without them a run that is stopped begins again.
    """

    takes_chunks = True

    def __init__(
        self,
        folder: Path,
        number: int,
        unit: str,
        monitor: str,
        mode: str,
        limits: dict[str, Any],
        divergence: Divergence,
        writes: bool = True,
    ) -> None:
        self.folder, self.number, self.unit, self.monitor, self.mode = folder, number, unit, monitor, mode
        self.limits, self.divergence, self.writes = limits, divergence, writes
        self.best: float | None = None
        self.over: dict[str, Any] | int | None = None
        self.signals = StopSignals(folder.parent)
        self._validated: dict[str, Tensor] | None = None
        self._unnamed: tuple[bool, bool] | None = None
        """Whether the checkpoint being written is the best, and whether it is the last."""
        self._leave_with, self._epoch = 0, 0
        self._trained = False

    def state_dict(self) -> dict[str, Any]:
        """Return the best value of the metric, and the limits where training is over."""
        return {"best": self.best, "over": self.over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; earlier versions kept the highest val/acc, and the number of epochs."""
        best = state_dict.get("best", state_dict.get("highest"))
        self.best, self.over = None if best in (None, float("-inf")) else best, state_dict["over"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Skip a training that is over, unless one of its limits is another now."""
        self._trained, self._unnamed, self._leave_with = False, None, 0
        if self.over is not None and self.over in (self.limits, self.limits.get("max_epochs")):
            trainer.should_stop = True
        self.over = None if not trainer.should_stop else self.over
        if trainer.is_global_zero:
            for path in (self._part, self._best_part):
                path.unlink(missing_ok=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note signals from now on."""
        self._step, self._time, self._trained = trainer.global_step, time.monotonic(), True
        self.signals.note_while_training()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have signals end the test at once."""
        self.signals.end_the_test()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back the signals' handlers."""
        self.signals.restore_handlers()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the checkpoint that the epoch before has left."""
        self._name(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Name the checkpoint that the step before has left."""
        self._name(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where that is due, unless the epoch's end or a validation is about to come."""
        received = self._leave_without_files(trainer)
        cut = is_over(trainer, trainer.current_epoch)
        if not (received or cut or (self.unit != "epoch" and self._due(trainer))):
            return
        loop = trainer.fit_loop.epoch_loop
        if loop.batch_progress.is_last_batch:
            return
        if received and not _knows_its_place(trainer):
            self._leave(trainer, received, f"in epoch {trainer.current_epoch + 1}, which will begin again")
        if _accumulates(trainer, batch_idx) or not (cut or _knows_its_place(trainer)):
            return
        if cut:
            self._save_cut(trainer)
            return
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if loop._should_check_val_fx(fetcher):
            return
        self.divergence.check(trainer, pl_module)
        self._save(trainer)
        self._leave_with = received

    def keep_validated(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Copy the weights that a validation has judged, if they are the best so far: callbacks may change them."""
        better = self.writes and self._better(trainer) is not None
        self._validated = weights.usable(module) if better else None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best so far, of several validations within an epoch."""
        _part_from_pruning(trainer, pl_module)
        loop = trainer.fit_loop.epoch_loop
        within = trainer.state.fn == "fit" and not trainer.sanity_checking and not loop.batch_progress.is_last_batch
        if within and self._improved(trainer):
            self.divergence.check(trainer, pl_module)
            # Gradients that wait for more mini-batches are in no checkpoint: a run can't go on from there.
            last = _knows_its_place(trainer) and not _accumulates(trainer, loop.batch_idx)
            self._save(trainer, improved=True, last=last)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save where that is due, where the epoch is the best or the last, or where a signal was received."""
        _part_from_pruning(trainer, pl_module)
        received, over = self._leave_without_files(trainer), is_over(trainer, trainer.current_epoch + 1)
        due = (trainer.current_epoch + 1) % self.number == 0 if self.unit == "epoch" else self._due(trainer)
        self.over = self.limits if over else None
        improved = self._improved(trainer)
        self._warn_once(trainer, pl_module)
        if received or due or over or improved:
            self._save(trainer, improved)
        self._leave_with = received

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what an epoch has left that ended without its last hook."""
        if trainer.global_step != self._step:
            self._save(trainer)
        self.signals.restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say how to go on after a second Ctrl-C."""
        self.signals.restore_handlers()
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and self._last.exists():
            log.warning(f"stopped at once. To go on: {to_go_on(self.folder.parent)}")

    def finish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Give the training's last checkpoint the weights that it has ended with, and its name.

        Callbacks may have changed them when the training ended, as weight averaging does. A longer training goes on
        from those of the last epoch, which the checkpoint keeps beside them. Where the training was over before, the
        module gets the weights that it had ended with.

        Raises:
            SystemExit: a signal was received in the last epoch.
        """
        if not self.writes:
            return
        if not self._trained:
            module.load_state_dict(read(self._last)["state_dict"])
            return
        if trainer.is_global_zero and (source := self._part if self._part.exists() else self._last).exists():
            saved, ended_with = read(source), weights.usable(module)
            if not weights.same(saved["state_dict"], ended_with):
                saved["resume_from"] = saved.get("resume_from") or saved["state_dict"]
                saved["state_dict"] = ended_with
                trainer.strategy.checkpoint_io.save_checkpoint(saved, self._part)
                self._unnamed = (self._unnamed or (False, True))[0], True
        self._name(trainer)

    @property
    def _last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def _part(self) -> Path:
        return self.folder / ".part"

    @property
    def _best_part(self) -> Path:
        return self.folder / ".best"

    def _due(self, trainer: L.Trainer) -> bool:
        if self.unit == "step":
            return trainer.global_step // self.number > self._step // self.number
        return trainer.strategy.reduce_boolean_decision(time.monotonic() - self._time >= 60 * self.number, all=False)

    def _better(self, trainer: L.Trainer) -> float | None:
        """Return the metric's value if it is the best so far, else None. Of two that are equal the first is kept."""
        found = trainer.callback_metrics.get(self.monitor)
        value = None if found is None else float(trainer.strategy.broadcast(float(found)))
        if value is None or value != value:
            return None
        if self.best is not None and (value <= self.best if self.mode == "max" else value >= self.best):
            return None
        return value

    def _improved(self, trainer: L.Trainer) -> bool:
        value = self._better(trainer)
        self.best = self.best if value is None else value
        return value is not None

    def _warn_once(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Say after the first epoch of another's module that the metric which is judged is not there."""
        logged = trainer.callback_metrics
        if trainer.current_epoch == 0 and self.monitor not in logged and not isinstance(module, Classifier):
            log.warning(
                f"{type(module).__name__} doesn't log {self.monitor}, so no best.ckpt is kept. monitor=NAME takes one "
                f"of {', '.join(logged) or 'those that it logs with self.log'}"
            )

    def _save(self, trainer: L.Trainer, improved: bool = False, last: bool = True) -> None:
        """Write the last checkpoint, the best where it has improved, or both; `_name` gives them their names."""
        if not self.writes:
            return
        self._name(trainer)
        if last:
            self._step, self._time = trainer.global_step, time.monotonic()
        try:
            trainer.save_checkpoint(self._part)
            if improved and trainer.is_global_zero:
                self._save_best(trainer)
        except BaseException:
            for path in (self._part, self._best_part):  # of a disk that is full
                path.unlink(missing_ok=True)
            raise
        self._unnamed, self._epoch = (improved, last), trainer.current_epoch + 1

    def _save_best(self, trainer: L.Trainer) -> None:
        """Write the best checkpoint: with the weights that were judged, where they have been changed since."""
        saved = read(self._part) if self._validated is not None else {}
        if self._validated is None or weights.same(saved["state_dict"], self._validated):
            link(self._part, self._best_part)
        else:
            saved["state_dict"] = self._validated
            trainer.strategy.checkpoint_io.save_checkpoint(saved, self._best_part)
        self._validated = None

    def _save_cut(self, trainer: L.Trainer) -> None:
        """Write the state in which a limit ends the training within an epoch."""
        if not self.writes:
            return
        trainer.save_checkpoint(self._part)
        if trainer.is_global_zero:
            self._part.replace(self.folder / "cut.ckpt")

    def _name(self, trainer: L.Trainer) -> None:
        """Give a checkpoint that was written its name, and leave where a signal asks for it."""
        if self._unnamed is None:
            return
        (improved, last), self._unnamed = self._unnamed, None
        for logger in trainer.loggers:
            logger.save()  # what a resumed run won't write again
        if trainer.is_global_zero:
            if improved:  # before the last one says that it is: whoever goes on from the one before finds it again
                self._best_part.replace(self.folder / "best.ckpt")
                sync_folder(self.folder)
            if last and self._last.exists():
                link(self._last, self.folder / "previous.ckpt")
            if last:
                self._part.replace(self._last)
            self._part.unlink(missing_ok=True)
            sync_folder(self.folder)
        trainer.strategy.barrier()
        if self._leave_with:
            self._leave(trainer, self._leave_with, f"in epoch {self._epoch}, nothing is lost")

    def _leave_without_files(self, trainer: L.Trainer) -> int:
        """Return the signal that was received, 0 for none; leave at once where no checkpoint is to be written."""
        received = self.signals.received(trainer)
        if received and not self.writes:
            self._leave(trainer, received, "without checkpoints: the run will begin again")
        return received

    def _leave(self, trainer: L.Trainer, received: int, where: str) -> NoReturn:
        self.signals.restore_handlers()
        if trainer.is_global_zero:
            log.warning(f"stopped by {name_of(received)} {where}. To go on: {to_go_on(self.folder.parent)}")
        raise SystemExit(128 + received)


class ValidatedWeights(Callback):
    """Has `Checkpoints` copy the weights that a validation has judged, before other callbacks change them.

    Its place is the first among the callbacks.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hand the module on, unless this is a check before training or no training at all."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.checkpoints.keep_validated(trainer, pl_module)


def _part_from_pruning(trainer: L.Trainer, module: L.LightningModule) -> None:
    if any(isinstance(callback, ModelPruning) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        weights.own_memory(module)


def _knows_its_place(trainer: L.Trainer) -> bool:
    """Return whether a run can go on within an epoch: another's loader begins it anew (Lightning issue 19549)."""
    return isinstance(trainer.train_dataloader, Batches) or hasattr(trainer.train_dataloader, "load_state_dict")


def _accumulates(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return whether gradients wait for more mini-batches when the training step of this number is over."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches != 0
