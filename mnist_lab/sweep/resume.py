"""The verb `resume`: a sweep goes on where it was."""

from __future__ import annotations

import sys
from pathlib import Path

from mnist_lab.errors import UserError
from mnist_lab.sweep.study import load_asked

USAGE = "use: python -m mnist_lab resume outputs/sweeps/NAME [sweep.trials=N ...]"


def resume(words: list[str]) -> None:
    """Runs what is left of a sweep: trials that wait, and those that were running, from their last checkpoint.

    Args:
        words: the sweep's folder, then further overrides: `sweep.trials=40` adds trials, `sweep.accept_changes=true`
            goes on although code or configs have changed.

    Raises:
        UserError: it is no sweep's folder, another process is at work on it, or what it is made of has changed.
    """
    from mnist_lab.__main__ import train

    if not words or "=" in words[0] or words[0].startswith("-"):
        raise UserError(USAGE)
    folder = Path(words[0])
    asked = load_asked(folder)
    for word in words[1:]:
        if not word.startswith("sweep."):
            raise UserError(f"{word}: only sweep.* can be changed of a sweep that has begun\n{USAGE}")
    path = str(folder.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    train([sys.argv[0], *asked["argv"], *words[1:], f"hydra.sweep.dir='{path}'"], fresh=False)
