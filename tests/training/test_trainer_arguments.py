"""Arguments of Lightning's Trainer have Lightning's meaning, or are refused in one line."""

import csv
import inspect
from pathlib import Path

import lightning as L
import pytest

from mnist_lab import UserError, train
from mnist_lab.keys import WITHOUT_EFFECT
from mnist_lab.rules import INSTEAD

WORDS = ["model=mlp", "model.hidden=[8]", "data=mnist_5k", "data.train_size=100", "data.batch_size=20"]
WORDS += ["data.val=random", "data.val_size=100", "report=false", "trainer=cpu", "trainer.max_epochs=2"]
NOTHING = ["logger=none"]
TAKEN = {
    **{"accelerator": "cpu", "strategy": "auto", "devices": "1", "num_nodes": "1", "precision": "32-true"},
    **{"fast_dev_run": "true", "max_epochs": "2", "min_epochs": "1", "max_steps": "7", "min_steps": "3"},
    **{"max_time": "{hours: 1}", "limit_train_batches": "3", "limit_val_batches": "1", "limit_test_batches": "2"},
    **{"overfit_batches": "1", "val_check_interval": "2", "check_val_every_n_epoch": "2", "num_sanity_val_steps": "1"},
    **{"log_every_n_steps": "2", "enable_progress_bar": "false", "enable_model_summary": "false"},
    **{"accumulate_grad_batches": "2", "gradient_clip_val": "1", "gradient_clip_algorithm": "value"},
    **{"deterministic": "warn", "benchmark": "true", "inference_mode": "false", "profiler": "simple"},
    **{"detect_anomaly": "true", "sync_batchnorm": "true"},
    "plugins": "[{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}]",
}
REFUSED = {*WITHOUT_EFFECT, *INSTEAD}


def test_each_is_known() -> None:
    assert set(inspect.signature(L.Trainer.__init__).parameters) - {"self"} == {*TAKEN, *REFUSED}


@pytest.mark.parametrize(("name", "value"), TAKEN.items())
def test_it_is_taken(name: str, value: str, tmp_path: Path) -> None:
    run = train(*WORDS, *NOTHING, f"++trainer.{name}={value}", run_dir=tmp_path / "run")
    assert run.result.history


def test_a_bare_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="always keeps checkpoints"):
        train(*WORDS, *NOTHING, "+trainer.barebones=true", run_dir=tmp_path / "run")


@pytest.mark.parametrize("module", ["classifier", "textbook"])
def test_curves_by_step_are_drawn_on_request(module: str, tmp_path: Path) -> None:
    for number, words in enumerate([["+trainer.log_every_n_steps=2"], []]):
        parts = f"save_dir: {tmp_path}, name: c, version: v{number}"
        logger = f"logger={{_target_: lightning.pytorch.loggers.CSVLogger, {parts}}}"
        train(*WORDS, logger, f"module={module}", *words, run_dir=tmp_path / f"run{number}")
        rows = list(csv.DictReader((tmp_path / f"c/v{number}/metrics.csv").open()))
        steps = [int(row["step"]) for row in rows if row.get("train/loss_step")]
        assert steps == ([1, 3, 5, 7, 9] if words else [])
