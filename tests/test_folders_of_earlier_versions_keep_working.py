"""Configs and folders of earlier versions: names that have moved are found, and every verb works."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import Command, result_in
from hydra.utils import get_object
from test_only_like_runs_are_ranked_together import run

from mnist_lab import compose
from mnist_lab.files import CONF_DIR
from mnist_lab.sweep.groups import grouped
from mnist_lab.targets import MOVED, with_current_names
from mnist_lab.trust import is_harmless, targets

# All `_target_`s of this package that the configs had at commit f9043fd, and all names that its packages exported.
NAMES = {
    "data": "Archive Augment Batch Batches DataUnavailableError DatasetImages EpochOrder ImageDataModule ImageSet "
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


def test_names_that_have_moved_work_in_a_users_file_and_on_the_command_line(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "mine/optimizer").mkdir(parents=True)
    described = {"_target_": "mnist_lab.training.SGD", "_partial_": True, "lr": 0.1}
    (tmp_path / "mine/optimizer/own.yaml").write_text(yaml.safe_dump(described))
    words = ["--config-dir", "mine", "data=mnist_5k", "data.train_size=200", "trainer.max_epochs=1", "report=false"]
    words += ["optimizer=own", "+callbacks.a._target_=mnist_lab.training.Dashboard"]
    done = lab(*words, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    config = result_in(tmp_path / "run").config
    assert config["optimizer"]["_target_"] == "mnist_lab.fast.SGD"
    assert config["callbacks"]["a"]["_target_"] == "mnist_lab.show.tensorboard.Dashboard"
    assert compose("optimizer._target_=mnist_lab.training.Adam").optimizer._target_ == "mnist_lab.fast.Adam"


def test_a_strangers_config_may_use_names_that_have_moved() -> None:
    assert is_harmless("optimizer._target_=mnist_lab.training.SGD,mnist_lab.fast.Adam")
    assert not is_harmless("callbacks.a._target_=mnist_lab.training.History")


def test_runs_with_an_earlier_name_and_with_the_new_one_are_one_group() -> None:
    old = run(0.9, 0, optimizer___target_="mnist_lab.training.Adam")
    new = run(0.9, 1, optimizer___target_="mnist_lab.fast.Adam")
    other = run(0.9, 2, optimizer___target_="mnist_lab.fast.SGD")
    assert [len(group.results) for group in grouped([old, new, other], "test/acc")] == [2, 1]
