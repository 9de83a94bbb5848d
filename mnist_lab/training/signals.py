"""Signals that tell a run to stop: noted while it trains, so that it stops after a step with nothing lost."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

from mnist_lab.processes import is_helper_process
from mnist_lab.terminal import to_go_on

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""Ctrl-C, what `kill` and cluster schedulers send to end a job, and what SLURM's `--signal=USR1@60` announces it by,
which Windows hasn't."""


class StopSignals:
    """Handlers for SIGNALS while a run trains or tests.

    A second signal, more than a second after the first, ends the program at once: terminals, torchrun and SLURM may all
    pass on the first.

    Args:
        run_dir: the run's folder, for the command to go on.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._received, self._received_at = 0, 0.0
        self._handlers: dict[int, Any] = {}

    def received(self, trainer: L.Trainer) -> int:
        """Return the number of a signal that one of the run's processes has received; 0: none."""
        if trainer.world_size == 1:
            return self._received
        signals = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(signals, reduce_op="max"))

    def note_while_training(self) -> None:
        """Note signals from now on."""
        self._install(self._note)

    def end_the_test(self) -> None:
        """Have signals end the program from now on: during the test there is nothing to save."""
        self._install(self._leave_test)

    def restore_handlers(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _install(self, handler: Callable[[int, FrameType | None], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, handler) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at > 1 and not is_helper_process():
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)

    def _leave_test(self, number: int, frame: FrameType | None) -> None:
        self.restore_handlers()
        if not is_helper_process():
            unfinished = not (self.run_dir / "result.json").exists()
            how = f" To go on: {to_go_on(self.run_dir)}" if unfinished else ""
            log.warning(f"stopped by {name_of(number)} in the test.{how}")
        raise SystemExit(128 + number)


def name_of(number: int) -> str:
    """Return a signal's name for the user."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
