"""The Lightning Trainer of a run, from its config."""

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

from mnist_lab.errors import UserError, brief
from mnist_lab.fast.process import BFLOAT16
from mnist_lab.metrics import MONITOR, mode_of
from mnist_lab.processes import ANSWER_WITHIN, started_together
from mnist_lab.training import (
    Checkpoints,
    Divergence,
    EpochProgress,
    LayerTable,
    ResumeState,
    SharedBuffers,
    ValidatedWeights,
    WholeFiles,
)
from mnist_lab.training.ending import ValidatedEnd
from mnist_lab.training.loggers import make_loggers
from mnist_lab.training.pace import StepLoss


def build_trainer(
    cfg: DictConfig,
    run_dir: Path,
    callbacks: list[Callback],
    state: ResumeState | None = None,
    step: int = 0,
    versions: Sequence[str | int | None] = (),
) -> L.Trainer:
    """Make the Lightning Trainer, with the callbacks that every run has, and its loggers.

    Args:
        cfg: the run's config.
        run_dir: the run's folder.
        callbacks: those of this run.
        state: what checkpoints keep besides; None: a new one.
        step: of the optimiser, from which on the run trains.
        versions: what loggers called the run before it was stopped.

    Raises:
        UserError: an option that Lightning refuses, or an accelerator that isn't here.
    """
    # TensorBoard writes through TensorFlow where that is installed, and imports all of it first: 4 s and 0.7 GB.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    loggers = make_loggers(cfg.logger, run_dir, step, versions)
    try:
        trainer: L.Trainer = instantiate(
            cfg.trainer,
            precision=precision_of(cfg),
            logger=loggers or False,
            callbacks=_all_callbacks(cfg, run_dir, callbacks, state or ResumeState()),
            default_root_dir=run_dir,
            enable_model_summary=False,  # LayerTable is ours
            enable_checkpointing=True,  # Checkpoints is ours
            **distributed_arguments(cfg),
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


def _all_callbacks(cfg: DictConfig, run_dir: Path, callbacks: list[Callback], state: ResumeState) -> list[Callback]:
    """Return the callbacks of a run among those that every run has, in the order in which Lightning calls them."""
    number, unit = OmegaConf.select(cfg, "checkpoint.every", default="1 epoch").split()
    divergence = Divergence()
    judged = (monitor := cfg.get("monitor", MONITOR)), mode_of(monitor, cfg.get("mode"))
    checkpoints = Checkpoints(
        run_dir / "checkpoints",
        int(number),
        unit.rstrip("s"),
        *judged,
        limits_of(cfg),
        divergence,
        writes=cfg.trainer.get("enable_checkpointing") is not False,
    )
    # Progress is shown once: by a bar of the user's own, or by none.
    shown = cfg.trainer.get("enable_progress_bar", True) and not any(isinstance(c, ProgressBar) for c in callbacks)
    bars = [EpochProgress()] if shown else []
    tables = [LayerTable()] if cfg.trainer.get("enable_model_summary", True) else []
    steps = [StepLoss()] if cfg.trainer.get("log_every_n_steps") is not None else []
    first = [ValidatedWeights(checkpoints), divergence, SharedBuffers(), ValidatedEnd()]
    # Checkpoints come last: they hold what the others know of the epoch, its row in the history among it.
    return [*first, *bars, *tables, *steps, *callbacks, state, checkpoints]


def limits_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the values of the options that end a training."""
    limits = {key: cfg.trainer.get(key) for key in ("max_epochs", "max_steps", "max_time")}
    return OmegaConf.to_container(OmegaConf.create(limits))  # type: ignore[return-value]


def precision_of(cfg: DictConfig) -> str:
    """Return the precision by Lightning's name; for auto bf16-mixed where the device computes in it, else 32-true."""
    if cfg.trainer.precision != "auto":
        return str(cfg.trainer.precision)
    on_gpu = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else BFLOAT16
    return "bf16-mixed" if fast else "32-true"


def distributed_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Return the Trainer's arguments for a run of several processes, started by torchrun, SLURM or us."""
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
