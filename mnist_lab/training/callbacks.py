"""What happens beside the training: a line and a row an epoch, a progress bar, a table of layers."""

from __future__ import annotations

import csv
import io
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from mnist_lab.data import Batches
from mnist_lab.files import write_whole
from mnist_lab.terminal import show
from mnist_lab.training.classifier import Classifier

log = logging.getLogger(__name__)

COLUMNS = ("epoch", "train/loss", "train/acc", "val/loss", "val/acc", "lr", "seconds")


class History(Checkpoint):
    """One line on the terminal and one row of history.csv for each epoch.

    A Checkpoint, because Lightning calls those last: when the module has logged its epoch.

    Args:
        path: the CSV file; its columns are epoch (from 1), train/loss, train/acc, val/loss, val/acc, lr (of the last
            step), seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float | int | None]] = []
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the epoch's clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Records the epoch; Lightning has validated by now."""
        assert isinstance(pl_module, Classifier)
        row: dict[str, float | int | None] = {
            "epoch": trainer.current_epoch + 1,
            **{key: pl_module.metrics.get(key) for key in COLUMNS[1:-1]},
            "seconds": round(time.perf_counter() - self._start, 3),
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            log.info(self._line(row, trainer.max_epochs or 0))
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_whole(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """The rows, for the checkpoint, and how long the epoch has taken so far."""
        return {"rows": self.rows, "elapsed": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the rows of the checkpoint."""
        self.rows = state_dict["rows"]
        self._start = time.perf_counter() - state_dict["elapsed"]

    @staticmethod
    def _line(row: dict[str, Any], epochs: int) -> str:
        words = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}" if epochs > 0 else f"epoch {row['epoch']}"]
        for stage in ("train", "val"):
            if row[f"{stage}/loss"] is not None:
                words.append(f"{stage} loss {row[f'{stage}/loss']:.4f}  acc {row[f'{stage}/acc']:7.2%}")
        return "   ".join([*words, f"{row['seconds']:.1f} s"])


class EpochProgress(ProgressBar):
    """A bar that fills within each epoch and leaves nothing behind; `History` writes what stays."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def disable(self) -> None:
        """Called by Lightning in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Shows the bar again."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Opens the epoch's bar."""
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
        """Moves the bar, a hundred times an epoch."""
        if self._bar is not None and (batch_idx + 1) % self._every == 0:
            self._bar.update(self._task, completed=self._mini_batches(trainer, batch_idx + 1))

    @staticmethod
    def _mini_batches(trainer: L.Trainer, steps: int) -> int:
        """How many mini-batches are in that many training steps."""
        batches = trainer.train_dataloader
        return min(batches.mini_batches, steps * batches.steps) if isinstance(batches, Batches) else steps

    def on_train_epoch_end(self, *_: Any) -> None:
        """Takes the bar away."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Leaves the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LayerTable(Callback):
    """The network's layers with the shape of what each gives for one image, and its parameters, before training."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the table."""
        if not trainer.is_global_zero:
            return
        with warnings.catch_warnings():  # about bytes in mixed precision, which the table doesn't show
            warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
            summary = ModelSummary(pl_module, max_depth=-1)
        table = Table("layer", "gives", Column("parameters", justify="right"))
        names = summary.layer_names
        for name, kind, shape, count in zip(
            names, summary.layer_types, summary.out_sizes, summary.param_nums, strict=True
        ):
            is_leaf = not any(other.startswith(name + ".") for other in names)
            if is_leaf and name.startswith("net"):
                gives = "×".join(map(str, shape[1:])) if isinstance(shape, list) else str(shape)
                table.add_row(kind, gives, f"{max(count, 0):,}" if count else "")
        table.add_section()
        table.add_row("all", "", f"{summary.total_parameters:,}")
        show(table)
