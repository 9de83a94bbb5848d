"""A run's loggers: opened once, continued where a resumed run goes on, closed however the run ends."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from mnist_lab.errors import UserError, brief
from mnist_lab.targets import logger_sections, parameters_of


def make_loggers(
    described: DictConfig, run_dir: Path, step: int, versions: Sequence[str | int | None] = ()
) -> list[Logger]:
    """Make the loggers that a config describes.

    Args:
        described: its section `logger`.
        run_dir: the run's folder, where they keep their files: a relative `save_dir` is a folder in it.
        step: of the optimiser, from which on the run trains: what TensorBoard has from there on is forgotten.
        versions: what each logger called the run before it was stopped, which it continues; none: a new run.

    Raises:
        UserError: a class isn't there, is no logger, or doesn't take what its section gives it.
    """
    beside = [str(name) for name, section in described.items() if OmegaConf.is_dict(section) and "_target_" in section]
    if "_target_" in described and any(str(described[name]._target_).endswith("Logger") for name in beside):
        raise UserError(
            f"logger names a class beside {beside[0]}: each of several has a section, +logger.NAME._target_="
        )
    known = zip(logger_sections(described).items(), chain(versions, repeat(None)), strict=False)
    return [_make(name, section, run_dir, step, version) for (name, section), version in known]


def _make(name: str, described: DictConfig, run_dir: Path, step: int, version: str | int | None) -> Logger:
    try:
        kind = get_class(described._target_)
        taken = parameters_of(kind)
        added: dict[str, Any] = {}
        if "save_dir" in taken:
            added["save_dir"] = run_dir / (described.get("save_dir") or "")
        if version is not None and "run_id" in taken:  # MLflow's
            added["run_id"] = version
        elif version is not None and "version" in taken and described.get("version") is None:
            added["version"] = version
        if issubclass(kind, TensorBoardLogger):
            added["purge_step"] = step
        if issubclass(kind, MLFlowLogger) and described.get("tracking_uri") is None:
            added |= {"tracking_uri": f"sqlite:///{run_dir}/mlflow.db", "artifact_location": str(run_dir / "mlflow")}
        logger = instantiate(described, **added, _convert_="all")
    except (InstantiationException, ImportError) as error:
        raise UserError(f"{name}: {brief(error.__cause__ or error)}") from error
    if not isinstance(logger, Logger):
        raise UserError(f"{name}: {described._target_} is no Lightning logger, nor a class made of it")
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
    with ExitStack() as stack:
        for logger in loggers:
            _open(logger, step)
            stack.push(partial(_close, logger))
        yield [logger.version for logger in loggers]


def _open(logger: Logger, step: int) -> None:
    kept = _rows_before(Path(logger.log_dir) / "metrics.csv", step) if isinstance(logger, CSVLogger) else []
    if isinstance(logger, TensorBoardLogger):
        _wait_for_next_second(Path(logger.log_dir))
    getattr(logger, "experiment", None)  # which some make when they are first asked for it, and some don't have
    for row in kept:
        logger.log_metrics(row, int(row["step"]))  # type: ignore[arg-type]
    if kept:
        logger.save()


def _close(logger: Logger, raised: type[BaseException] | None, *_: object) -> None:
    logger.finalize("success" if raised is None else "failed")
    finish = getattr(getattr(logger, "experiment", None), "finish", None)
    if callable(finish):
        finish(exit_code=0 if raised is None else 1)


def tensorboard_of(trainer: L.Trainer) -> TensorBoardLogger | None:
    """Return the run's TensorBoard logger, the first if it has several."""
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


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
