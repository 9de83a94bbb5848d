"""A callback of one's own is called as Lightning says, and can stop or change a training."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy
import pytest
import torch
from conftest import QUICK
from lightning.pytorch.callbacks import Callback

from mnist_lab import UserError, train
from mnist_lab.result import Result

CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
seen: list[Any] = []


class Zero(Callback):
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for weight in pl_module.parameters():
            weight.data.zero_()


class State(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"best": numpy.float64(0.5)}


class NaN(Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            next(pl_module.parameters()).data.fill_(float("nan"))


class LastNaN(Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.current_epoch == 1 and trainer.is_last_batch:
            next(pl_module.parameters()).data.fill_(float("nan"))


class Metrics(Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.loss = float(outputs["loss"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seen.append(float(trainer.callback_metrics["val/acc"]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seen.extend((float(trainer.callback_metrics["train/loss"]), self.loss))


class Zeroed(Callback):
    def on_before_zero_grad(self, *_: Any) -> None:
        seen.append("zeroed")


class Tested(Callback):
    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        _, labels = batch
        seen.append(len(labels))


class Trained(Callback):
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        seen.append(batch[1].tolist())


def trained_with(name: str, tmp_path: Path, *words: str) -> Result:
    """Train in this process with a callback of this module, or of Lightning."""
    seen.clear()
    target = name if "." in name else f"{__name__}.{name}"
    return train(*QUICK, f"+callbacks.x._target_={target}", *words, run_dir=tmp_path / "run").result


def test_a_callback_sees_each_zeroing_of_the_gradients(tmp_path: Path) -> None:
    words = ["data.batch_size=30", "trainer.max_epochs=1", "trainer.accumulate_grad_batches=2"]
    trained_with("Zeroed", tmp_path, *words)
    assert seen == ["zeroed"] * 5


def test_a_callback_sees_each_mini_batch_of_the_test(tmp_path: Path) -> None:
    trained_with("Tested", tmp_path, "trainer.max_epochs=1", "data.eval_batch_size=400")
    assert seen == [400, 400, 200]


def test_weights_that_a_callback_changes_at_the_end_are_tested_and_kept(tmp_path: Path) -> None:
    assert trained_with("Zero", tmp_path, "trainer.max_epochs=1").test["loss"] == pytest.approx(math.log(10))
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not any(weights.any() for weights in saved.values())


@pytest.mark.slow
def test_a_model_checkpoint_of_ones_own_leaves_ours_as_they_are(tmp_path: Path) -> None:
    words = ["+callbacks.x.save_last=true", "optimizer.lr=0.5", "trainer.max_epochs=9"]
    found = [row["val/acc"] for row in trained_with(CHECKPOINT, tmp_path, *words).history]
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == found.index(max(found)) < 8, found


def test_a_callback_state_that_no_checkpoint_can_give_back_is_refused_at_the_first_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="the state_dict of a callback may have numbers, texts, tensors"):
        trained_with("State", tmp_path, "trainer.max_epochs=2")
    assert "epoch 2/2" not in capsys.readouterr().out


def test_weights_that_are_not_finite_stop_a_training_whose_loss_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in epoch 2 weights of layers\.1\.weight are infinite or not a number"):
        trained_with("LastNaN", tmp_path, "trainer.max_epochs=3")


def test_a_loss_that_is_not_a_number_stops_the_training_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in mini-batch 1 of epoch 2 the loss is nan.*last good .*last\.ckpt"):
        trained_with("NaN", tmp_path, "trainer.max_epochs=3")
    assert (tmp_path / "run/checkpoints/last.ckpt").exists() and not (tmp_path / "run/result.json").exists()


def test_overfit_batches_trains_on_the_same_mini_batches_in_each_epoch(tmp_path: Path) -> None:
    trained_with("Trained", tmp_path, "trainer.max_epochs=3", "data.batch_size=30", "+trainer.overfit_batches=2")
    assert len(seen) == 6 and seen[:2] == seen[2:4] == seen[4:] and seen[0] != seen[1]


@pytest.mark.slow
def test_a_callback_has_an_epochs_metrics_when_lightning_says_that_it_is_over(tmp_path: Path) -> None:
    result = trained_with("Metrics", tmp_path, "trainer.max_epochs=3", "data.batch_size=300")
    keys = ("val/acc", "train/loss", "train/loss")
    assert seen == pytest.approx([row[key] for row in result.history for key in keys]), "of one mini-batch an epoch"


def test_a_progress_bar_of_ones_own_takes_the_place_of_ours(tmp_path: Path) -> None:
    trained_with("lightning.pytorch.callbacks.RichProgressBar", tmp_path, "trainer.max_epochs=1")
