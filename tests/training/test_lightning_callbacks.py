"""Each callback that Lightning exports works with either classifier, or is refused in one line that says why."""

import json
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch.callbacks
import pytest
import torch
from conftest import Command, outcome
from recorded import found_by_test
from torch import Tensor, nn

from mnist_lab import UserError, train
from mnist_lab.result import Result
from mnist_lab.trained import TrainedRun

WORDS = ["model=mlp", "model.hidden=[16]", "data=mnist_5k", "data.train_size=300", "data.batch_size=20"]
WORDS += ["data.val=random", "data.val_size=100", "report=false", "trainer.max_epochs=2", "trainer=cpu"]
STEPS = 2 * 15
CALLBACKS = "lightning.pytorch.callbacks"
Holds = Callable[[TrainedRun], bool]


def columns(run: TrainedRun) -> set[str]:
    """The names of all values that the run's CSV logger has."""
    (path,) = run.run_dir.rglob("metrics.csv")
    return set(path.read_text().partition("\n")[0].split(","))


def same_numbers(run: TrainedRun) -> bool:
    return run.result.test == found_by_test(*WORDS)


def other_numbers(run: TrainedRun) -> bool:
    return not same_numbers(run)


def steps(count: int) -> Holds:
    return lambda run: run.result.ended["steps"] == count


def share_of_zeros(run: TrainedRun) -> float:
    weights = torch.cat([p.flatten() for name, p in run.net.named_parameters() if name.endswith("weight")])
    return float((weights == 0).float().mean())


DOES: dict[str, tuple[str, Holds]] = {
    "DeviceStatsMonitor": ("cpu_stats: true", lambda run: any("cpu_percent" in name for name in columns(run))),
    "EMAWeightAveraging": ("decay: 0.9", other_numbers),
    "EarlyStopping": ("monitor: val/loss, stopping_threshold: 100", steps(15)),
    "GradientAccumulationScheduler": ("scheduling: {1: 3}", steps(15 + 5)),
    "LambdaCallback": (
        "on_train_batch_end: {_target_: hydra.utils.get_method, path: builtins.print}",
        lambda run: run.result.module["steps"] == "one at a time",
    ),
    "LearningRateFinder": ("num_training_steps: 20", lambda run: run.result.history[0]["lr"] != 0.001),
    "LearningRateMonitor": ("logging_interval: step", lambda run: "lr-RMSprop" in columns(run)),
    "ModelCheckpoint": (
        "every_n_train_steps: 7, save_top_k: -1",
        lambda run: len(list((run.run_dir / "checkpoints/it").glob("*.ckpt"))) == STEPS // 7,
    ),
    "ModelPruning": ("pruning_fn: l1_unstructured, amount: 0.3", lambda run: share_of_zeros(run) > 0.29),
    "ModelSummary": ("max_depth: 2", same_numbers),
    "RichModelSummary": ("max_depth: 2", same_numbers),
    "RichProgressBar": ("refresh_rate: 2", same_numbers),
    "StochasticWeightAveraging": ("swa_lrs: 0.01, swa_epoch_start: 1", other_numbers),
    "TQDMProgressBar": ("refresh_rate: 2", same_numbers),
    "ThroughputMonitor": (
        "batch_size_fn: {_target_: hydra.utils.get_method, path: builtins.len}, window_size: 5",
        lambda run: any("batches_per_sec" in name for name in columns(run)),
    ),
    "Timer": ("duration: {microseconds: 1}, interval: epoch", steps(15)),
    "WeightAveraging": ("use_buffers: true", other_numbers),
}
ABSTRACT = {"BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"}
ELSEWHERE = {"BackboneFinetuning", "BatchSizeFinder", "OnExceptionCheckpoint", "SpikeDetection"}  # below


def test_each_callback_that_lightning_exports_is_tried() -> None:
    assert {*DOES, *ABSTRACT, *ELSEWHERE} == set(lightning.pytorch.callbacks.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOES)
def test_a_callback_does_its_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, holds = DOES[name]
    words = [f"+callbacks.it={{_target_: {CALLBACKS}.{name}, {arguments}}}"]
    words += ["trainer.log_every_n_steps=5"] if "Monitor" in name else []
    assert holds(train(*WORDS, "logger=csv", *words, run_dir=tmp_path / "run"))


def test_a_checkpoint_is_written_when_a_callback_raises(tmp_path: Path) -> None:
    raises = "on_train_batch_end: {_target_: hydra.utils.get_method, path: builtins.len}"
    words = [f"+callbacks.it={{_target_: {CALLBACKS}.OnExceptionCheckpoint, dirpath: {tmp_path / 'kept'}}}"]
    words += [f"+callbacks.raises={{_target_: {CALLBACKS}.LambdaCallback, {raises}}}"]
    with pytest.raises(UserError, match="len"):
        train(*WORDS, *words, run_dir=tmp_path / "run")
    assert list((tmp_path / "kept").glob("*.ckpt"))


def test_a_spike_of_the_loss_ends_the_run_and_its_batch_is_noted(tmp_path: Path) -> None:
    arguments = f"rtol: 0, exclude_batches_path: {tmp_path}"  # each loss above the mean of those before
    with pytest.raises(UserError, match="TrainingSpikeException"):
        train(*WORDS, f"+callbacks.it={{_target_: {CALLBACKS}.SpikeDetection, {arguments}}}", run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "skip_batches.json").read_text())


def test_device_stats_without_psutil_say_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{CALLBACKS}.device_stats_monitor._PSUTIL_AVAILABLE", False)
    with pytest.raises(UserError, match="`psutil` is not installed"):
        train(*WORDS, f"+callbacks.it={{_target_: {CALLBACKS}.DeviceStatsMonitor}}", run_dir=tmp_path / "run")


def test_batch_size_finder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="couldn't be resumed or repeated"):
        train(*WORDS, "+callbacks.it._target_=lightning.pytorch.callbacks.BatchSizeFinder", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Normed(nn.Sequential):
    """A network with a BatchNorm layer."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))


def test_swa_of_batch_norm_is_refused(tmp_path: Path) -> None:
    words = [f"model._target_={__name__}.Normed", *(f"~model.{key}" for key in UNUSED), "callbacks=swa"]
    with pytest.raises(UserError, match="adds an epoch for BatchNorm"):
        train(*WORDS, *words, run_dir=tmp_path / "run")


class Headed(nn.Module):
    """A network with a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.head(self.backbone(images))
        return answers


BACKBONE = "+callbacks.it={_target_: lightning.pytorch.callbacks.BackboneFinetuning, unfreeze_backbone_at_epoch: 1}"
UNUSED = ("hidden", "activation", "init", "dropout", "input_shape", "num_classes")
CHANGING = {
    "backbone": [
        f"model._target_={__name__}.Headed",
        *(f"~model.{key}" for key in UNUSED),
        BACKBONE,
        "trainer.max_epochs=3",
    ],
    "accumulation": [
        "+callbacks.it={_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {1: 3}}"
    ],
    "swa": ["callbacks=swa", "callbacks.swa.swa_epoch_start=1", "callbacks.swa.swa_lrs=0.1"],
    "lr_finder": ["callbacks=lr_finder"],
    "several": ["callbacks=[ema,lr_monitor,model_checkpoint]"],
}


def history(words: list[str], folder: Path) -> list[dict[str, float]]:
    train(*WORDS, *words, run_dir=folder)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in Result.load(folder).history]


@pytest.mark.slow
@pytest.mark.parametrize("words", CHANGING.values(), ids=CHANGING)
def test_both_classifiers_do_the_same(words: list[str], tmp_path: Path) -> None:
    ours, textbook = (history([*words, f"module={name}"], tmp_path / name) for name in ("classifier", "textbook"))
    assert len(ours) == len(textbook)
    for one, other in zip(ours, textbook, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_learning_rate_finder_leaves_everything_else_unchanged(tmp_path: Path) -> None:
    plain = history(["module=textbook", "model.dropout=0.5"], tmp_path / "plain")
    searched = history(
        ["model.dropout=0.5", "callbacks=lr_finder", "+callbacks.lr_finder.update_attr=false"], tmp_path / "searched"
    )
    assert plain == searched


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        CHANGING["backbone"][:-1],
        ["callbacks=model_checkpoint", "callbacks.model_checkpoint.save_top_k=2"],
        ["callbacks=lr_monitor", "schedule=step", "schedule.every=1", "trainer.log_every_n_steps=5", "logger=csv"],
        CHANGING["accumulation"],
    ],
    ids=["backbone", "checkpoint", "rates", "accumulation"],
)
def test_a_longer_training_ends_as_one_that_was_never_stopped(words: list[str], lab: Command, tmp_path: Path) -> None:
    train(*WORDS, *words, "trainer.max_epochs=3", run_dir=tmp_path / "whole")
    train(*WORDS, *words, run_dir=tmp_path / "run")
    done = lab("resume", "run", "trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    kept = [sorted(p.name for p in tmp_path.glob(f"{name}/checkpoints/*/*.ckpt")) for name in ("run", "whole")]
    assert kept[0] == kept[1]
