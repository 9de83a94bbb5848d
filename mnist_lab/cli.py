"""The verb `train`, with `-m` for several runs: Hydra's command line."""

from __future__ import annotations

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp

from mnist_lab.command import quoted
from mnist_lab.launch import launch
from mnist_lab.processes import is_helper_process


def train(words: list[str]) -> None:
    """Train and test what the words ask for: one run, or with `-m` several.

    Args:
        words: Hydra's command line: flags and overrides.

    Raises:
        UserError: what is asked for can't be done.
    """
    launch([*words, *(_aside() if is_helper_process() else ())])


def _aside() -> list[str]:
    """Return overrides that give a helper process an empty folder of its own: the run's is the first process's."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null"]
