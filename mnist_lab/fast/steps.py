"""The steps of a `FastClassifier`: several in one training step of Lightning, or one at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import lightning as L
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch.nn.modules.conv import _ConvNd

from mnist_lab.data import ImageDataModule
from mnist_lab.fast.chunks import Chunks
from mnist_lab.fast.classifier import FastClassifier
from mnist_lab.training.schedules import split_options

HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_validation_batch_start", "on_validation_batch_end"),
    *("on_test_batch_start", "on_test_batch_end"),
)
"""A callback with one of these follows single steps."""
AUTOMATIC = (GradientAccumulationScheduler, LearningRateFinder, StochasticWeightAveraging)
"""Callbacks that change the schedule or the number of batches of a step, which Lightning must make for that."""

SEVERAL, SINGLE = "several at a time", "one at a time"


@dataclass(frozen=True)
class StepPath:
    """The way in which steps are made, as results record it.

    Attributes:
        steps: "several at a time" or "one at a time".
        why: for a `FastClassifier` that makes one at a time, the reason; else None.
    """

    steps: str = SINGLE
    why: str | None = None


def choose_step_path(
    trainer: L.Trainer, data: L.LightningDataModule, module: L.LightningModule, named: Mapping[str, Callback]
) -> StepPath:
    """Have a `FastClassifier` make several steps at a time, unless something follows them one by one or cuts them.

    Args:
        trainer: before its `fit`, with all callbacks.
        data: before its loaders are made.
        module: any; others than `FastClassifier` itself make one step at a time.
        named: the callbacks of the config, by name.
    """
    if not isinstance(module, FastClassifier):
        return StepPath()
    if (why := _why_single(trainer, data, module, named)) is not None:
        return StepPath(why=why)
    assert isinstance(data, ImageDataModule)
    # Who stops a run waits for the step to end, which takes long where layers convolve.
    convolves = any(isinstance(layer, _ConvNd) for layer in module.net.modules())
    data.make_batches = partial(Chunks, images_at_once=2048 if convolves else 4096)
    on_cpu, compiled = trainer.strategy.root_device.type == "cpu", _is_compiled(module)
    plain = trainer.precision == "32-true" and not trainer._detect_anomaly
    steps = (trainer.max_epochs or 0) * len(data.train_index) // data.batch_size
    # To write a step out takes the time that 300 repeated ones save.
    module.make_several_steps(on_cpu and plain and not compiled and steps >= 300, compiled)
    if on_cpu:
        # Lightning has PyTorch look for GPUs anew, which takes 0.1 ms, whenever it is asked: Adam asks at each step.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    return StepPath(SEVERAL)


def _why_single(
    trainer: L.Trainer, data: L.LightningDataModule, module: FastClassifier, named: Mapping[str, Callback]
) -> str | None:
    """Return why steps are made one at a time; None where nothing asks for it."""
    if type(module) is not FastClassifier:
        return f"{type(module).__name__} may change them"
    if not isinstance(data, ImageDataModule):
        return f"{type(data).__name__} has loaders of its own"
    if data.loader != "memory":
        return f"data.loader={data.loader} makes mini-batches one by one"
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes average their gradients at each"
    options = {
        "gradient_clip_val": trainer.gradient_clip_val is not None,
        "accumulate_grad_batches": trainer.accumulate_grad_batches != 1,
        "precision": trainer.precision == "16-mixed",
        "max_steps": trainer.max_steps != -1,
        "fast_dev_run": bool(trainer.fast_dev_run),  # type: ignore[attr-defined]
        "overfit_batches": trainer.overfit_batches != 0,  # type: ignore[attr-defined]
    }
    options |= {
        key: not is_whole(getattr(trainer, key, None))
        for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval")
    }
    if asked := [f"trainer.{key}" for key, is_asked in options.items() if is_asked]:
        return f"{asked[0]} asks for it"
    timing = {} if module.make_schedule is None else split_options(module.make_schedule)[1]
    if timing.get("interval") == "step" and len(timing) > 1:  # frequency or monitor, which Lightning knows how to do
        return "schedule.interval=step asks for it"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if follows_steps(callback):
            names = [f"callbacks.{name}" for name, other in named.items() if other is callback]
            return f"{(*names, type(callback).__name__)[0]} follows them"
    return None


def follows_steps(callback: Callback) -> bool:
    """Return whether a callback has a hook on single steps or batches, and needs each to be one of the optimiser's."""
    if getattr(callback, "takes_chunks", False):
        return False
    if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps == 0:
        return False
    if isinstance(callback, AUTOMATIC):
        return True
    return any(getattr(type(callback), hook) is not getattr(Callback, hook) or hook in vars(callback) for hook in HOOKS)


def is_whole(share: float | None) -> bool:
    """Return whether Lightning takes a limit as a whole epoch: 1.0, and not 1, which it takes as one batch."""
    return isinstance(share, float) and share == 1.0


def _is_compiled(module: FastClassifier) -> bool:
    return module.net._compiled_call_impl is not None
