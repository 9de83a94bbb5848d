"""How steps are made: several in one training step of Lightning's, or one by one."""

from __future__ import annotations

import os

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.nn.modules.conv import _ConvNd

from mnist_lab.data import ImageDataModule
from mnist_lab.fast.replay import Replay
from mnist_lab.training import Checkpoints, Classifier, EpochProgress


def choose_step_path(trainer: L.Trainer, data: ImageDataModule, module: Classifier) -> None:
    """Make several steps of the optimiser in one training step, unless something follows them one by one.

    Replay the operations of the first step where they are the same at each.
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
    limited = not all(map(is_whole, (*parts, interval))) or trainer.overfit_batches != 0  # type: ignore[attr-defined]
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


def is_whole(share: float | None) -> bool:
    """Return whether Lightning takes a limit as a whole epoch: 1.0, and not 1, which it takes as one batch."""
    return isinstance(share, float) and share == 1.0
