"""Small sweeps, and what the tests of sweeps ask about them."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from conftest import QUICK

from mnist_lab.sweep.study import open_study

SMALL = [*QUICK, "data.batch_size=30", "trainer.max_epochs=2"]
STOPPING = """
import os, signal
from lightning.pytorch.callbacks import Callback


class Stop(Callback):
    def __init__(self, seed=1):
        self.seed = seed

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and self.seed == 1 and "STOP" in os.environ:
            os.kill(os.getpid(), int(os.environ["STOP"]))
"""
STOP = "+callbacks.stop._target_=own.Stop"


def states(folder: Path) -> dict[int, str]:
    """Return the state of each trial of a sweep."""
    open_study.cache_clear()
    return {trial.number: trial.state.name for trial in open_study(folder).get_trials()}


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def alive(folder: Path) -> list[str]:
    """The processes at work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "cwd").resolve(strict=True) == folder:
                found.append((process / "cmdline").read_text())
    return found
