"""Arguments of Lightning's Trainer have Lightning's meaning, or are refused in one line."""

import csv
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import Command
from recorded import found_by_test
from some import some

from mnist_lab import UserError, compose, train
from mnist_lab.keys import IN_BASE, OF_TRAINER, SET_ELSEWHERE, WITHOUT_EFFECT
from mnist_lab.result import Result
from mnist_lab.trained import TrainedRun

WORDS = ["model=mlp", "model.hidden=[8]", "data=mnist_5k", "data.train_size=100", "data.batch_size=20"]
WORDS += ["data.val=random", "data.val_size=100", "report=false", "trainer=cpu", "trainer.max_epochs=2"]
NOTHING = ["logger=none"]

OFTEN = ("accelerator", "devices", "precision", "fast_dev_run", "max_epochs", "max_steps", "limit_train_batches")
"""Arguments that the default test run includes."""


def steps(count: int) -> Callable[[TrainedRun], bool]:
    """Five steps an epoch are ten in all, where nothing else is asked for."""
    return lambda run: run.result.ended["steps"] == count


def validated(*epochs: int) -> Callable[[TrainedRun], bool]:
    return lambda run: [row["epoch"] for row in run.result.history if row["val/loss"] is not None] == list(epochs)


def same_numbers(run: TrainedRun) -> bool:
    return run.result.test == found_by_test(*WORDS, *NOTHING)


def other_numbers(run: TrainedRun) -> bool:
    return not same_numbers(run) and steps(10)(run)


TAKEN: dict[str, tuple[str, Callable[[TrainedRun], bool]]] = {
    "accelerator": ("cpu", lambda run: run.result.machine["accelerator"] == "cpu"),
    "strategy": ("auto", same_numbers),
    "devices": ("1", lambda run: run.result.machine["processes"] == 1),
    "num_nodes": ("1", same_numbers),
    "precision": ("64-true", lambda run: run.result.machine["precision"] == "64-true"),
    "fast_dev_run": ("true", steps(1)),
    "max_epochs": ("3", steps(15)),
    "min_epochs": ("2", steps(10)),
    "max_steps": ("7", steps(7)),
    "min_steps": ("3", steps(10)),
    "max_time": ("{microseconds: 1}", steps(1)),
    "limit_train_batches": ("3", steps(6)),
    "limit_val_batches": ("1", validated(1, 2)),
    "limit_test_batches": ("1", lambda run: run.result.test["n"] < 1000),
    "overfit_batches": ("1", steps(2)),
    "val_check_interval": ("2", validated(1, 2)),
    "check_val_every_n_epoch": ("2", validated(2)),
    "num_sanity_val_steps": ("1", same_numbers),
    "log_every_n_steps": ("2", same_numbers),
    "enable_checkpointing": ("true", lambda run: (run.run_dir / "checkpoints/last.ckpt").exists()),
    "enable_progress_bar": ("false", same_numbers),
    "enable_model_summary": ("false", same_numbers),
    "accumulate_grad_batches": ("2", steps(6)),
    "gradient_clip_val": ("0.001", other_numbers),
    "gradient_clip_algorithm": ("value", same_numbers),
    "deterministic": ("warn", lambda run: torch.is_deterministic_algorithms_warn_only_enabled()),
    "benchmark": ("true", lambda run: torch.backends.cudnn.benchmark),
    "inference_mode": ("false", same_numbers),
    "profiler": (
        "simple",
        lambda run: any("run_training_epoch" in p.read_text() for p in run.run_dir.glob("*profile*")),
    ),
    "detect_anomaly": ("true", same_numbers),
    "sync_batchnorm": ("true", same_numbers),
    "reload_dataloaders_every_n_epochs": ("1", same_numbers),
    "enable_autolog_hparams": ("false", same_numbers),
    "plugins": ("[{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}]", same_numbers),
}
REFUSED = {*WITHOUT_EFFECT, *SET_ELSEWHERE}


def test_each_argument_is_either_taken_or_refused() -> None:
    assert set(inspect.signature(L.Trainer.__init__).parameters) - {"self"} == {*TAKEN, *REFUSED}
    assert {*TAKEN} == {*OF_TRAINER, *IN_BASE}
    assert {*compose("model=mlp").trainer} == {*IN_BASE, "_target_"}


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_an_argument_is_set_with_or_without_a_plus_sign(sign: str) -> None:
    cfg = compose("model=mlp", f"{sign}trainer.min_epochs=2", f"{sign}trainer.max_epochs=3")
    assert (cfg.trainer.min_epochs, cfg.trainer.max_epochs) == (2, 3)


@pytest.mark.parametrize("word", ["trainer.min_epoch=2", "+trainer.min_epoch=2", "+trainer.track_grad_norm=2"])
def test_an_argument_that_lightning_lacks_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"mean (trainer\.)?min_epochs|has no such argument"):
        compose("model=mlp", word)


@pytest.mark.parametrize("name", some(TAKEN, lambda name: name in OFTEN))
def test_an_argument_has_lightnings_meaning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    value, holds = TAKEN[name]
    try:
        assert holds(train(*WORDS, *NOTHING, f"trainer.{name}={value}", run_dir=tmp_path / "run"))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("words", "ended"), [([], 5), (["trainer.min_epochs=2"], 10), (["trainer.min_steps=8"], 10)])
def test_a_minimum_holds_against_early_stopping(words: list[str], ended: int, tmp_path: Path) -> None:
    at_once = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, stopping_threshold: 100}"
    words = [f"+callbacks.it={at_once}", "trainer.max_epochs=3", *words]
    assert steps(ended)(train(*WORDS, *NOTHING, *words, run_dir=tmp_path / "run"))


@pytest.mark.slow
def test_without_a_model_summary_no_layers_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ("true", "false"):
        train(*WORDS, *NOTHING, f"trainer.enable_model_summary={asked}", run_dir=tmp_path / asked)
        assert ("Flatten" in capsys.readouterr().out) == (asked == "true")


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_an_argument_without_effect_is_refused_with_the_reason(name: str) -> None:
    value = {"use_distributed_sampler": "true", "barebones": "true"}.get(name, "1")
    with pytest.raises(UserError, match=f"trainer.{name}=.* has no effect here"):
        compose(*WORDS, f"+trainer.{name}={value}")


@pytest.mark.slow
def test_without_checkpointing_a_run_has_its_result_and_report_and_no_weights(lab: Command, tmp_path: Path) -> None:
    done = lab(*WORDS, "report=true", "+trainer.enable_checkpointing=false", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert Result.load(tmp_path / "run").ended["epochs"] == 2
    assert "kept no weights" in (tmp_path / "run/report.html").read_text()
    assert not list(tmp_path.rglob("*.ckpt"))
    assert "there is no such checkpoint" in lab("test", "run=run").stderr
    with pytest.raises(UserError, match="best needs checkpoints"):
        compose(*WORDS, "+trainer.enable_checkpointing=false", "test_checkpoint=best")
    with pytest.raises(UserError, match="returns the network"):
        train(*WORDS, "+trainer.enable_checkpointing=false", run_dir=tmp_path / "other")


@pytest.mark.slow
def test_loggers_get_no_config_without_autolog_hparams(tmp_path: Path) -> None:
    for asked in ("true", "false"):
        train(*WORDS, "logger=[tensorboard,csv]", f"+trainer.enable_autolog_hparams={asked}", run_dir=tmp_path / asked)
    assert list((tmp_path / "true").rglob("*.hparams"))
    assert not list((tmp_path / "false").rglob("*.hparams"))
    hparams = [path.read_text() for path in (tmp_path / "false").rglob("hparams.yaml")]
    assert not any("batch_size" in text for text in hparams)
    assert json.loads((tmp_path / "false/run.json").read_text())["loggers"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["classifier", "textbook"])
def test_curves_by_step_are_drawn_on_request(module: str, tmp_path: Path) -> None:
    for number, words in enumerate([["+trainer.log_every_n_steps=2"], []]):
        parts = f"save_dir: {tmp_path}, name: c, version: v{number}"
        logger = f"logger={{_target_: lightning.pytorch.loggers.CSVLogger, {parts}}}"
        train(*WORDS, logger, f"module={module}", *words, run_dir=tmp_path / f"run{number}")
        rows = list(csv.DictReader((tmp_path / f"c/v{number}/metrics.csv").open()))
        found = [int(row["step"]) for row in rows if row.get("train/loss_step")]
        assert found == ([1, 3, 5, 7, 9] if words else [])
