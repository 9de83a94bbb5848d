"""Our own command as a contender, measured with everything that users have on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class EpochClock(Callback):
    """Record when epochs begin and the last one ends, and how long each validation takes.

    Args:
        path: the JSON file to write.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.moments: list[float] = []
        self.evaluations: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the start of an epoch."""
        self.moments.append(time.perf_counter())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the start of a validation."""
        self.evaluations.append(time.perf_counter())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the start of the validation by its duration in seconds."""
        self.evaluations[-1] = time.perf_counter() - self.evaluations[-1]

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the end of the last epoch, and write the file."""
        self.moments.append(time.perf_counter())
        epochs = [end - start for start, end in zip(self.moments, self.moments[1:], strict=False)]
        accuracy = float(trainer.callback_metrics["val/acc"])
        found: dict[str, Any] = {"epochs": epochs, "evaluations": self.evaluations, "acc": accuracy}
        self.path.write_text(json.dumps(found))
