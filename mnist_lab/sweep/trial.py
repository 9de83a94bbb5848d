"""One trial of a sweep, in the process that runs it: it is held, reported and recorded."""

from __future__ import annotations

import math
import os
import shutil
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna import TrialPruned
from rich import get_console

from mnist_lab.environment import cores
from mnist_lab.errors import UserError
from mnist_lab.files import disk_fault, folder_lock, read_text
from mnist_lab.result import Result
from mnist_lab.run_folder import parse_config
from mnist_lab.sweep.groups import changes, is_seed, matters
from mnist_lab.sweep.optuna_adapter import report_value, set_attr, set_state
from mnist_lab.sweep.study import (
    load_asked,
    open_study,
    pruner_of,
    trials_of,
)
from mnist_lab.training import History
from mnist_lab.training.ending import is_over

if TYPE_CHECKING:
    import optuna


class TrialReporter(Checkpoint):
    """Reports each epoch to the study, and ends a trial that the pruner gives up.

    It is a Checkpoint because Lightning calls those last, after the module has logged its epoch.

    Args:
        study: the study.
        number: the trial's number.
        objective: the metric to report.
        pruner: none, median or halving.
        patience: epochs before which no trial is ended.
    """

    def __init__(self, study: optuna.Study, number: int, objective: str, pruner: str, patience: int) -> None:
        self.study, self.number, self.objective = study, number, objective
        self.pruner = pruner_of(pruner, patience)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epoch.

        Raises:
            TrialPruned: the pruner ends the trial.
        """
        history = next(c for c in trainer.callbacks if isinstance(c, History))  # type: ignore[attr-defined]
        value = history.rows[-1].get(self.objective)
        trial = trials_of(self.study)[self.number]
        epoch = trainer.current_epoch + 1
        set_attr(self.study, trial, "epoch", epoch)
        if value is None or not math.isfinite(value):
            return
        report_value(self.study, trial, epoch, value)
        last = is_over(trainer, epoch)
        # One of several processes can't end alone: Lightning would kill the program with it.
        if not last and trainer.world_size == 1 and self.pruner.prune(self.study, trials_of(self.study)[self.number]):
            raise TrialPruned(f"after epoch {epoch}")


Run = Callable[[list[L.Callback], list[str]], Result | None]


def run_trial(run_dir: Path, run: Run) -> None:
    """Run the trial of this folder and record how it ended, unless it is finished or another process runs it.

    Args:
        run_dir: the trial's folder, named after its number, in the sweep's folder.
        run: does the run itself, given further callbacks and remarks for its result.
    """
    folder, number = run_dir.parent, int(run_dir.name)
    study, asked = open_study(folder), load_asked(folder)
    options = asked["options"]
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(run_dir, f"trial {number}"))
        except UserError:
            return  # by another process, which will record it
        trial = trials_of(study)[number]
        limit = options["max_failures"]
        failures = sum(t.state.name == "FAIL" for t in trials_of(study))
        if trial.state.is_finished() or (limit is not None and failures >= limit):
            return
        set_state(study, trial, "RUNNING")
        if asked["side_by_side"] > 1:
            torch.set_num_threads(max(1, cores() // asked["side_by_side"]))
            take_gpu(folder)
        quiet, get_console().quiet = get_console().quiet, True  # a sweep shows one table; run.log has everything
        try:
            _attempts(study, number, asked, run)
        finally:
            get_console().quiet = quiet


def discard_stale_trial(run_dir: Path, cfg: DictConfig) -> None:
    """Remove what a trial has learned with another config than it has now.

    Args:
        run_dir: the trial's folder.
        cfg: the config that it has now, resolved.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    try:
        before = parse_config(read_text(path))
    except (yaml.YAMLError, OmegaConfBaseException, UserError, ValueError, OSError):
        before = {}
    now: Any = OmegaConf.to_container(cfg)
    if any(matters(key) or is_seed(key) for key in changes(before, now)):
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        (run_dir / "history.csv").unlink(missing_ok=True)


@cache
def take_gpu(folder: Path) -> FileLock | None:
    """Reserve one GPU for this process and hide the others from it, as long as there are enough.

    Args:
        folder: the sweep's folder.

    Returns:
        The lock that holds the GPU for as long as the process lives; None if no GPU is free.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for n in range(torch.cuda.device_count()):
        lock = FileLock(folder / f".gpu{n}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = names[n] if n < len(names) and names[n] else str(n)
        return lock
    return None


def _attempts(
    study: optuna.Study,
    number: int,
    asked: dict[str, Any],
    run: Run,
) -> None:
    options, objectives = asked["options"], asked["objectives"]
    chosen = [key for key, *_ in asked["axes"] if matters(key)]
    of_test = ("test/", "val/") if asked["config"].get("data", {}).get("val") == "test" else ("test/",)
    looked = [name for name in objectives if name.startswith(of_test)]
    remarks = []
    if chosen and looked:
        remarks = [
            f"Its sweep judges {', '.join(chosen)} by {looked[0]}, of the test set: whoever takes the best of it has "
            "chosen by that set, and the test result is no longer a fair one. sweep.objective=val/acc data.val=random "
            "chooses without it."
        ]
    while True:
        trial = trials_of(study)[number]
        attempt = trial.user_attrs.get("failures", 0)
        try:
            reporter = TrialReporter(study, number, objectives[0], options["pruner"], options["patience"])
            result = run([reporter], remarks)
            if result is None:
                return
            values = [objective_of(result, name) for name in objectives]
            set_attr(study, trial, "seconds", sum(result.seconds.values()))
            set_attr(study, trial, "parameters", result.model["parameters"])
            set_state(study, trial, "COMPLETE", values)
            return
        except TrialPruned as pruned:
            set_attr(study, trial, "pruned", str(pruned))
            set_state(study, trial, "PRUNED")
            return
        except (KeyboardInterrupt, SystemExit) as stopped:  # the latter of our checkpoints
            set_state(study, trial, "WAITING")  # to go on in its turn: one that is found running was killed
            status = stopped.code if isinstance(stopped, SystemExit) else 130
            raise KeyboardInterrupt(143 if status == 143 else 130) from stopped
        except Exception as error:
            if not isinstance(error, UserError) and disk_fault(error) is not None:
                raise  # not the trial's fault: it can be resumed when the disk works
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            set_attr(study, trial, "error", f"{kind}{error}"[:2000])
            set_attr(study, trial, "traceback", traceback.format_exc()[-8000:])
            set_attr(study, trial, "failures", attempt + 1)
            if attempt >= options["retries"] or isinstance(error, UserError):
                set_state(study, trial, "FAIL")
                return


def objective_of(result: Result, name: str) -> float:
    """Return a result's value of an objective: a metric of the last epoch or of the test, `parameters` or `seconds`.

    Raises:
        ValueError: it was not measured, or is not a finite number.
    """
    value = result.value(name)
    if value is None:
        raise ValueError(f"{name} is not a finite number: the training diverged, or had no such data")
    return value
