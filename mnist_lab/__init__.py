"""Image classifiers trained, tested and logged with one line: Hydra composes, Lightning trains.

From Python, as in a notebook: `compose` a config, `train` a network, `load_run` to ask a trained one. The words are
those of the command line; mistakes in them raise `UserError`.
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # The current folder comes last: a yaml.py in it, downloaded with data, say, is not the one that is imported here.
    sys.path.append(sys.path.pop(0))

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_lab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mnist_lab.trained import TrainedRun

__version__ = "0.1.0"
__all__ = ["UserError", "compose", "load_run", "train"]


def compose(*overrides: str) -> DictConfig:
    """Compose, check and resolve the config of a run.

    Args:
        overrides: such as `"model=cnn", "optimizer.lr=0.01"`.

    Raises:
        UserError: something in it is unknown, malformed or not allowed.
    """
    from mnist_lab.composing import compose_config, run_config

    return run_config(compose_config(list(overrides)))


def train(*overrides: str, run_dir: str | Path | None = None) -> TrainedRun:
    """Train and test a network, and leave a run's folder behind as the command does.

    Args:
        overrides: as for `compose`.
        run_dir: the run's folder, new or empty; None: what hydra.run.dir says, a new one below outputs/.

    Returns:
        The trained network; its `result` has the numbers.

    Raises:
        UserError: what is asked for can't be done. Nothing is left in `run_dir` then.
        KeyboardInterrupt: by Ctrl-C. What was trained is kept; `python -m mnist_lab resume RUN_DIR` goes on with it.
    """
    import logging
    import warnings

    import torch
    from lightning.pytorch.utilities.seed import isolate_rng

    from mnist_lab.command import check_kind
    from mnist_lab.composing import compose_config, run_config
    from mnist_lab.folders import check_folder, run_folder
    from mnist_lab.run import LIGHTNING_LOGS, run
    from mnist_lab.user_code import errors_in_one_line
    from mnist_lab.words import path_of

    check_kind(overrides, multirun=False)
    composed = compose_config(list(overrides))
    if composed.trainer.get("enable_checkpointing") is False:
        raise UserError("trainer.enable_checkpointing=false: train() returns the network of the run's checkpoint")
    folder = path_of(run_dir or composed.hydra.run.dir).absolute()
    environment = dict(os.environ)
    levels = {log: log.level for log in map(logging.getLogger, LIGHTNING_LOGS)}
    # A run seeds all random numbers of the process, and the caller's go on as if there had been none.
    seeds = isolate_rng(include_cuda=torch.cuda.is_initialized())
    until = check_folder("run_dir", str(folder), fresh=True)
    told = errors_in_one_line(composed, folder)
    with run_folder(folder, until), seeds, warnings.catch_warnings(), told:
        try:
            run(run_config(composed), folder, list(overrides), command=list(overrides), report=composed.report)
        except SystemExit as stopped:
            if stopped.code != 130:
                raise
            raise KeyboardInterrupt from stopped
        finally:
            for log, level in levels.items():
                log.setLevel(level)
            for key in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # where Lightning keeps the seed
                os.environ.pop(key, None)
            os.environ |= environment
    return load_run(folder)


def load_run(
    run_dir: str | Path, checkpoint: str | None = None, overrides: Sequence[str] = (), device: str | None = None
) -> TrainedRun:
    """Load the network of a run from its folder, as `mnist_lab.trained.load_run`, which lists arguments and errors."""
    from mnist_lab import trained

    return trained.load_run(run_dir, checkpoint, overrides, device)
