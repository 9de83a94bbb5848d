"""Checks of config, network, data, device and checkpoint against each other, before a run begins."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mnist_lab.data import ImageDataModule
from mnist_lab.errors import UserError, brief
from mnist_lab.fast.process import BFLOAT16, X86
from mnist_lab.fast.steps import is_whole
from mnist_lab.network import fault_of_one_image, give_logits
from mnist_lab.processes import started_together
from mnist_lab.terminal import relative
from mnist_lab.trainer import limits_of, precision_of
from mnist_lab.training.schedules import Plateau, make_schedule, split_options


def check_time_left(trainer: L.Trainer, states: dict[str, Any]) -> None:
    """Refuse to resume where the training has used up its time limit.

    Args:
        trainer: before its `fit`.
        states: those of the callbacks, in the checkpoint to go on from; empty where there is none.

    Raises:
        UserError: a Timer, as trainer.max_time makes it, would end the training before its first step.
    """
    for timer in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(timer, Timer) and timer.state_key in states:
            used, allowed = states[timer.state_key]["time_elapsed"]["train"], timer.time_remaining()
            if allowed is not None and used >= allowed:
                raise UserError(
                    f"the run has trained for {used:.1f} s of the {allowed:g} s that it may: to go on, raise that "
                    "limit, as in 'trainer.max_time={minutes: 10}'"
                )


def check_processes(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Refuse a number of processes that would leave some waiting, or have each do the whole run.

    Raises:
        UserError: torchrun or SLURM has started another number of processes than the run is for, or has to.
    """
    by, count = started_together()
    wanted, asked = trainer.num_devices * trainer.num_nodes, cfg.trainer
    if by and wanted != count:
        raise UserError(
            f"{by} has started {count} processes, and the run is for {wanted} (trainer.devices={asked.devices}, "
            f"trainer.num_nodes={asked.num_nodes}): add trainer=ddp trainer.devices={count}, or start {wanted}"
        )
    if not by and trainer.num_nodes > 1:
        raise UserError(f"trainer.num_nodes={asked.num_nodes} needs srun or torchrun, which start processes on each")
    if any(word in asked.strategy for word in ("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy={asked.strategy} is not allowed: its processes can't share a run. Use ddp")


def check_device(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Refuse what the device cannot do, where Lightning or PyTorch would do something else or fail halfway.

    Raises:
        UserError: a precision without arithmetic on the device, or a compilation without its compiler.
    """
    device, precision = trainer.strategy.root_device.type, precision_of(cfg)
    if device == "cpu" and precision.startswith("16"):
        raise UserError(
            f"trainer.precision={precision} needs a GPU, and this runs on {device}: "
            "trainer.precision=auto takes bf16-mixed where the processor has arithmetic for it"
        )
    if device == "cpu" and precision.startswith("bf16") and X86 and not BFLOAT16:
        raise UserError(
            f"trainer.precision={precision} needs a processor with AVX-512 BF16 or AMX; this one would imitate "
            "it, several times as slowly as in float32: use trainer.precision=32-true, or auto"
        )
    if cfg.compile is None:
        return
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(f"compile={cfg.compile} needs Triton on a GPU: pip install triton, or leave compile=null")
    compilers = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if device == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(
            f"compile={cfg.compile} needs a C++ compiler, and there is none of {', '.join(compilers)}: "
            "install one, or leave compile=null"
        )
    if device == "cuda" and cfg.compile != "default" and cfg.trainer.accumulate_grad_batches > 1:
        raise UserError(
            f"compile={cfg.compile} replays CUDA graphs, which overwrite the gradients that "
            f"trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches} adds to: use compile=default"
        )
    if device == "mps":
        raise UserError(f"compile={cfg.compile} has not been made for {device}: leave compile=null")


def check_fit(cfg: DictConfig, net: nn.Module, loss: Any, data: ImageDataModule) -> list[str]:
    """Pass two blank images through the network, its outputs through the loss, and images through the augmentation.

    Returns:
        What works, but is hardly meant.

    Raises:
        UserError: the network can't take images of the data's shape, gives something else than one output a class, the
            loss can't use that, or the augmentation can't be called as it is.
    """
    images = torch.zeros(2, *data.shape)
    classes = len(data.class_names)
    what = f"{cfg.model._target_} can't be used with data={cfg.data.name}"
    try:
        logits = give_logits(net, images)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{what}: it doesn't take images of the shape {list(data.shape)} ({brief(error)})") from error
    if tuple(logits.shape) != (2, classes):
        hint = ": data.one_vs_rest leaves two classes, add model.num_classes=2" if data.one_vs_rest is not None else ""
        raise UserError(f"{what}: for two images it gives {list(logits.shape)}, where {[2, classes]} is needed{hint}")
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            value = loss(logits, torch.zeros(2, dtype=torch.int64))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"loss: {cfg.loss._target_} can't be used on logits and labels: {brief(error)}") from error
    if isinstance(loss, nn.Module) and any(weight.requires_grad for weight in loss.parameters()):
        raise UserError(f"loss: {cfg.loss._target_} has weights to learn, and only those of the network are trained")
    if getattr(loss, "reduction", None) == "sum":
        raise UserError("loss.reduction=sum is not allowed: a loss is the mean over a batch's images")
    if not isinstance(value, torch.Tensor) or value.dim() != 0:
        raise UserError(f"loss: {cfg.loss._target_} doesn't give one number for a batch")
    _ = data.evaluation  # it refuses a transform of which it can't be told what evaluation needs
    if data.augment is not None:
        needed = "augment(images float32 (B, C, H, W), 0 to 255, torch.Generator) gives such images"
        try:
            changed = data.augment(images.clone(), torch.Generator())
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"data.augment: {needed}, and {cfg.data.augment._target_} can't: {brief(error)}") from error
        if not isinstance(changed, torch.Tensor) or changed.shape != images.shape:
            raise UserError(f"data.augment: {needed}, and {cfg.data.augment._target_} doesn't")
    sums_to_one = bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(2), atol=1e-4)
    if sums_to_one and isinstance(loss, nn.CrossEntropyLoss):
        return [
            f"{cfg.model._target_} gives probabilities, and cross entropy takes logits, to which it applies softmax "
            "itself: a network here ends without one."
        ]
    return []


def check_batches(net: nn.Module, data: ImageDataModule, trainer: L.Trainer) -> None:
    """Refuse a last mini-batch of one image where the network can't train on one: batch normalisation needs two values.

    Raises:
        UserError: an epoch ends with one image, and the network can train on two, but not on one.
    """
    last = len(data.train_index) % data.batch_size or data.batch_size
    shares = {last // trainer.world_size, -(-last // trainer.world_size)}
    limit, batches = trainer.limit_train_batches, -(-len(data.train_index) // data.batch_size)
    comes = 1 in shares and (is_whole(limit) or (isinstance(limit, int) and limit >= batches))
    if comes and (fault := fault_of_one_image(net, data.shape)) is not None:
        raise UserError(
            f"data.batch_size={data.batch_size} leaves one image for the last of {len(data.train_index):,} training "
            f"images' mini-batches, and the network can't train on one: choose another ({fault})"
        )


def check_optimizer(net: nn.Module, optimizer: Any, schedule: Any) -> None:
    """Make the optimiser and the schedule once: Lightning makes them only when the training begins.

    Raises:
        UserError: one of them doesn't take what the config gives it.
    """
    section = "optimizer"
    if schedule is not None and not isinstance(schedule, dict) and not callable(schedule):
        raise UserError(f"schedule: {type(schedule).__name__} can't be called with an optimizer: add _partial_: true")
    if isinstance(schedule, dict):
        raise UserError(f"schedule: {', '.join(schedule)} is set, but no _target_: schedule=none has no options")
    try:
        made = optimizer(net.parameters())
        name = type(made).__name__
        closure = inspect.signature(type(made).step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise UserError(f"optimizer: {name} computes the loss several times a step, which training here doesn't")
        section = "schedule"
        trial = None if schedule is None else make_schedule(schedule, made, 100, 1)[0]
        options = {} if schedule is None else split_options(schedule)[1]
        follows = isinstance(trial, ReduceLROnPlateau) and not isinstance(trial, Plateau)
        if follows and "monitor" not in options:
            raise UserError("schedule: ReduceLROnPlateau doesn't say by which metric: add +schedule.monitor=val/loss")
        if "monitor" in options and not follows:
            raise UserError(f"schedule.monitor has no effect: {type(trial).__name__} follows no metric")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{section}: {brief(error)}") from error


def check_resumed(cfg: DictConfig, saved: dict[str, Any], trainer: L.Trainer, run_dir: Path) -> None:
    """Check that a training can go on from a checkpoint with the limits and processes that it has now.

    Args:
        cfg: the run's config.
        saved: the checkpoint; empty where there is none.
        trainer: before its `fit`.
        run_dir: the run's folder.

    Raises:
        UserError: it can't.
    """
    if "within_epoch" not in saved and saved.get("counted", {}).get("sums"):
        raise UserError(
            f"{relative(run_dir)} was stopped in the middle of epoch {saved['epoch'] + 1} by an earlier version, whose "
            "checkpoint this one can't go on from. Commit f9043fd can, and this one from an epoch's end"
        )
    check_regrouped(saved, trainer.world_size, run_dir)
    states = saved.get("callbacks", {})
    if states.get("Checkpoints", {}).get("over") != limits_of(cfg):
        check_time_left(trainer, states)
    done = len(states["History"]["rows"]) if "History" in states else 0
    epochs = done + saved.get("within_epoch", False)
    if -1 != cfg.trainer.max_epochs < epochs:
        raise UserError(
            f"trainer.max_epochs={cfg.trainer.max_epochs} is not allowed: {relative(run_dir)} has had more already, "
            f"trainer.max_epochs={epochs} is the least"
        )


def check_regrouped(saved: dict[str, Any], processes: int, run_dir: Path) -> None:
    """Refuse to resume in the middle of an epoch with another number of processes.

    What has been counted of an epoch, and the random numbers' state, are each process's own.

    Args:
        saved: the checkpoint to go on from; empty where there is none.
        processes: how many there are now.
        run_dir: the run's folder.

    Raises:
        UserError: the checkpoint is in the middle of an epoch, of another number of processes.
    """
    *_, before = saved.get("processes", [processes])
    if before != processes and saved.get("within_epoch"):
        raise UserError(
            f"{relative(run_dir)} was stopped in the middle of epoch {saved['epoch'] + 1} with {before} process(es), "
            f"and {processes} can't go on from there, only from an epoch's end. To go on with as many as before: "
            f"python -m mnist_lab resume {shlex.quote(str(relative(run_dir)))} trainer.devices={before}"
        )
