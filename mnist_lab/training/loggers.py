"""A run's loggers: opened once, continued where a resumed run goes on, closed however the run ends."""

from __future__ import annotations

import csv
import inspect
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from omegaconf import DictConfig

from mnist_lab.errors import UserError


def make_logger(described: DictConfig, run_dir: Path, step: int, version: str | int | None) -> Logger | None:
    """Make the logger that a config describes.

    Args:
        described: its section of the config; empty: no logger.
        run_dir: the run's folder, where it keeps its files.
        step: of the optimiser, from which on the run trains: what TensorBoard has from there on is forgotten.
        version: what the logger called the run before it was stopped, which it continues; None: a new run.

    Raises:
        UserError: the class isn't there, or doesn't take what the section gives it.
    """
    if not described:
        return None
    try:
        taken = inspect.signature(get_class(described._target_)).parameters
        again: dict[str, Any] = {}
        if version is not None and "run_id" in taken:  # MLflow's
            again = {"run_id": version}
        elif version is not None and "version" in taken and described.get("version") is None:
            again = {"version": version}
        if issubclass(get_class(described._target_), TensorBoardLogger):
            again["purge_step"] = step
        logger: Logger = instantiate(described, save_dir=run_dir, **again)
    except InstantiationException as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"logger: {cause}") from error
    return logger


def versions_of(asked: Any) -> list[str | int | None]:
    """Return the loggers' names for a run as run.json has them, without those that could be a path elsewhere."""
    listed = asked if isinstance(asked, list) else []
    return [
        item if isinstance(item, int) or (isinstance(item, str) and re.fullmatch(r"\w[\w.-]*", item)) else None
        for item in listed
    ]


@contextmanager
def opened(trainer: L.Trainer, step: int) -> Iterator[list[str | int | None]]:
    """Open a run's loggers in its first process, and close them however the run ends.

    Of a CSV file the rows before `step` are kept, which Lightning would delete. Runs that would go on in this process,
    as those of Weights & Biases, are ended.

    Args:
        trainer: whose loggers they are.
        step: of the optimiser, from which on the run trains.

    Yields:
        What each logger calls the run: a version, or the id of a run on a server.
    """
    loggers = trainer.loggers if trainer.is_global_zero else []
    for logger in loggers:
        kept = _rows_before(Path(logger.log_dir) / "metrics.csv", step) if isinstance(logger, CSVLogger) else []
        if isinstance(logger, TensorBoardLogger):
            _wait_for_next_second(Path(logger.log_dir))
        getattr(logger, "experiment", None)  # which some make when they are first asked for it, and some don't have
        for row in kept:
            logger.log_metrics(row, int(row["step"]))  # type: ignore[arg-type]
        if kept:
            logger.save()
    succeeded = False
    try:
        yield [logger.version for logger in loggers]
        succeeded = True
    finally:
        for logger in loggers:
            logger.finalize("success" if succeeded else "failed")
            finish = getattr(getattr(logger, "experiment", None), "finish", None)
            if callable(finish):
                finish(exit_code=0 if succeeded else 1)


def log_config(logger: Logger, config: dict[str, Any]) -> None:
    """Give a logger the run's config; MLflow without the options that `resume` can change, which it would refuse."""
    if isinstance(logger, MLFlowLogger):
        trainer = {key: value for key, value in config["trainer"].items() if key != "devices" and "max_" not in key}
        data = {key: value for key, value in config["data"].items() if key != "root"}
        config = config | {"trainer": trainer, "data": data}
    logger.log_hyperparams(config)


def _wait_for_next_second(folder: Path) -> None:
    """Wait, for at most one second, until a new event file sorts after those in `folder`.

    TensorBoard reads event files in the order of their names, which begin with the second in which they were opened.
    """
    names = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.glob("events.out.tfevents.*")]
    last = max((int(name[1]) for name in names if name), default=0)
    time.sleep(min(max(last + 1 - time.time(), 0), 1))


def _rows_before(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]
    return [row for row in rows if int(row["step"]) < step]
