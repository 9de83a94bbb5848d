"""Configs are documentation: each one is composed, checked and made into what it describes."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import optuna
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig
from some import some

import mnist_lab
from mnist_lab.composing import compose_config, compose_with, run_config
from mnist_lab.data import ImageDataModule
from mnist_lab.errors import UserError
from mnist_lab.files import CONF_DIR
from mnist_lab.hydra_adapter import hydra_with, run_composed
from mnist_lab.keys import OF_TRAINER, keys_of
from mnist_lab.models import layers
from mnist_lab.rules import ACTIVATIONS, EMNIST_CLASSES, RULES
from mnist_lab.sweep.space import axis
from mnist_lab.sweep.study import sampler_of
from mnist_lab.trainer import build_trainer
from mnist_lab.training import Classifier
from mnist_lab.training.schedules import make_schedule

OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF_DIR.glob("*/*.yaml")
    if path.parent.name not in ("help", "job_logging")
)


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Python makes a module an attribute of its package once it is imported: `mnist_lab.compose` would be one."""
    assert not [name for name in mnist_lab.__all__ if (Path(mnist_lab.__file__).parent / f"{name}.py").exists()]


def test_every_group_has_options() -> None:
    groups = {group for group, _ in OPTIONS}
    assert groups == {
        "model",
        "module",
        "metrics",
        "data",
        "augment",
        "loss",
        "optimizer",
        "schedule",
        "trainer",
        "logger",
        "callbacks",
        "experiment",
        "sweep",
        "space",
    }


SAMPLERS = [option for group, option in OPTIONS if group == "sweep" and option != "grid"]


@pytest.mark.slow
@pytest.mark.parametrize(("option", "space"), [*((option, "mlp") for option in SAMPLERS), ("random", "cnn")])
def test_a_sampler_draws_values_that_the_network_takes(option: str, space: str) -> None:
    cfg = compose_config([f"model={space}", f"sweep={option}", f"space={space}"])
    axes = [axis(o) for o in OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in cfg.sweep.space.items()])]
    study = optuna.create_study(sampler=sampler_of(cfg.sweep.sampler, cfg.sweep.seed, 0))
    for _ in range(2):
        trial = study.ask({one.name: one.distribution() for one in axes})
        compose_config([f"model={space}", *(one.override(trial.params[one.name]) for one in axes)])
        study.tell(trial, 0.5)


@cache
def composed(group: str, option: str) -> DictConfig:
    """The config with one option, which is made once."""
    more = {
        "image_folder": [f"data.root={CONF_DIR}"],  # a folder of folders
        "gpu": ["trainer.accelerator=cpu"],
        "ddp": ["trainer.accelerator=cpu"],
        "early_stopping": ["data.val=random"],
    }
    return compose_config([f"{group}={option}", *more.get(option, [])])


OFTEN = ("model", "data", "optimizer", "schedule", "trainer")
"""Groups that the default test run includes."""


@pytest.mark.parametrize(
    ("group", "option"),
    some(OPTIONS, lambda one: one[0] in OFTEN),
)
def test_an_option_makes_what_it_describes(group: str, option: str, tmp_path: Path) -> None:
    cfg = run_config(composed(group, option))
    shape, classes = cfg.data.shape, 2 if cfg.data.one_vs_rest is not None else cfg.data.num_classes
    net = instantiate(cfg.model, _convert_="all")
    assert net(torch.zeros(2, *shape)).shape == (2, classes)
    assert isinstance(instantiate(cfg.data, _convert_="all"), ImageDataModule)
    optimizer = instantiate(cfg.optimizer, _convert_="all")(net.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    if cfg.schedule:
        schedule, _ = make_schedule(instantiate(cfg.schedule), optimizer, total_steps=100, epochs=5)
        assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
    callbacks = list(instantiate(cfg.callbacks, _convert_="all").values())
    if option in ("wandb", "mlflow") and find_spec(option) is None:  # which are installed by who wants them
        with pytest.raises(UserError, match="pip install"):
            build_trainer(cfg, tmp_path, callbacks)
    else:
        assert isinstance(build_trainer(cfg, tmp_path, callbacks), lightning.Trainer)
    loss = instantiate(cfg.loss)
    assert Classifier(net, loss, instantiate(cfg.optimizer)).loss(torch.zeros(1, 3), torch.tensor([0])) > 0


def test_each_rule_is_for_an_option_that_exists() -> None:
    known = {key for group, option in OPTIONS for key in keys_of(composed(group, option))}
    added = {"schedule.interval", "schedule.frequency", *(f"trainer.{name}" for name in OF_TRAINER)}  # Lightning's
    assert set(RULES) - added <= known


@pytest.mark.parametrize("model", [option for group, option in OPTIONS if group == "model"])
def test_networks_take_the_shape_from_the_data_alone(model: str) -> None:
    """That of other images than those which `test_an_option_makes_what_it_describes` has."""
    cfg = run_config(compose_config([f"model={model}", "data=cifar10"]))
    assert instantiate(cfg.model, _convert_="all")(torch.zeros(2, *cfg.data.shape)).shape[0] == 2


def test_the_command_line_wins_over_the_model_and_the_experiment() -> None:
    words = ["optimizer=sgd", "data.batch_size=7", "trainer.max_epochs=2", "data.val=none"]
    for choice in ("model=mlp", "experiment=a3_dropout_mlp"):
        cfg: Any = compose_config([choice, *words])
        assert cfg.optimizer._target_ == "mnist_lab.fast.SGD"
        assert (cfg.data.batch_size, cfg.trainer.max_epochs, cfg.data.val) == (7, 2, "none")


@pytest.mark.parametrize(
    ("experiment", "optimizer", "lr", "batch_size", "epochs", "val", "dropout"),
    [
        ("a2_mlp_1000", "mnist_lab.fast.Adam", 0.001, 128, 5, "none", 0.0),
        ("a3_dropout_mlp", "mnist_lab.fast.RMSprop", 0.001, 128, 4, "test", 0.2),
        ("b_cnn", "mnist_lab.fast.Adam", 0.001, 128, 10, "none", 0.2),
        ("c_mlp_784_32", "mnist_lab.fast.SGD", 0.01, 500, 20, "last", 0.0),
        ("d_mlp_512", "mnist_lab.fast.Adam", 0.001, 64, 5, "none", 0.0),
    ],
)
def test_an_experiment_has_the_settings_of_its_article(
    experiment: str, optimizer: str, lr: float, batch_size: int, epochs: int, val: str, dropout: float
) -> None:
    cfg: Any = composed("experiment", experiment)
    assert (cfg.optimizer._target_, cfg.optimizer.lr) == (optimizer, lr)
    assert (cfg.data.batch_size, cfg.trainer.max_epochs, cfg.data.val) == (batch_size, epochs, val)
    assert cfg.model.dropout == dropout and (val != "last" or cfg.data.val_size == 0.1)
    assert cfg.data.fallback is None
    assert cfg.reported


SPLITS = {
    "a1_neuron": ("random", 5000),
    "c_mlp_784_32": ("last", 0.1),
    "c_mlp_784_32_lr0.1": ("last", 0.1),
    "a3_dropout_mlp": ("test", 5000),
}


@pytest.mark.parametrize("experiment", [option for group, option in OPTIONS if group == "experiment"])
def test_an_experiment_validates_as_its_published_figures_were_measured(experiment: str) -> None:
    data = composed("experiment", experiment).data
    assert (data.val, data.val_size) == SPLITS.get(experiment, ("none", 5000))


@pytest.mark.parametrize("model", [option for group, option in OPTIONS if group == "model"])
def test_every_model_validates_on_a_random_part_of_the_training_images(model: str) -> None:
    data = composed("model", model).data
    assert (data.val, data.val_size) == ("random", 5000)


def test_fast99_smooths_its_labels_and_early_stopping_waits_three_epochs() -> None:
    cfg: Any = compose_config(["experiment=fast99", "callbacks=early_stopping", "data.val=random"])
    assert cfg.loss.label_smoothing == 0.1 and cfg.callbacks.early_stopping.patience == 3


def test_hydra_runs_a_composed_config_once() -> None:
    with hydra_with() as hydra:
        composed = compose_with(hydra, ["seed=1"])
        with run_composed(composed):
            assert compose_with(hydra, ["seed=3"]) is composed
            assert compose_with(hydra, ["seed=3"]).seed == 3
        with run_composed(composed):
            pass
        assert compose_with(hydra, ["seed=3"]).seed == 3


def test_trainer_debug_trains_one_epoch() -> None:
    cfg: Any = compose_config(["model=mlp_784_32", "trainer=debug"])
    assert cfg.trainer.max_epochs == 1


def test_names_known_without_torch_are_those_that_torch_knows() -> None:
    from torchvision.datasets import EMNIST

    assert tuple(layers.ACTIVATIONS) == ACTIVATIONS
    counts = {split: len([c for c in names if c != "N/A"]) for split, names in EMNIST.classes_split_dict.items()}
    assert counts == EMNIST_CLASSES
