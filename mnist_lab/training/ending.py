"""The reason why a training ended: a limit, or a callback that asked for it."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer


class ValidatedEnd(Callback):
    """Ends a training at `max_steps` as any other: Lightning would end it there without validating what it came to."""

    takes_chunks = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop after this step, if it is the last."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True


def is_over(trainer: L.Trainer, epochs: int) -> bool:
    """Return whether Lightning ends the training now.

    Args:
        trainer: during its `fit`.
        epochs: how many have been trained to their end.
    """
    if _reached(epochs, trainer.max_epochs) or _reached(trainer.global_step, trainer.max_steps):
        return True
    enough = epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return trainer.should_stop and enough


def reason(trainer: L.Trainer, epochs: int) -> str:
    """Return the name of what ended a training.

    Args:
        trainer: after its `fit`.
        epochs: how many have been trained, a last one that was cut short among them.

    Returns:
        "max_steps", "max_epochs", "max_time", "early_stopping", or "callback" where any other has set
        `trainer.should_stop`.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if _reached(trainer.global_step, trainer.max_steps):
        return "max_steps"
    timers = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
    if any(left is not None and left <= 0 for left in timers):
        return "max_time"
    if any(isinstance(callback, EarlyStopping) and callback.stopping_reason_message for callback in callbacks):
        return "early_stopping"
    return "max_epochs" if _reached(epochs, trainer.max_epochs) else "callback"


def _reached(done: int, limit: int | None) -> bool:
    return limit is not None and limit != -1 and done >= limit
