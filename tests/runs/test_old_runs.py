"""Configs and folders of earlier versions: names that have moved are found, and every verb works."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, Command, result_in
from hydra.utils import get_object
from omegaconf import OmegaConf
from results import run

from mnist_lab import compose, load_run
from mnist_lab.files import CONF_DIR
from mnist_lab.result import Result
from mnist_lab.sweep.groups import grouped
from mnist_lab.targets import MOVED, with_current_names
from mnist_lab.trust import is_harmless, targets

# All `_target_`s of this package that the configs had at commit f9043fd, and all names that its packages exported, but
# for `data.Batch`, which only a loader made: batches are (images, labels) now.
NAMES = {
    "data": "Archive Augment Batches DataUnavailableError DatasetImages EpochOrder ImageDataModule ImageSet "
    "Source WorkerBatches cifar10 emnist fashion_mnist fetch from_datasets image_folder kmnist mnist mnist_5k qmnist",
    "models": "CNN ConvPool2d ConvStack Dropout Linear MLP Neuron",
    "training": "CHARTS SGD Adam AdamW Checkpoints Classifier Dashboard EpochProgress History LayerTable "
    "NeuronForwardPass RMSprop Replay WholeFiles newest",
    "training.schedules": "Plateau cosine one_cycle step",
}


@pytest.mark.parametrize("package", NAMES)
def test_names_that_an_earlier_config_could_use_are_found(package: str) -> None:
    for name in NAMES[package].split():
        get_object(with_current_names(f"mnist_lab.{package}.{name}"))


def test_the_configs_name_the_new_places() -> None:
    named = {name for path in CONF_DIR.rglob("*.yaml") for name in targets(yaml.safe_load(path.read_text()))}
    assert "mnist_lab.fast.Adam" in named and not named & MOVED.keys()


@pytest.mark.slow
def test_names_that_have_moved_work_in_a_users_file_and_on_the_command_line(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "mine/optimizer").mkdir(parents=True)
    described = {"_target_": "mnist_lab.training.SGD", "_partial_": True, "lr": 0.1}
    (tmp_path / "mine/optimizer/own.yaml").write_text(yaml.safe_dump(described))
    words = ["--config-dir", "mine", "data=mnist_5k", "data.train_size=200", "trainer.max_epochs=1", "report=false"]
    words += ["optimizer=own", "logger=none", "+callbacks.a._target_=mnist_lab.training.Dashboard"]
    done = lab(*words, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    config = result_in(tmp_path / "run").config
    assert config["optimizer"]["_target_"] == "mnist_lab.fast.SGD"
    assert config["callbacks"]["a"]["_target_"] == "mnist_lab.show.tensorboard.Dashboard"
    assert compose("optimizer._target_=mnist_lab.training.Adam").optimizer._target_ == "mnist_lab.fast.Adam"


def test_an_untrusted_config_may_use_names_that_have_moved() -> None:
    assert is_harmless("optimizer._target_=mnist_lab.training.SGD,mnist_lab.fast.Adam")
    assert not is_harmless("callbacks.a._target_=mnist_lab.training.History")


def test_runs_with_an_earlier_name_and_with_the_new_one_are_one_group() -> None:
    old = run(0.9, 0, optimizer___target_="mnist_lab.training.Adam")
    new = run(0.9, 1, optimizer___target_="mnist_lab.fast.Adam")
    other = run(0.9, 2, optimizer___target_="mnist_lab.fast.SGD")
    assert [len(group.results) for group in grouped([old, new, other], "test/acc")] == [2, 1]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the folders that commit f9043fd left, where commands are run."""
    shutil.copytree(ROOT / "tests/old_runs", tmp_path, dirs_exist_ok=True)
    return tmp_path


def assert_same_numbers(run_dir: Path, epochs: int = 3) -> None:
    """Compare with the finished run; another processor rounds otherwise."""
    (expected, found) = (Result.load(folder) for folder in (ROOT / "tests/old_runs/finished", run_dir))
    assert len(found.history) == epochs
    for before, now in zip(expected.history, found.history, strict=False):
        for key in before.keys() - {"seconds"}:
            assert now[key] == pytest.approx(before[key], rel=1e-3, abs=0.01 if key.endswith("acc") else 0), key
    if epochs == 3:
        assert found.test["acc"] == pytest.approx(expected.test["acc"], abs=0.01)
        assert found.test["n"] == expected.test["n"]


@pytest.mark.slow
def test_an_old_run_is_tested_compared_reported_and_predicts(old: Path, lab: Command) -> None:
    for words in ("test run=finished checkpoint=best", "report run=finished", "compare finished sweep"):
        done = lab(*words.split())
        assert done.returncode == 0, (words, done.stderr)
        if words.startswith("test"):
            assert "78.10%" in done.stdout
    assert (old / "finished/report.html").exists()
    probabilities = load_run(old / "finished").predict(torch.zeros(2, 28, 28, dtype=torch.uint8))
    assert probabilities.shape == (2, 10) and torch.allclose(probabilities.sum(1), torch.ones(2))


@pytest.mark.slow
def test_an_old_run_is_repeated_and_made_longer(old: Path, lab: Command) -> None:
    done = lab("rerun", "finished", "dir=again")
    assert done.returncode in (0, 1), done.stderr  # 1: another processor or PyTorch rounds otherwise
    assert "(nothing)" not in done.stdout, "a field that results didn't have is no other number"
    assert_same_numbers(old / "again")
    done = lab("resume", "finished", "trainer.max_epochs=4")
    assert done.returncode == 0, done.stderr
    assert_same_numbers(old / "finished", epochs=4)


@pytest.mark.slow
def test_an_old_run_of_an_article_counts_in_the_table(old: Path, lab: Command) -> None:
    config: Any = OmegaConf.to_container(compose("experiment=d_mlp_512"))
    del config["module"], config["monitor"], config["mode"], config["data"]["eval_transform"]
    config["optimizer"]["_target_"] = "mnist_lab.training.Adam"
    (folder := old / "outputs/articles/d_mlp_512/seed=0").mkdir(parents=True)
    replace(Result.load(old / "finished"), name="d_mlp_512", config=config).save(folder)
    done = lab("articles", "experiments=d_mlp_512", "seeds=1")
    assert done.returncode == 0, done.stderr
    assert "| 78.10 % | 1 |" in (old / "outputs/articles/table.md").read_text()
    done = lab("articles", "experiments=d_mlp_512", "seeds=1", "optimizer.lr=0.1")
    assert done.returncode == 2 and "another config: optimizer.lr: 0.001 → 0.1\n" in done.stderr, done.stderr


@pytest.mark.slow
def test_an_old_run_that_was_stopped_at_an_epochs_end_is_resumed(old: Path, lab: Command) -> None:
    shutil.copy(old / "stopped/checkpoints/best.ckpt", old / "stopped/checkpoints/last.ckpt")
    done = lab("resume", "stopped")
    assert done.returncode == 0, done.stderr
    assert "epoch 1/3" not in done.stdout
    assert_same_numbers(old / "stopped")


def test_an_old_run_that_was_stopped_within_an_epoch_is_resumed_or_names_its_version(old: Path, lab: Command) -> None:
    before = {path: path.read_bytes() for path in (old / "stopped").rglob("*") if path.is_file()}
    done = lab("resume", "stopped")
    if done.returncode == 0:
        assert_same_numbers(old / "stopped")
    else:
        assert done.returncode == 2 and "f9043fd" in done.stderr, done.stderr
        assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_an_old_sweep_is_resumed_where_its_changes_are_accepted(old: Path, lab: Command) -> None:
    done = lab("resume", "sweep")
    assert done.returncode == 2 and "add sweep.accept_changes=true" in done.stderr, done.stderr
    assert "mnist_lab.training" not in done.stderr  # a class that has moved is no change
    done = lab("resume", "sweep", "sweep.accept_changes=true")
    assert done.returncode == 0, done.stderr
    assert "epoch 1/3" not in (old / "sweep/1/run.log").read_text(), "it goes on from its checkpoint"
    first, second = (Result.load(old / "sweep" / number) for number in "01")
    assert first.code["commit"].startswith("f9043fd") and len(second.history) == 3
