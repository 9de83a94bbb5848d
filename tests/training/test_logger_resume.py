"""Curves of a run that was killed and resumed are those of one that was not, whichever logger draws them."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import warm
from killing import OWN, WORDS
from lightning.pytorch.loggers import MLFlowLogger
from omegaconf import OmegaConf
from recorded import found
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lab import train
from mnist_lab.training.loggers import log_config, make_loggers, opened, versions_of

DRAWS = '''

class Draws(Callback):
    """Logs by epoch as a callback does, in both hooks."""

    def on_validation_epoch_end(self, trainer, module):
        module.log("val/f1", 1.0 + trainer.current_epoch)

    def on_train_epoch_end(self, trainer, module):
        module.log("own/epoch", 2.0 + trainer.current_epoch)


class DrawsSteps(Draws):
    """Logs each step, too."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.log("own/step", float(trainer.global_step))
'''
RECIPES = {
    "by step": [
        *("+callbacks.own._target_=own.DrawsSteps", "+trainer.log_every_n_steps=1", "checkpoint.every=4 steps"),
        "+callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor",
        *("+trainer.val_check_interval=0.5", "schedule=cosine"),
    ],
    "by epoch, to two loggers": ["+callbacks.own._target_=own.Draws", "logger=[csv,tensorboard]"],
}


def rows(run: Path) -> list[dict[str, str]]:
    """What a CSV logger has written, but for times."""
    (path,) = run.rglob("metrics.csv")
    with path.open() as file:
        return [{k: v for k, v in row.items() if v and "second" not in k} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_loggers_have_each_point_of_a_killed_run_once(recipe: str, tmp_path: Path) -> None:
    """One run is killed at each moment in turn."""
    (tmp_path / "own.py").write_text(OWN + DRAWS)
    words = [*WORDS, *RECIPES[recipe], "+callbacks.killed._target_=own.Killed"]
    assert warm.lab([*words, "hydra.run.dir=whole"], tmp_path).returncode == 0
    command = [*words, "hydra.run.dir=run"]
    for moment in ("on_train_batch_end 0", "on_train_epoch_start 1", "on_train_epoch_end 1", "on_train_end 3"):
        killed = warm.lab(command, tmp_path, environment={"KILLED": moment})
        assert killed.returncode == -9, killed
        command = ["resume", "run"]
    done = warm.lab(command, tmp_path)
    assert done.returncode == 0, done.stderr
    if recipe != "by step":
        assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert found(tmp_path / "run")["points"] == found(tmp_path / "whole")["points"]


def test_a_resumed_runs_points_count_though_it_began_in_the_same_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OmegaConf.create({"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "name": "", "version": ""})
    for process, step in ((9999, 0), (10001, 5)):  # the file's name holds both, and as text 10001 is before 9999
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        (logger,) = make_loggers(config, tmp_path, step)
        with opened(L.Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False), step):
            logger.log_metrics({"loss": float(process)}, step + 1)
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(point.step, point.value) for point in points] == [(1, 9999.0), (6, 10001.0)]


@pytest.mark.slow
def test_values_logged_by_a_callback_have_the_same_steps_as_ours(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN + DRAWS)
    for name, callback in (("fast", "Draws"), ("single steps", "DrawsSteps")):
        words = [*WORDS, f"+callbacks.own._target_=own.{callback}", "trainer.accumulate_grad_batches=3"]
        done = warm.lab([*words, f"hydra.run.dir='{name}'"], tmp_path)
        assert done.returncode == 0, done.stderr
        points: dict[str, list[Any]] = found(tmp_path / name)["points"]
        at = {tag: [step for step, _ in points[tag]] for tag in ("train/loss", "val/acc", "val/f1", "own/epoch")}
        assert set(map(tuple, at.values())) == {(3, 7, 11)}, "the last of four steps an epoch, from 0"
        assert set(points["epoch"]) == {(3, 0.0), (7, 1.0), (11, 2.0), (12, 3.0)}


@pytest.mark.slow
def test_each_run_in_one_process_is_a_wandb_run_of_its_own(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    words = [*WORDS, "trainer.max_epochs=1", "logger=none", "+logger._target_=lightning.pytorch.loggers.WandbLogger"]
    words += ["+logger.offline=true", "+logger.project=tests"]
    for name in ("one", "two"):
        train(*words, run_dir=tmp_path / name)
        assert wandb.run is None, "it is closed"
    done = warm.lab(["resume", "two", "trainer.max_epochs=2"], tmp_path)
    assert done.returncode == 0, done.stderr
    ids = {name: {path.name for path in (tmp_path / name).rglob("run-*.wandb")} for name in ("one", "two")}
    assert len(ids["one"]) == len(ids["two"]) == 1 and ids["one"] != ids["two"]
    assert len(list((tmp_path / "two").rglob("run-*.wandb"))) == 2, "of the run and of what was resumed"


def test_logger_run_names_that_could_be_paths_are_not_used() -> None:
    asked = ["version_1", 3, "../elsewhere", "/tmp/x", "..", None, {"a": 1}, "jo25c402", True]
    assert versions_of(asked) == ["version_1", 3, None, None, None, None, None, "jo25c402", True]
    assert versions_of("../x") == versions_of(None) == []


def test_mlflow_gets_no_options_that_resume_can_change(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(MLFlowLogger, "log_hyperparams", lambda logger, params: seen.update(params))
    trainer = {"max_epochs": 2, "max_steps": -1, "max_time": None, "devices": 1, "precision": "32-true"}
    config = {"seed": 3, "trainer": trainer, "data": {"root": "/data", "batch_size": 10}}
    log_config(MLFlowLogger.__new__(MLFlowLogger), config)
    assert seen == {"seed": 3, "trainer": {"precision": "32-true"}, "data": {"batch_size": 10}}
