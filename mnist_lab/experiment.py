"""The objects of a run, made from its config and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint, StochasticWeightAveraging
from omegaconf import DictConfig, OmegaConf

from mnist_lab.build import build, build_data, build_module, check_size, load_weights
from mnist_lab.checks import check_batches, check_device, check_fit, check_optimizer, check_processes, check_resumed
from mnist_lab.composing import use_absolute_root
from mnist_lab.data import ImageDataModule
from mnist_lab.data.moved import read_recorded
from mnist_lab.environment import own_code
from mnist_lab.errors import UserError
from mnist_lab.fast.steps import StepPath, choose_step_path
from mnist_lab.run_folder import asked_of
from mnist_lab.terminal import relative
from mnist_lab.trainer import build_trainer, limits_of
from mnist_lab.training import Classifier, History, Pace, ResumeState
from mnist_lab.training.checkpoint_files import to_resume
from mnist_lab.training.loggers import versions_of

REFUSED = {
    BatchSizeFinder: "The size that it finds depends on the memory that is free and is in no config, so the run "
    "couldn't be resumed or repeated. A sweep compares sizes: -m data.batch_size=32,128,512",
}
"""Callbacks that are refused, and what does their work."""


@dataclass(frozen=True)
class Experiment:
    """The objects that a config describes, ready to train.

    Attributes:
        data: an `ImageDataModule`, read and divided, or another's.
        module: the LightningModule.
        trainer: with all callbacks and loggers.
        history: one row an epoch.
        state: what checkpoints keep besides.
        path: how steps are made.
        last: the checkpoint to go on from; None: the training begins.
        step: of the optimiser, from which on it trains.
        doubts: what works, but is hardly meant.
        own: the user's own code, as it is now: files may be edited while it trains.
    """

    data: L.LightningDataModule
    module: L.LightningModule
    trainer: L.Trainer
    history: History
    state: ResumeState
    path: StepPath
    last: Path | None
    step: int
    doubts: list[str]
    own: dict[str, Any]


def build_experiment(
    cfg: DictConfig, run_dir: Path, callbacks: Sequence[L.Callback], recorded: Mapping[str, Any]
) -> Experiment:
    """Make what a config describes; check that the parts fit each other and the checkpoint to go on from.

    Args:
        cfg: the run's config. A relative `data.root` in it becomes absolute.
        run_dir: the run's folder.
        callbacks: beside those of the config.
        recorded: `digest` and `fallback` of the data of a run that is repeated.

    Raises:
        UserError: what is asked for can't be done.
    """
    data = build_data(cfg)
    use_absolute_root(cfg)  # what is recorded holds in any folder
    last, saved = to_resume(run_dir / "checkpoints", limits_of(cfg))
    if last is not None:
        check_size(cfg, last, saved)
    pace, state, named = Pace(), ResumeState(), build_callbacks(cfg, run_dir)
    if last is not None:  # the rates that were found lie in the optimiser's state
        named = {name: callback for name, callback in named.items() if not isinstance(callback, LearningRateFinder)}
    history, step = History(run_dir / "history.csv", pace), saved.get("global_step", 0)
    versions = versions_of(asked_of(run_dir).get("loggers"))
    trainer = build_trainer(cfg, run_dir, [pace, *named.values(), history, *callbacks], state, step, versions)
    check_processes(cfg, trainer)
    check_device(cfg, trainer)
    check_resumed(cfg, saved, trainer, run_dir)
    if isinstance(data, ImageDataModule):
        read_data(cfg, data, saved.get("ImageDataModule"), recorded, run_dir)
    own = own_code([OmegaConf.to_container(cfg)])
    torch.manual_seed(cfg.seeds.weights)
    module = build_module(cfg, data)
    doubts = check_module(cfg, module, data, trainer)
    if last is not None and isinstance(module, Classifier):
        # Lightning loads them, after callbacks have seen the weights that a run begins with.
        load_weights(build_module(cfg, data), last, saved, prefix="")
    if cfg.compile is not None:
        if not isinstance(module, Classifier):
            raise UserError(f"compile compiles a Classifier's network: call torch.compile in {type(module).__name__}")
        module.net.compile(mode=cfg.compile)
    if any(isinstance(callback, LearningRateFinder) for callback in named.values()) and isinstance(module, Classifier):
        if module.make_schedule is not None:
            raise UserError("callbacks: LearningRateFinder finds one rate for all steps: use schedule=none")
        module.lr = torch.nan  # type: ignore[assignment]  # where Lightning writes the rate, too
    for callback in named.values():
        if isinstance(callback, StochasticWeightAveraging) and callback.pl_module_contains_batch_norm(module):
            raise UserError(
                "callbacks: StochasticWeightAveraging adds an epoch for BatchNorm layers: use callbacks=ema"
            )
    path = choose_step_path(trainer, data, module, named)
    return Experiment(data, module, trainer, history, state, path, last, step, doubts, own)


def check_module(
    cfg: DictConfig, module: L.LightningModule, data: L.LightningDataModule, trainer: L.Trainer
) -> list[str]:
    """Check that our classifier fits the data, the loss and the optimiser; of another's nothing is known.

    Returns:
        What works, but is hardly meant.
    """
    if not isinstance(module, Classifier):
        return []
    check_optimizer(module.net, module.make_optimizer, module.make_schedule)
    if not isinstance(data, ImageDataModule):
        return []
    doubts = check_fit(cfg, module.net, module.loss, data)
    check_batches(module.net, data, trainer)
    module.example_input_array = trainer.precision_plugin.convert_input(torch.zeros(1, *data.shape))
    return doubts


def build_callbacks(cfg: DictConfig, run_dir: Path) -> dict[str, L.Callback]:
    """Make the callbacks that a config describes, by their names there.

    A `ModelCheckpoint` without a `dirpath` keeps its files in the run's folder, in checkpoints/NAME.

    Raises:
        UserError: one is no callback, or is refused.
    """
    found: dict[str, L.Callback] = {}
    for key, described in cfg.callbacks.items():
        callback = build(cfg, f"callbacks.{key}") if OmegaConf.is_dict(described) else None
        if not isinstance(callback, L.Callback):
            raise UserError(f"callbacks.{key} is no Lightning callback: it needs a _target_ that is one")
        for kind, instead in REFUSED.items():
            if isinstance(callback, kind):
                raise UserError(f"callbacks.{key}: Lightning's {kind.__name__} is not supported. {instead}")
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run_dir / "checkpoints" / str(key))
        found[key] = callback
    return found


def read_data(
    cfg: DictConfig,
    data: ImageDataModule,
    began_with: Mapping[str, Any] | None,
    recorded: Mapping[str, Any],
    run_dir: Path,
) -> None:
    """Read and divide the images: those that a run began with, wherever they are now.

    Args:
        cfg: the run's config, whose `data.root` becomes the folder where they were found.
        data: not read yet.
        began_with: what the checkpoint says of them; None where there is none.
        recorded: what a run that is repeated has recorded of them.
        run_dir: the run's folder.

    Raises:
        UserError: they can't be had, or others are there.
    """
    before = data.root
    read_recorded(data, recorded if began_with is None else began_with)
    if data.root != before:
        cfg.data.root = str(data.root)
    data.prepare_data()
    data.setup()
    assert data.images is not None
    if began_with is not None and began_with.get("digest", data.images.digest) != data.images.digest:
        raise UserError(
            f"{relative(run_dir)} began with other images than {data.images.name} has now, and those that it learned "
            "from may be among today's validation or test images. To go on, put the files back as they were; to use "
            "those of now, start a new run"
        )
