"""Weight averaging, pruning and the like: a run that was killed at any moment records what an undisturbed one does."""

from pathlib import Path

import lightning as L
import pytest
import torch
import warm
from killing import OWN, WORDS
from lightning.pytorch.callbacks import Callback
from recorded import found
from torch import nn

from mnist_lab import load_run, train
from mnist_lab.build import build_tested
from mnist_lab.result import Result
from mnist_lab.training.weights import restore, same, usable

PRUNING = "_target_: lightning.pytorch.callbacks.ModelPruning, pruning_fn: l1_unstructured, amount: 0.3"
RECIPES = {
    "exponential average": ["+callbacks.own._target_=lightning.pytorch.callbacks.EMAWeightAveraging"],
    "average of the epochs": ["+callbacks.own._target_=own.Average"],
    "noise": ["+callbacks.own._target_=own.Noise"],
    "pruning": [f"+callbacks.own={{{PRUNING}, use_lottery_ticket_hypothesis: false}}", "checkpoint.every=4 steps"],
    "lottery ticket": [f"+callbacks.own={{{PRUNING}}}"],
    "swa": ["callbacks=swa", "callbacks.swa.swa_epoch_start=2"],
    "rate finder": ["callbacks=lr_finder", "checkpoint.every=4 steps"],
    "accumulation": [
        "+callbacks.own={_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {1: 2}}",
        "checkpoint.every=4 steps",
    ],
    "pruning after validation": [
        f"+callbacks.own={{{PRUNING}, use_lottery_ticket_hypothesis: false, prune_on_train_epoch_end: false}}",
        "test_checkpoint=best",
    ],
}
MOMENTS = ["on_train_batch_end 1", "on_validation_epoch_end 1", "on_train_epoch_end 1", "on_train_epoch_end 2"]
MOMENTS += ["on_train_end 3", "on_test_epoch_end 3"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_with_a_weight_changing_callback_is_resumed_exactly(recipe: str, tmp_path: Path) -> None:
    """One run is killed in two of six hooks, and ends as an undisturbed one. Each hook has three recipes."""
    (tmp_path / "own.py").write_text(OWN)
    words = [*WORDS, *RECIPES[recipe], "+callbacks.killed._target_=own.Killed"]
    done = warm.lab([*words, "hydra.run.dir=whole"], tmp_path)
    assert done.returncode == 0, done.stderr
    command = [*words, "hydra.run.dir=run"]
    for moment in MOMENTS[[*RECIPES].index(recipe) % 3 :: 3]:
        done = warm.lab(command, tmp_path, environment={"KILLED": moment})
        assert done.returncode == -9, (moment, done)
        command = ["resume", "run"]
    done = warm.lab(command, tmp_path)
    assert done.returncode == 0, done.stderr
    expected, here = found(tmp_path / "whole"), found(tmp_path / "run")
    for part in expected:
        assert here[part] == expected[part], part


@pytest.mark.slow
def test_a_longer_training_with_pruning_ends_as_one_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    words = [*WORDS, *RECIPES["pruning"]]
    assert warm.lab([*words, "hydra.run.dir=three"], tmp_path).returncode == 0
    assert warm.lab([*words, "trainer.max_epochs=2", "hydra.run.dir=two"], tmp_path).returncode == 0
    assert warm.lab(["resume", "two", "trainer.max_epochs=3"], tmp_path).returncode == 0
    three, two = found(tmp_path / "three"), found(tmp_path / "two")
    for part in three:
        assert two[part] == three[part], part


class Swaps(Callback):
    """Validates with other weights than it trains, and says so to no checkpoint."""

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.own = {name: value.clone() for name, value in pl_module.state_dict().items()}
        with torch.no_grad():
            for weight in pl_module.parameters():
                weight.mul_(weight.abs() > 0.03)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.load_state_dict(self.own)


@pytest.mark.slow
@pytest.mark.parametrize(
    "callback", [f"{{{PRUNING}, use_lottery_ticket_hypothesis: false}}", f"{{_target_: {__name__}.Swaps}}"]
)
def test_the_best_checkpoint_has_the_weights_that_were_validated(callback: str, tmp_path: Path) -> None:
    train(*WORDS, f"+callbacks.own={callback}", "logger=none", run_dir=tmp_path / "run")
    run = load_run(tmp_path / "run", "best", device="cpu")
    data = build_tested(run.cfg, tmp_path / "run")
    assert data.images is not None and isinstance(data.images.train_images, torch.Tensor)
    answers = run.predict(data.images.train_images[data.val_index]).argmax(1)
    right = int((answers == data.images.train_labels[data.val_index]).sum())
    highest = max(row["val/acc"] for row in Result.load(tmp_path / "run").history)
    assert right == round(highest * len(data.val_index))


def test_weights_that_are_pruned_in_a_checkpoint_are_pruned_again() -> None:
    layer = nn.Sequential(nn.Linear(4, 3))
    nn.utils.prune.l1_unstructured(layer[0], "weight", amount=6)
    kept, expected = {name: value.clone() for name, value in layer.state_dict().items()}, usable(layer)
    assert (expected["0.weight"] == 0).sum() == 6 and expected.keys() == {"0.weight", "0.bias"}
    other = nn.Sequential(nn.Linear(4, 3))
    weight = other[0].weight
    restore(other, kept)
    assert other[0].weight_orig is weight, "which the optimiser has"
    assert same(usable(other), expected) and same(other.state_dict(), kept)
    assert torch.equal(other(torch.eye(4)), layer(torch.eye(4)))
