"""Each callback that Lightning exports works with either classifier, or is refused in one line that says why."""

from pathlib import Path

import lightning.pytorch.callbacks
import pytest
from torch import Tensor, nn

from mnist_lab import UserError, train
from mnist_lab.result import Result

WORDS = ["model=mlp", "model.hidden=[16]", "data=mnist_5k", "data.train_size=300", "data.batch_size=20"]
WORDS += ["data.val=random", "data.val_size=100", "report=false", "trainer.max_epochs=2", "trainer=cpu"]
PARTS: dict[str, str] = {
    "DeviceStatsMonitor": "cpu_stats: false",
    "EarlyStopping": "monitor: val/loss",
    "GradientAccumulationScheduler": "scheduling: {1: 3}",
    "LambdaCallback": "on_train_batch_end: {_target_: hydra.utils.get_method, path: builtins.print}",
    "LearningRateFinder": "num_training_steps: 20",
    "LearningRateMonitor": "logging_interval: step",
    "ModelCheckpoint": "every_n_train_steps: 7, monitor: val/loss",
    "ModelPruning": "pruning_fn: l1_unstructured, amount: 0.3",
    "OnExceptionCheckpoint": "dirpath: kept",
    "StochasticWeightAveraging": "swa_lrs: 0.01, swa_epoch_start: 1",
    "ThroughputMonitor": "batch_size_fn: {_target_: hydra.utils.get_method, path: builtins.len}, window_size: 5",
    "Timer": "duration: {hours: 1}",
}
BASES = ("BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar")
ALL = sorted(set(lightning.pytorch.callbacks.__all__) - {*BASES, "BackboneFinetuning", "BatchSizeFinder"})


def kind(name: str) -> str:
    found = getattr(lightning.pytorch.callbacks, name)
    return f"{found.__module__}.{name}"


@pytest.mark.parametrize("name", ALL)
def test_it_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = [f"_target_: {kind(name)}", *filter(None, [PARTS.get(name)])]
    words = [f"+callbacks.it={{{', '.join(parts)}}}"]
    if name in ("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor"):
        words += ["+trainer.log_every_n_steps=5"]
    run = train(*WORDS, *words, run_dir=tmp_path / "run")
    assert [row["epoch"] for row in run.result.history] == [1, 2]


def test_a_finder_of_batch_sizes_is_refused(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("words", CHANGING.values(), ids=CHANGING)
def test_both_classifiers_do_the_same(words: list[str], tmp_path: Path) -> None:
    ours, textbook = (history([*words, f"module={name}"], tmp_path / name) for name in ("classifier", "textbook"))
    assert len(ours) == len(textbook)
    for one, other in zip(ours, textbook, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_search_for_the_rate_leaves_all_else_as_it_was(tmp_path: Path) -> None:
    plain = history(["module=textbook", "model.dropout=0.5"], tmp_path / "plain")
    searched = history(
        ["model.dropout=0.5", "callbacks=lr_finder", "+callbacks.lr_finder.update_attr=false"], tmp_path / "searched"
    )
    assert plain == searched
