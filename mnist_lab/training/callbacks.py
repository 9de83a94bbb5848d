"""Callbacks that report a training: a line and a row an epoch, a progress bar, a table of layers."""

from __future__ import annotations

import csv
import io
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from mnist_lab.data import Batches
from mnist_lab.files import write_whole
from mnist_lab.metrics import OF_AN_EPOCH, is_accuracy, of_stage, shown
from mnist_lab.terminal import show
from mnist_lab.training.classifier import Classifier
from mnist_lab.training.pace import Pace

log = logging.getLogger(__name__)


class History(Checkpoint):
    """One line on the terminal and one row of history.csv for each epoch.

    A row has `epoch` (from 1), each metric that was logged in the epoch by its name, `lr` (of the last step) and
    `seconds`. Rows of a `Classifier` always have `OF_AN_EPOCH`, None where an epoch has no validation.

    A Checkpoint, because Lightning calls those last: when the module has logged its epoch.

    Args:
        path: the CSV file, whose columns are those of the rows.
        pace: knows the learning rate.
    """

    def __init__(self, path: Path, pace: Pace) -> None:
        self.path, self.pace = path, pace
        self.rows: list[dict[str, float | int | None]] = []
        self._before: dict[str, Any] = {}
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._start, self._before = time.perf_counter(), dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the epoch; Lightning has validated by now."""
        logged = trainer.callback_metrics
        # Lightning keeps the values of earlier epochs; those of this one are new objects.
        found = {
            name: number_of(value) for name, value in sorted(logged.items()) if value is not self._before.get(name)
        }
        row: dict[str, float | int | None] = {"epoch": trainer.current_epoch + 1}
        row |= dict.fromkeys(OF_AN_EPOCH) if isinstance(pl_module, Classifier) else {}
        row |= found | {"lr": self.pace.lr, "seconds": round(time.perf_counter() - self._start, 3)}
        self.rows.append(row)
        if trainer.is_global_zero:
            log.info(self._line(row, trainer.max_epochs or 0))
            columns = dict.fromkeys(name for row in self.rows for name in row if name not in ("lr", "seconds"))
            text = io.StringIO()
            writer = csv.DictWriter(text, [*columns, "lr", "seconds"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_whole(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, and how long the epoch has taken so far."""
        return {"rows": self.rows, "elapsed": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the rows of a checkpoint."""
        self.rows = state_dict["rows"]
        self._start = time.perf_counter() - state_dict["elapsed"]

    @staticmethod
    def _line(row: dict[str, Any], epochs: int) -> str:
        words = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}" if epochs > 0 else f"epoch {row['epoch']}"]
        for stage in ("train", "val", ""):
            found = [
                f"{name} {shown(name, value):>{7 if is_accuracy(name) else 0}}"
                for name, value in of_stage(row, stage).items()
                if value is not None
            ]
            if found:
                words.append("  ".join([f"{stage} {found[0]}".lstrip(), *found[1:]]))
        return "   ".join([*words, f"{row['seconds']:.1f} s"])


def number_of(value: Any) -> float:
    """Return a metric's value; of a float32 the shortest decimal number: 0.9812, not 0.9811999797821045."""
    number = float(value)
    return number if getattr(value, "dtype", None) == torch.float64 else float(str(np.float32(number)))


class EpochProgress(ProgressBar):
    """A bar that fills within each epoch and leaves nothing behind; `History` writes what stays."""

    takes_chunks = True

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def disable(self) -> None:
        """Show no bar. Lightning calls this in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Open the epoch's bar."""
        if not self._enabled or not get_console().is_terminal:
            return
        self._bar = Progress(
            TextColumn(
                f"epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if (epochs := trainer.max_epochs) != -1 else "")
            ),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("batches,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=get_console(),
            transient=True,
            refresh_per_second=4,  # each takes a core for 1 ms, and the other waits for it
        )
        self._task = self._bar.add_task("", total=self._mini_batches(trainer, int(self.total_train_batches)))
        self._every = max(1, int(self.total_train_batches) // 100)
        self._bar.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar, a hundred times an epoch."""
        if self._bar is not None and (batch_idx + 1) % self._every == 0:
            self._bar.update(self._task, completed=self._mini_batches(trainer, batch_idx + 1))

    @staticmethod
    def _mini_batches(trainer: L.Trainer, steps: int) -> int:
        """Return the number of mini-batches in so many training steps."""
        batches = trainer.train_dataloader
        return min(batches.mini_batches, steps * batches.steps) if isinstance(batches, Batches) else steps

    def on_train_epoch_end(self, *_: Any) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Remove the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class SharedBuffers(Callback):
    """Has all processes judge the same network: what its layers count for themselves is the first process's."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send the buffers of the first process to the others."""
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)


class LayerTable(Callback):
    """Shows a module's layers before training: the parameters of each, and the shape of what it gives for one image.

    The shapes need the module's `example_input_array`.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the table."""
        if not trainer.is_global_zero:
            return
        with warnings.catch_warnings():  # about bytes in mixed precision, which the table doesn't show
            warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
            summary = ModelSummary(pl_module, max_depth=-1)
        example = pl_module.example_input_array is not None
        table = Table("layer", *(["gives"] if example else []), Column("parameters", justify="right"))
        names = summary.layer_names
        for name, kind, shape, count in zip(
            names, summary.layer_types, summary.out_sizes, summary.param_nums, strict=True
        ):
            is_leaf = not any(other.startswith(name + ".") for other in names)
            if is_leaf and not name.startswith("metrics.") and name != "loss":
                gives = ["×".join(map(str, shape[1:])) if isinstance(shape, list) else str(shape)] if example else []
                table.add_row(kind, *gives, f"{max(count, 0):,}" if count else "")
        table.add_section()
        table.add_row("all", *([""] if example else []), f"{summary.total_parameters:,}")
        show(table)
