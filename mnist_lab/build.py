"""From a checked config to the objects that it describes, with every mistake told before a run begins."""

from __future__ import annotations

import importlib.util
import inspect
import os
import platform
import shutil
import sys
import warnings
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
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mnist_lab.data import ImageDataModule
from mnist_lab.data.moved import read_recorded
from mnist_lab.errors import UserError
from mnist_lab.network import check_module, fault_of_one_image, give_logits
from mnist_lab.processes import ANSWER_WITHIN, started_together
from mnist_lab.result import Result
from mnist_lab.training import (
    Checkpoints,
    Classifier,
    EpochProgress,
    LayerTable,
    Replay,
    ValidatedWeights,
    WholeFiles,
)
from mnist_lab.training.checkpoint_files import read_checkpoint
from mnist_lab.training.loggers import make_logger
from mnist_lab.training.schedules import Plateau, make_schedule

OF_THE_CLASSIFIER = ("gradient_clip_val", "accumulate_grad_batches")
"""Arguments of Lightning's Trainer that our LightningModule sees to: it makes the optimiser's steps itself."""
_X86 = platform.machine() in ("x86_64", "AMD64")
_BFLOAT16 = _X86 and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
"""Whether the processor has arithmetic for it; of those of other kinds nothing is known."""


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


def check_time_left(trainer: L.Trainer, states: dict[str, Any]) -> None:
    """Refuses to go on where the time that the training may take is used up.

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


def precision_of(cfg: DictConfig) -> str:
    """The precision by Lightning's name: for auto bf16-mixed where the device has arithmetic for it, else 32-true."""
    if cfg.trainer.precision != "auto":
        return str(cfg.trainer.precision)
    on_gpu = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _BFLOAT16
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


def check_processes(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Refuses what leaves processes waiting for others that will never come, or has each do the whole run.

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
    """Refuses what the device can't do, where Lightning or PyTorch would do something else or fail halfway.

    Raises:
        UserError: a precision without arithmetic on the device, or a compilation without its compiler.
    """
    device, precision = trainer.strategy.root_device.type, precision_of(cfg)
    if device == "cpu" and precision.startswith("16"):
        raise UserError(
            f"trainer.precision={precision} needs a GPU, and this runs on {device}: "
            "trainer.precision=auto takes bf16-mixed where the processor has arithmetic for it"
        )
    if device == "cpu" and precision.startswith("bf16") and _X86 and not _BFLOAT16:
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


def make_steps_cheap(trainer: L.Trainer, data: ImageDataModule, module: Classifier) -> None:
    """Lets mini-batches share what Lightning does for a training step, unless something follows them one by one.

    And has the operations of the first step repeated.
    """
    hooks = ["on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward"]
    hooks += ["on_after_backward", "on_before_optimizer_step", "on_validation_batch_start", "on_validation_batch_end"]
    hooks += ["on_test_batch_start", "on_test_batch_end"]
    followed = any(
        getattr(type(callback), hook) is not getattr(Callback, hook) or hook in vars(callback)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        for hook in hooks
        if not isinstance(callback, EpochProgress | Checkpoints)
        and not (isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps == 0)
    )
    parts = (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches)
    interval = getattr(trainer, "val_check_interval", None)  # which one of minutes, say, doesn't set
    limited = not all(map(_is_all, (*parts, interval))) or trainer.overfit_batches != 0  # type: ignore[attr-defined]
    if not (followed or limited or trainer.max_steps != -1 or trainer.fast_dev_run):  # type: ignore[attr-defined]
        # Who stops a run waits for the step to end, which takes long where layers convolve.
        convolves = any(isinstance(layer, _ConvNd) for layer in module.net.modules())
        data.images_at_once = 2048 if convolves else 4096
        module.direct = trainer.world_size == 1 and trainer.precision != "16-mixed" and module.clip is None
    on_cpu = trainer.strategy.root_device.type == "cpu"
    plain = trainer.precision == "32-true" and not trainer._detect_anomaly
    steps = (trainer.max_epochs or 0) * len(data.train_index) // data.batch_size
    alone = module.accumulate == 1 and not module.compiled
    if module.direct and on_cpu and plain and alone and steps >= 300:  # to write one out takes what 300 repeated save
        module.replay = Replay(module.net, module.loss)
    if on_cpu:
        # Lightning has PyTorch look for GPUs anew, which takes 0.1 ms, whenever it is asked: Adam asks at each step.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def _is_all(share: float | None) -> bool:
    """Whether Lightning takes this as a whole epoch: 1.0. It takes 1, which Python finds equal, as one batch."""
    return isinstance(share, float) and share == 1.0


def check_fit(cfg: DictConfig, net: nn.Module, loss: Any, data: ImageDataModule) -> list[str]:
    """Sends two blank images through the network, and what it gives through the loss; and through the augmentation.

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
    comes = 1 in shares and (_is_all(limit) or (isinstance(limit, int) and limit >= batches))
    if comes and (fault := fault_of_one_image(net, data.shape)) is not None:
        raise UserError(
            f"data.batch_size={data.batch_size} leaves one image for the last of {len(data.train_index):,} training "
            f"images' mini-batches, and the network can't train on one: choose another ({fault})"
        )


def check_optimizer(net: nn.Module, optimizer: Any, schedule: Any) -> None:
    """Makes both once, for nothing: Lightning makes them only when the training begins.

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
        if isinstance(trial, ReduceLROnPlateau) and not isinstance(trial, Plateau):
            raise UserError("schedule: ReduceLROnPlateau doesn't say by which metric, as schedule=plateau does")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{section}: {brief(error)}") from error


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
