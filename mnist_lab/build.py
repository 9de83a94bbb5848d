"""From a checked config to the objects that it describes, with every mistake told before a run begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mnist_lab.data import ImageDataModule
from mnist_lab.data.moved import read_recorded
from mnist_lab.errors import UserError
from mnist_lab.fast.process import BFLOAT16
from mnist_lab.network import check_module
from mnist_lab.processes import ANSWER_WITHIN, started_together
from mnist_lab.result import Result
from mnist_lab.training import (
    Checkpoints,
    EpochProgress,
    LayerTable,
    ValidatedWeights,
    WholeFiles,
)
from mnist_lab.training.checkpoint_files import read_checkpoint
from mnist_lab.training.loggers import make_logger

OF_THE_CLASSIFIER = ("gradient_clip_val", "accumulate_grad_batches")
"""Arguments of Lightning's Trainer that our LightningModule sees to: it makes the optimiser's steps itself."""


def build(cfg: DictConfig, section: str) -> Any:
    """Makes what a section of the config describes.

    Args:
        cfg: the run's config.
        section: its key, as "model" or "callbacks.early_stopping".

    Raises:
        UserError: its class doesn't exist, or doesn't take what the section gives it.
    """
    described = OmegaConf.select(cfg, section)
    try:
        built = instantiate(described, _convert_="all")
    except (InstantiationException, TypeError) as error:  # the latter of a `_partial_` that is no truth value, say
        cause = error.__cause__
        mistake = cause is None or isinstance(
            cause, TypeError | ValueError | ImportError | AttributeError | RuntimeError
        )
        if not mistake:
            raise
        raise UserError(f"{section}: {described.get('_target_')} can't be made: {brief(cause or error)}") from error
    if section == "data" and not isinstance(built, ImageDataModule):
        raise UserError(
            f"data: {described.get('_target_')} is no mnist_lab.data.ImageDataModule, nor a class made of it"
        )
    return built


def build_network(cfg: DictConfig) -> nn.Module:
    """Make the network that `model` describes.

    Raises:
        UserError: it can't be made, or is no network that can be trained here.
    """
    net = build(cfg, "model")
    check_module(net, cfg.model._target_)
    assert isinstance(net, nn.Module)
    return net


def build_tested(cfg: DictConfig, run_dir: Path) -> ImageDataModule:
    """The data that a run was tested on, read and divided.

    Args:
        cfg: the run's config.
        run_dir: the run's folder.

    Raises:
        UserError: it can't be had; others in its place would make another number of the run's.
    """
    data: ImageDataModule = build(cfg, "data")
    data.fallback = None
    if (run_dir / "result.json").exists():
        read_recorded(data, Result.load(run_dir).data)
    elif (last := run_dir / "checkpoints" / "last.ckpt").exists():
        read_recorded(data, read_checkpoint(last).get("ImageDataModule", {}))
    data.prepare_data()
    data.setup()
    return data


def build_trainer(
    cfg: DictConfig, run_dir: Path, callbacks: list[Callback], step: int = 0, versions: Sequence[str | int | None] = ()
) -> L.Trainer:
    """The Lightning Trainer, with the callbacks that every run has and its loggers.

    Args:
        cfg: the run's config.
        run_dir: the run's folder.
        callbacks: those of this run.
        step: of the optimiser, from which on the run trains.
        versions: what loggers called the run before it was stopped.

    Raises:
        UserError: an option that Lightning refuses, or an accelerator that isn't here.
    """
    number, unit = OmegaConf.select(cfg, "checkpoint.every", default="1 epoch").split()
    best = cfg.data.val != "none"
    checkpoints = Checkpoints(run_dir / "checkpoints", int(number), unit.rstrip("s"), best, limits_of(cfg))
    # TensorBoard writes through TensorFlow where that is installed, and imports all of it first: 4 s and 0.7 GB.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    logger = make_logger(cfg.logger, run_dir, step, next(iter(versions), None))
    # Progress is shown once: by a bar of the user's own, or by none.
    shown = cfg.trainer.get("enable_progress_bar", True) and not any(isinstance(c, ProgressBar) for c in callbacks)
    bars = [EpochProgress()] if shown else []
    tables = [LayerTable()] if cfg.trainer.get("enable_model_summary", True) else []
    try:
        trainer: L.Trainer = instantiate(
            OmegaConf.masked_copy(cfg.trainer, [key for key in cfg.trainer if key not in OF_THE_CLASSIFIER]),
            precision=precision_of(cfg),
            logger=logger or False,
            # Checkpoints come last: they hold what the others know of the epoch, its row in the history among it.
            callbacks=[ValidatedWeights(checkpoints), *bars, *tables, *callbacks, checkpoints],
            default_root_dir=run_dir,
            enable_model_summary=False,  # LayerTable is ours
            **distributed_arguments(cfg),
            # Batches are made by position on the device, each process its share: there is no sampler to replace.
            use_distributed_sampler=False,
            _convert_="all",
        )
    except InstantiationException as error:
        cause = error.__cause__ or error
        if not isinstance(
            cause,
            MisconfigurationException | ValueError | TypeError | RuntimeError | ImportError | InstantiationException,
        ):
            raise
        asked = cfg.trainer.accelerator
        hint = f" trainer.accelerator={asked}: use trainer=cpu, or auto" if asked not in ("auto", "cpu") else ""
        raise UserError(f"trainer: {brief(cause)}{hint}") from error
    if not isinstance(trainer, L.Trainer):
        raise UserError(f"trainer: {cfg.trainer._target_} is no lightning.Trainer, nor a class made of it")
    trainer.strategy.checkpoint_io = WholeFiles()
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, PassThroughProfiler) and profiler.filename is None:
        profiler.dirpath, profiler.filename = run_dir, "profile"  # else its report goes to Lightning's log, unseen
    return trainer


def limits_of(cfg: DictConfig) -> dict[str, Any]:
    """The values of the options that end a training."""
    limits = {key: cfg.trainer.get(key) for key in ("max_epochs", "max_steps", "max_time")}
    return OmegaConf.to_container(OmegaConf.create(limits))  # type: ignore[return-value]


def precision_of(cfg: DictConfig) -> str:
    """The precision by Lightning's name: for auto bf16-mixed where the device has arithmetic for it, else 32-true."""
    if cfg.trainer.precision != "auto":
        return str(cfg.trainer.precision)
    on_gpu = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else BFLOAT16
    return "bf16-mixed" if fast else "32-true"


def distributed_arguments(cfg: DictConfig) -> dict[str, Any]:
    """The Trainer's arguments for a run of several processes, as torchrun or SLURM has started them or we shall."""
    asked: dict[str, Any] = {}
    if cfg.trainer.strategy == "ddp":
        asked["strategy"] = DDPStrategy(timeout=timedelta(minutes=ANSWER_WITHIN))
    if "SLURM_NTASKS" not in os.environ or "plugins" in cfg.trainer:
        return asked
    by, _ = started_together()
    if by == "srun":
        per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]  # 2(x3): on each of three nodes
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", per_node)  # without which Lightning refuses srun -n
        return asked | {"plugins": [SLURMEnvironment(auto_requeue=False)]}
    # In a batch script or as a single task, where Lightning would wait for tasks that nobody has started.
    return asked | ({"plugins": [LightningEnvironment()]} if by == "" else {})


def load_weights(net: nn.Module, path: Path, saved: dict[str, Any]) -> None:
    """Gives the network the weights of a checkpoint.

    Args:
        net: the network.
        path: the checkpoint's file, as errors name it.
        saved: what `read_checkpoint` found there.

    Raises:
        UserError: they are the weights of another network.
    """
    weights = {k.removeprefix("net."): value for k, value in saved["state_dict"].items() if k.startswith("net.")}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[1].split())
        raise UserError(f"{path} is of another network than the run's config: {reason}") from error


def brief(error: BaseException) -> str:
    """An error's message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
