"""Training counts loss and accuracy exactly, clips, accumulates, stops early and tests the best weights."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import QUICK, Command, in_memory, result_in
from hydra.utils import instantiate
from torch import nn

from mnist_lab import UserError, load_run, train
from mnist_lab.composing import compose_config, run_config
from mnist_lab.data import EpochOrder, ImageDataModule, mnist_5k
from mnist_lab.models import MLP
from mnist_lab.result import Result
from mnist_lab.training import Classifier


@pytest.mark.slow
def test_accumulated_mini_batches_are_one_larger_mini_batch(tmp_path: Path) -> None:
    """In the loss, in the weights, and in the steps that the schedule counts."""
    words = ["trainer.max_epochs=3", "optimizer.lr=0.5", "schedule=cosine", "optimizer.momentum=0.9"]
    one, four = (
        train(*QUICK, *words, f"data.batch_size={100 // number}", f"trainer.accumulate_grad_batches={number}",
              run_dir=tmp_path / str(number)).result
        for number in (1, 4)
    )  # fmt: skip
    for whole, parts in zip(one.history, four.history, strict=True):
        for metric in ("train/loss", "train/acc", "lr"):
            assert parts[metric] == pytest.approx(whole[metric], rel=1e-3, abs=1e-9), metric
    assert four.test["loss"] == pytest.approx(one.test["loss"], rel=1e-3)


def test_gradient_clip_val_of_the_config_limits_the_steps_of_a_run(tmp_path: Path) -> None:
    words = ["data.batch_size=30", "trainer.max_epochs=1", "trainer.gradient_clip_val=1e-3", "optimizer.lr=0.1"]
    train(*QUICK, *words, run_dir=tmp_path / "run")
    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    biases = torch.cat([weight for name, weight in weights.items() if name.endswith("bias")])  # which begin as zeros
    assert 0 < biases.norm() <= 10 * 0.1 * 1e-3 * 1.001, "ten steps at this rate"


@pytest.mark.parametrize(("algorithm", "measure"), [("norm", 2), ("value", math.inf)])
def test_gradients_are_clipped_by_their_norm_or_by_value(algorithm: str, measure: float, tmp_path: Path) -> None:
    class After(L.Callback):
        norms: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            self.norms.append(float(gradients.norm(measure)))

    from mnist_lab.trainer import build_trainer

    words = [*QUICK, "trainer.max_epochs=1"]
    cfg = run_config(
        compose_config([*words, f"+trainer.gradient_clip_algorithm={algorithm}", "trainer.gradient_clip_val=0.001"])
    )
    after = After()
    trainer = build_trainer(cfg, tmp_path, [after])
    net = instantiate(cfg.model, _convert_="all")
    module = Classifier(net, instantiate(cfg.loss), instantiate(cfg.optimizer))
    module.example_input_array = torch.zeros(1, 1, 28, 28)
    trainer.fit(module, datamodule=instantiate(cfg.data, _convert_="all"))
    assert max(after.norms) == pytest.approx(0.001, rel=1e-4)


def test_loss_and_accuracy_are_over_images_not_over_batches(tmp_path: Path) -> None:
    data = ImageDataModule("mnist_5k", mnist_5k, "/", (1, 28, 28), 10, eval_batch_size=999, val="none")
    net = MLP([1, 28, 28], 10, [16])
    module = Classifier(net, nn.CrossEntropyLoss(), torch.optim.Adam)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    assert data.images is not None
    with torch.no_grad():
        logits = net(in_memory(data.images.test_images) / 255)
    assert trainer.callback_metrics["test/acc"] == (logits.argmax(1) == data.images.test_labels).sum().item() / 1000
    expected = nn.functional.cross_entropy(logits, data.images.test_labels).item()
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_early_stopping_ends_a_training_and_the_best_weights_are_tested(tmp_path: Path) -> None:
    words = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0.5"]
    words += ["callbacks.early_stopping.min_delta=0.02", "trainer.max_epochs=60", "test_checkpoint=best"]
    result = train(*QUICK, *words, run_dir=tmp_path / "run").result
    saved = {
        name: torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "best")
    }
    assert 2 <= len(result.history) == saved["last"]["epoch"] + 1 < 60
    falls = [before - after >= 0.02 for before, after in pairwise(row["val/loss"] for row in result.history)]
    assert falls.index(False) == len(falls) - 1, "patience=1: the first epoch that is no better is the last"
    assert result.test["checkpoint"] == "best"
    assert result.history[saved["best"]["epoch"]]["val/acc"] == max(row["val/acc"] for row in result.history)


@pytest.mark.slow
def test_the_best_checkpoint_is_the_first_with_the_highest_accuracy_and_is_tested(lab: Command, tmp_path: Path) -> None:
    """Of all epochs: those after the run was resumed too."""
    words = ["model=mlp", "model.hidden=[64]", "data=mnist_5k", "data.val=random", "data.val_size=10", "seed=1"]
    words += ["test_checkpoint=best", "report=false", "logger=none"]
    train(*words, "trainer.max_epochs=3", run_dir=tmp_path / "run")
    assert lab("resume", "run", "trainer.max_epochs=6").returncode == 0
    result = Result.load(tmp_path / "run")
    found = [row["val/acc"] for row in result.history]
    first = found.index(max(found))
    assert first < 3 and found.count(max(found)) > 1, f"{found} has what this is about"
    assert torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["epoch"] == first
    assert result.test["epoch"] == first + 1 and result.tested == result.history[first]
    shown = (tmp_path / "run/run.log").read_text()
    gap = 100 * (result.tested["train/acc"] - result.test["acc"])
    assert f"train, epoch {first + 1}, the best" in shown and f"{gap:+.2f} points" in shown
    images = mnist_5k(Path(), False)
    losses = {}
    for name in (None, "best", "last"):
        probabilities = load_run(tmp_path / "run", name, device="cpu").predict(in_memory(images.test_images))
        losses[name] = nn.functional.nll_loss(probabilities.log(), images.test_labels).item()
    assert losses[None] == losses["best"] == pytest.approx(result.test["loss"], rel=1e-5)
    assert losses["last"] != pytest.approx(result.test["loss"], rel=1e-3)
    row = f"{result.test['loss']:.4f} │   {result.test['acc']:.2%}"
    assert lab("test", "run=run").stdout.count(row) == 2, "it is what `test` tests again, beside what was recorded"


def test_label_smoothing_reaches_the_loss(tmp_path: Path) -> None:
    smoothed = train(*QUICK, "trainer.max_epochs=1", "loss.label_smoothing=0.5", run_dir=tmp_path / "run").result
    assert smoothed.test["loss"] > 1.5  # the entropy of a half-smoothed target alone


def test_a_run_that_validates_on_the_test_set_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(*QUICK, "data.val=test", "trainer.max_epochs=1", run_dir=tmp_path / "run").result
    assert capsys.readouterr().out.count("The test set was looked at while training") == 2
    assert result.data["val_from"] == "test" and "test set was looked at" in result.notes[0]
    assert result.history[0]["val/acc"] == result.test["acc"]


@pytest.mark.slow
def test_the_neuron_shows_its_forward_pass_and_learns_its_digit(lab: Command, tmp_path: Path) -> None:
    done = lab("data=mnist_5k", "model=neuron", "model.digit=0", "trainer.max_epochs=3", "report=false", "logger=none")
    assert "sigmoid 0.9525741268224334" in done.stdout
    result = result_in(tmp_path)
    assert result.extras == {"forward_pass": 0.9525741268224334}
    assert result.data["classes"] == ["not 0", "0"]
    assert result.model["parameters"] == 785
    assert result.test["acc"] > 0.95  # saying "not 0" always gives 0.90


def test_a_run_computes_in_the_precision_that_the_trainer_names(tmp_path: Path) -> None:
    result = train(*QUICK, "trainer.max_epochs=1", "trainer.precision=64-true", run_dir=tmp_path / "run").result
    assert result.machine["precision"] == "64-true"
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {weight.dtype for weight in saved.values()} == {torch.float64}


@pytest.mark.parametrize("batches", [1, 4])
def test_a_training_that_diverges_stops_and_says_where(batches: int, tmp_path: Path) -> None:
    words = ["optimizer.lr=1e30", "data.batch_size=30", f"trainer.accumulate_grad_batches={batches}"]
    expected = r"training diverged: in mini-batch \d+ of epoch 1 the loss is (nan|inf), at a learning rate of 1e\+30"
    with pytest.raises(UserError, match=expected):
        train(*QUICK, *words, run_dir=tmp_path / "run")


@pytest.mark.slow
def test_a_run_computes_what_a_hand_written_loop_does(tmp_path: Path) -> None:
    words = ["data.val=none", "data.train_size=null", "data.batch_size=300", "trainer.max_epochs=2", "seed=3"]
    test = train(*QUICK, *words, run_dir=tmp_path / "run").result.test
    found = mnist_5k(Path(), False)
    L.seed_everything(3, verbose=False)
    net = MLP([1, 28, 28], 10, [784, 32])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    order = EpochOrder(torch.arange(4000), 3)
    for epoch in range(2):
        order.set_epoch(epoch)
        for batch in torch.split(order(), 300):
            logits = net(in_memory(found.train_images)[batch] / 255)
            loss = nn.functional.cross_entropy(logits, found.train_labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        logits = net(in_memory(found.test_images) / 255)
    assert test["correct"] == int((logits.argmax(1) == found.test_labels).sum())
    assert test["loss"] == pytest.approx(nn.functional.cross_entropy(logits, found.test_labels).item(), rel=1e-5)


@pytest.mark.slow
def test_classes_can_weigh_differently_in_the_loss(tmp_path: Path) -> None:
    weights = "{_target_: torch.tensor, data: [1.0,1,1,1,1,1,1,1,1,0]}"
    plain, weighed = (
        train(*QUICK, "trainer.max_epochs=1", *words, run_dir=tmp_path / str(len(words))).result.history
        for words in ([], [f"+loss.weight={weights}"])
    )
    assert weighed[0]["train/loss"] != plain[0]["train/loss"]


def test_weights_of_classes_count_by_image_whatever_the_mini_batches_are(lab: Command, tmp_path: Path) -> None:
    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 1, 1, 20])
    data = ImageDataModule("mnist_5k", mnist_5k, "/", (1, 28, 28), 10, eval_batch_size=7, val="none")
    net = MLP([1, 28, 28], 10, [16])
    module = Classifier(net, nn.CrossEntropyLoss(weight), torch.optim.Adam)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    assert data.images is not None
    with torch.no_grad():
        logits = net(in_memory(data.images.test_images) / 255)
    expected = nn.functional.cross_entropy(logits, data.images.test_labels, weight).item()
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(expected, rel=1e-5)
