"""LightningModules and LightningDataModules of somebody's own, tests/examples, have all that our classifier has."""

import csv
import re
import shutil
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import warm
from conftest import ROOT, Command, outcome
from PIL import Image
from some import some
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lab import load_run
from mnist_lab.build import load_module
from mnist_lab.composing import compose_config
from mnist_lab.errors import UserError
from mnist_lab.metrics import mode_of
from mnist_lab.result import Result

EXAMPLES = ROOT / "tests/examples"
DIGITS = ["data=mnist_5k", "data.train_size=200", "data.val_size=200", "data.batch_size=50"]
KILLED = """
import os
from lightning.pytorch.callbacks import Callback


class Killed(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if os.environ.get("KILLED_AT") == f"{trainer.current_epoch} {batch_idx}":
            os.kill(os.getpid(), int(os.environ.get("SIGNAL", "9")))
"""
KILLABLE = "+callbacks.killed._target_=killed.Killed"
REPORTED = ["vae", "contrastive", "pairs"]
GAN = {"train/loss", "val/loss", "train/judge_loss", "val/judge_loss"}
HALVES = {"train/loss", "train/found_acc", "val/loss", "val/found_acc"}
OURS = {"train/loss", "train/acc", "val/loss", "val/acc"}
OWN = {
    "scored": ([*DIGITS, "module=scored", "model=mlp_784_32"], "val/f1", {*OURS, "val/f1"}),
    "template": ([*DIGITS, "model=template"], "val/acc", {"train/loss", "val/acc", "val/acc_best"}),
    "autoencoder": ([*DIGITS, "module=autoencoder"], "val/loss", {"train/loss", "val/loss"}),
    "gan": ([*DIGITS, "module=gan"], "val/loss", GAN),
    "contrastive": ([*DIGITS, "module=contrastive", "model=mlp_784_32"], "val/loss", HALVES),
    "neighbours": ([*DIGITS, "module=neighbours", "module.size=200"], "val/acc", {"val/acc"}),
    "vae": ([*DIGITS, "model=vae"], "val/elbo", {"val/elbo"}),
    "probe": (
        [*DIGITS, "model=mlp_784_32", "callbacks=probe", "monitor=val/probe_acc"],
        "val/probe_acc",
        {*OURS, "val/probe_acc"},
    ),
    "pairs": (["data=pairs", "data.count=200", "data.batch_size=50", "model=mlp_784_32"], "val/acc", OURS),
}
"""Of each example its words, the metric that it is judged by, and all that it logs in an epoch."""


IN_BRIEF = some(OWN, lambda name: name in ("gan", "pairs"))


def words_of(name: str) -> list[str]:
    return ["--config-dir", "conf", *OWN[name][0], "trainer.max_epochs=3", "trainer=cpu"]


def examples(folder: Path) -> Path:
    """A folder of a user with the examples."""
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    (folder / "killed.py").write_text(KILLED)
    return folder


@pytest.fixture
def own(lab: Command, tmp_path: Path) -> Command:
    examples(tmp_path)
    return lab


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from an example's name to the folder of a finished run of it."""
    folder = examples(tmp_path_factory.mktemp("own"))

    @cache
    def run(name: str) -> tuple[Path, str]:
        report = f"report={name in REPORTED}".lower()
        done = warm.lab([*words_of(name), KILLABLE, report, f"hydra.run.dir={name}"], folder)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" or name == "neighbours"  # of which Lightning says that it has no optimiser
        return folder / name, done.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_BRIEF)
def test_metrics_of_ones_own_module_are_in_result_history_and_tensorboard(name: str, whole: Any) -> None:
    folder, shown = whole(name)
    _, monitor, logged = OWN[name]
    result = Result.load(folder)
    assert [set(row) for row in result.history] == [{"epoch", "lr", "seconds"} | logged] * 3
    assert all(row[metric] is not None for row in result.history for metric in logged)
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [[float(row[monitor]) for row in rows]] == [[pytest.approx(row[monitor]) for row in result.history]]
    assert result.ended["by"] == "max_epochs" and re.search(r"ended by max_epochs=3", shown)
    points = EventAccumulator(str(folder / "tensorboard")).Reload()
    for metric in logged:
        curve = points.Scalars(metric)
        assert [point.value for point in curve] == pytest.approx([row[metric] for row in result.history])
        assert [point.step for point in curve] == sorted({point.step for point in curve}), "each point once"


@pytest.mark.slow
def test_a_run_says_once_what_is_different_for_ones_own_module(whole: Any) -> None:
    shown = whole("vae")[1]
    assert shown.count("VAE is a LightningModule: module=mnist_lab.fast.FastClassifier is unused\n") == 1
    assert shown.count("after a stop within an epoch, what VAE logs of training is of the epoch's rest\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_the_best_checkpoint_has_the_best_value_of_the_monitor(name: str, whole: Any) -> None:
    folder, _ = whole(name)
    monitor = OWN[name][1]
    result = Result.load(folder)
    sign = 1 if mode_of(monitor, result.config["mode"]) == "max" else -1
    values = [sign * row[monitor] for row in result.history]
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == values.index(max(values))


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_ones_own_module_is_resumed_after_a_kill_to_the_same_numbers(name: str, whole: Any) -> None:
    folder, _ = whole(name)
    words = [*words_of(name), KILLABLE, "report=false", "hydra.run.dir=again"]
    shutil.rmtree(folder.parent / "again", ignore_errors=True)
    killed = warm.lab(words, folder.parent, environment={"KILLED_AT": "1 0"})
    assert killed.returncode == -9, killed.stderr
    done = warm.lab(["resume", "again"], folder.parent)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/" not in done.stdout
    assert outcome(folder.parent / "again") == outcome(folder)


@pytest.mark.slow
def test_a_run_on_ones_own_loader_resumes_at_the_epochs_start(whole: Any) -> None:
    folder, shown = whole("pairs")
    assert "Pairs has loaders of its own: a run that is stopped goes on from an epoch's start" in shown
    words = [*words_of("pairs"), KILLABLE, "report=false", "hydra.run.dir=told"]
    told = warm.lab(words, folder.parent, environment={"KILLED_AT": "1 1", "SIGNAL": "15"})
    assert told.returncode == 128 + 15, told.stderr
    assert "stopped by SIGTERM in epoch 2, which will begin again. To go on: python -m mnist_lab resume" in told.stdout
    done = warm.lab(["resume", "told"], folder.parent)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert outcome(folder.parent / "told") == outcome(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "neighbours", "pairs"])
def test_test_repeats_the_numbers_of_ones_own_module(name: str, whole: Any) -> None:
    folder, _ = whole(name)
    done = warm.lab(["test", f"run={name}"], folder.parent)
    assert done.returncode == 0, done.stderr
    (metric, value), *_ = Result.load(folder).test_metrics.items()
    shown = f"{value:.2%}" if metric == "acc" else f"{value:.4f}"
    assert done.stdout.count(shown) == 2, "measured, and recorded"


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTED)
def test_the_report_of_ones_own_module_shows_its_curves(name: str, whole: Any) -> None:
    folder, _ = whole(name)
    page = (folder / "report.html").read_text()
    assert page.count("Nothing is shown of single images: ") == 1
    assert {path.stem for path in (folder / "figures").iterdir()} == {"curves"}
    (folder / "report.html").unlink()
    done = warm.lab(["report", f"run={name}"], folder.parent)
    assert done.returncode == 0 and (folder / "report.html").read_text() == page, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb", ["predict run=vae images=a.png", "export run=vae", "ensemble gan contrastive", "draw run=vae"]
)
def test_verbs_that_need_class_probabilities_are_refused_without_them(verb: str, whole: Any) -> None:
    folder, _ = whole("vae")
    for name in ("gan", "contrastive"):
        whole(name)
    Image.new("L", (28, 28)).save(folder.parent / "a.png")
    done = warm.lab(verb.split(), folder.parent)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert " has no network that gives class probabilities: mod" in done.stderr


@pytest.mark.slow
def test_runs_are_compared_by_what_they_log(whole: Any) -> None:
    folders = [whole(name)[0] for name in ("autoencoder", "gan", "vae")]
    done = warm.lab(
        ["compare", *(folder.name for folder in folders), "metric=val/loss", "dir=compared"], folders[0].parent
    )
    assert done.returncode == 0, done.stderr
    with (folders[0].parent / "compared/compare.csv").open() as file:
        means = [float(row["mean"]) for row in csv.DictReader(file)]
    losses = sorted(Result.load(folder).history[-1]["val/loss"] for folder in folders[:2])
    assert means[:2] == losses and means[2] != means[2], "the smallest first, and last what has none"


@pytest.mark.slow
def test_a_subclass_of_our_classifier_predicts(whole: Any) -> None:
    folder, _ = whole("scored")
    Image.new("L", (28, 28)).save(folder.parent / "a.png")
    done = warm.lab(["predict", "scored", "images=a.png", "prepare=resize"], folder.parent)
    assert done.returncode == 0 and "a.png" in done.stdout, done.stderr


@pytest.mark.slow
def test_early_stopping_follows_the_monitor(own: Command, tmp_path: Path) -> None:
    words = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1e6",
    ]
    done = own(*words_of("vae"), *words, "trainer.max_epochs=9", "hydra.run.dir=run", "report=false")
    assert done.returncode == 0, done.stderr
    assert Result.load(tmp_path / "run").ended == {"by": "early_stopping", "epochs": 2, "steps": 8}


@pytest.mark.slow
def test_a_sweep_judges_by_the_monitor(own: Command, tmp_path: Path) -> None:
    done = own("-m", *words_of("vae"), "model.lr=0.00001,0.001", "logger=none", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "s/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], row["model.lr"]) for row in rows] == [("val/elbo", "0.001"), ("val/elbo", "1e-05")]


@pytest.mark.slow
def test_a_hopeless_trial_is_ended_by_its_own_metric(own: Command, tmp_path: Path) -> None:
    words = ["model.lr=0.001,0.002,0.003,0.004,0.0000001", "sweep.pruner=median", "logger=none"]
    done = own("-m", *words_of("vae"), *words, "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    assert "4 complete, 1 pruned" in done.stdout


@pytest.mark.slow
def test_two_processes_train_ones_own_module(own: Command, tmp_path: Path) -> None:
    done = own(*words_of("autoencoder"), "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=run", "report=false")
    assert done.returncode == 0, done.stderr
    result = Result.load(tmp_path / "run")
    assert result.machine["processes"] == 2 and result.ended["steps"] == 12
    assert result.history[2]["val/loss"] < result.history[0]["val/loss"]


@pytest.mark.slow
def test_each_process_gets_its_share_of_ones_own_data(own: Command, tmp_path: Path) -> None:
    done = own(*words_of("pairs"), "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=run", "report=false")
    assert done.returncode == 0, done.stderr
    assert Result.load(tmp_path / "run").ended["steps"] == 3 * 200 // 50 // 2


def test_arguments_about_loaders_are_allowed_for_data_of_ones_own() -> None:
    for word in ("use_distributed_sampler=false", "reload_dataloaders_every_n_epochs=1"):
        cfg = compose_config(["data._target_=own.Pairs", f"+trainer.{word}"])
        assert word.partition("=")[0] in cfg.trainer


@pytest.mark.slow
def test_options_that_ones_own_module_does_not_use_are_named(own: Command, tmp_path: Path) -> None:
    words = ["optimizer.lr=0.1", "loss.label_smoothing=0.1", "report=false", "logger=none", "trainer.max_epochs=1"]
    done = own(*words_of("autoencoder"), *words, "hydra.run.dir=run")
    assert "Autoencoder makes no use of optimizer.lr=0.1, loss.label_smoothing=0.1\n" in done.stdout, done.stderr
    done = own(*words_of("contrastive"), *words, "hydra.run.dir=other")
    assert "Contrastive makes no use of loss.label_smoothing=0.1\n" in done.stdout, done.stderr
    refused = own(*words_of("autoencoder"), "compile=default", "hydra.run.dir=compiled")
    assert refused.returncode == 2 and "call torch.compile in Autoencoder" in refused.stderr
    assert not (tmp_path / "compiled").exists()


@pytest.mark.slow
def test_ones_own_data_and_module_work_together(own: Command, tmp_path: Path) -> None:
    words = [word for word in words_of("pairs") if not word.startswith("model=")]
    done = own(*words, "module=contrastive", "model=cnn", "hydra.run.dir=run", "report=false", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    result = Result.load(tmp_path / "run")
    assert result.data["name"] == "own.Pairs" and result.test["metrics"].keys() == {"loss", "found_acc"}


@pytest.mark.slow
def test_load_run_gives_the_module_that_was_trained(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = whole("autoencoder")
    spec = spec_from_file_location("own", folder.parent / "own.py")
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "own", module := module_from_spec(spec))
    spec.loader.exec_module(module)
    run: Any = load_run(folder, device="cpu")
    images = torch.zeros(2, *run.shape, dtype=torch.uint8)
    assert run.net.decoder(run.net.encoder(run.scale(images))).shape == (2, 784) and not run.net.training
    with pytest.raises(UserError, match=r"gives class probabilities: module is own\.Autoencoder"):
        run.predict(images)


def test_on_load_checkpoint_of_a_module_is_called_with_its_weights() -> None:
    class Keeps(L.LightningModule):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.kept = checkpoint["kept"]

    module = Keeps()
    load_module(module, Path("last.ckpt"), {"state_dict": {}, "kept": 3})
    assert module.kept == 3
