"""What a run writes about itself: its config, its result, its row in TensorBoard's HParams."""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from mnist_lab.data import ImageDataModule
from mnist_lab.data.facts import test_facts
from mnist_lab.files import marked, write_whole
from mnist_lab.models import NeuronForwardPass
from mnist_lab.result import SCHEMA_VERSION, Result, code_state, cores, most_memory, package_versions, processor
from mnist_lab.show.tensorboard import CHARTS
from mnist_lab.training import Classifier, History, ending
from mnist_lab.training.loggers import log_config
from mnist_lab.trust import seal

HPARAMS = ".hparams"
"""The end of the name of TensorBoard's file with the run's row in the HParams tab."""


@dataclass(frozen=True)
class Experiment:
    """The objects that a config describes, ready to train.

    Attributes:
        data: read and divided.
        module: the network with its loss and optimiser.
        trainer: with all callbacks and loggers.
        history: one row an epoch.
        last: the checkpoint to go on from; None: the training begins.
        step: of the optimiser, from which on it trains.
        doubts: what works, but is hardly meant.
        own: the user's own code, as it is now: files may be edited while it trains.
    """

    data: ImageDataModule
    module: Classifier
    trainer: L.Trainer
    history: History
    last: Path | None
    step: int
    doubts: list[str]
    own: dict[str, Any]


def begin(cfg: DictConfig, run_dir: Path, asked: dict[str, Any], trainer: L.Trainer) -> None:
    """Write what a run is and what it was asked for; forget the result of a shorter one that goes on."""
    text = marked(OmegaConf.to_yaml(cfg))
    (run_dir / "result.json").unlink(missing_ok=True)
    write_whole(run_dir / "config.yaml", text)
    write_whole(run_dir / "run.json", json.dumps(asked | {"seal": seal(text)}) + "\n")
    if isinstance(trainer.logger, TensorBoardLogger):
        for row in Path(trainer.logger.log_dir).glob(f"*{HPARAMS}"):  # TensorBoard keeps the first that it reads
            row.unlink()
        trainer.logger.experiment.add_custom_scalars(CHARTS)


def result_of(
    cfg: DictConfig, asked: Mapping[str, Any], made: Experiment, tested: int, started_at: str, seconds: dict[str, float]
) -> Result:
    """Return what a run has found, after its test.

    Args:
        cfg: the run's config.
        asked: `command`, `overrides`, and `remarks` that readers must know.
        made: what was trained and tested.
        tested: the epoch whose weights were tested, from 1.
        started_at: ISO 8601 with time zone.
        seconds: start, train, test.
    """
    data, module, trainer, history = made.data, made.module, made.trainer, made.history.rows
    measured = module.metrics
    return Result(
        schema_version=SCHEMA_VERSION,
        name=cfg.name,
        command=shlex.join(["python", "-m", "mnist_lab", *asked["command"]]),
        overrides=asked["overrides"],
        config=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
        seed=cfg.seed,
        started_at=started_at,
        code=code_state() | made.own,
        packages=package_versions(),
        machine=machine(trainer),
        data=data_facts(cfg, data) | test_facts(data, int(measured["test/n"]), trainer.world_size),
        model={
            "target": cfg.model._target_,
            "parameters": sum(p.numel() for p in module.net.parameters()),
            "trainable_parameters": sum(p.numel() for p in module.net.parameters() if p.requires_grad),
        },
        history=history,
        test={
            "loss": measured["test/loss"],
            "acc": measured["test/acc"],
            "correct": round(measured["test/acc"] * measured["test/n"]),
            "n": int(measured["test/n"]),
            "checkpoint": cfg.test_checkpoint,
            "epoch": tested,
        },
        ended={"by": ending.reason(trainer, len(history)), "epochs": len(history), "steps": trainer.global_step},
        seconds={name: round(value, 3) for name, value in seconds.items()},
        notes=[
            *notes(cfg, data, [*history, measured], module.processes),
            *cut_short(module, len(history)),
            *asked["remarks"],
            *made.doubts,
        ],
        extras=extras(trainer),
    )


def notes(
    cfg: DictConfig,
    data: ImageDataModule,
    measured: Sequence[Mapping[str, float | None]],
    processes: Sequence[int] = (),
) -> list[str]:
    """What nobody who reads the numbers may miss.

    Args:
        cfg: the run's config.
        data: its data.
        measured: metrics by name; those that are not finite deserve a note.
        processes: how many have trained, one number after the other where a resumed run had others than before.
    """
    found = [] if data.stand_in is None else [data.stand_in]
    if data.val == "test":
        found.append("The test set was looked at while training: it was the validation set (data.val=test).")
        if cfg.test_checkpoint == "best" or "early_stopping" in cfg.callbacks:
            found.append("It chose the epoch that was tested: the test result is better than on images never seen.")
    if len(processes) > 1:
        found.append(
            f"The number of processes has changed, {' → '.join(map(str, processes))}: the same run with one number for "
            "all of it has other random numbers and rounding."
        )
    if any(value is not None and not math.isfinite(value) for row in measured for value in row.values()):
        found.append("Training diverged: a loss is infinite or not a number. A smaller optimizer.lr may help.")
    return found


def cut_short(module: Classifier, epochs: int) -> list[str]:
    """Return a note on the last epoch where a limit has cut it short."""
    seen, there = module.mini_batches_done
    if seen >= there:
        return []
    return [
        f"Epoch {epochs} was cut short after {seen:,} of {there:,} mini-batches: its training loss and accuracy are of "
        "those alone."
    ]


def machine(trainer: L.Trainer) -> dict[str, Any]:
    """What it ran on."""
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "accelerator": device.type,
        "precision": trainer.precision,
        "accelerator_name": torch.cuda.get_device_name(device) if on_gpu else None,
        "processes": trainer.world_size,
        "memory_gb": most_memory(),
        "accelerator_memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 3) if on_gpu else None,
    }


def data_facts(cfg: DictConfig, data: ImageDataModule) -> dict[str, Any]:
    """Which data it really was."""
    images = data.images
    assert images is not None
    return {
        "requested": data.data_name,
        "name": images.name,
        "fallback": data.fallback_reason,
        "digest": images.digest,
        "files": images.files if len(images.files) <= 20 else {},
        "classes": list(data.class_names),
        "train": len(data.train_index),
        "val": data.val_count,
        "test": len(images.test_labels),
        "val_from": cfg.data.val,
    }


def extras(trainer: L.Trainer) -> dict[str, Any]:
    """What only some networks have: the output of the article's neuron."""
    passes = [c for c in trainer.callbacks if isinstance(c, NeuronForwardPass)]  # type: ignore[attr-defined]
    return {"forward_pass": passes[0].output} if passes else {}


def log_hyperparameters(trainer: L.Trainer, result: Result) -> None:
    """Give TensorBoard the run's row in the HParams tab, with its test metrics, and the config as text.

    Other loggers get the test's metrics and the config as they take them.
    """
    logger = trainer.logger
    if logger is None:
        return
    # What a process wrote that was killed now is forgotten when the run goes on: that is after its last step.
    measured = {"test/acc": result.test["acc"], "test/loss": result.test["loss"], "epoch": trainer.current_epoch}
    logger.log_metrics(measured, trainer.global_step)
    if not isinstance(logger, TensorBoardLogger):
        log_config(logger, result.config)
        return
    from torch.utils.tensorboard import FileWriter
    from torch.utils.tensorboard.summary import hparams

    config = result.config
    chosen = {
        "name": result.name,
        "data": result.data["name"],
        "seed": result.seed,
        "data.batch_size": config["data"].get("batch_size"),
        "train_size": result.data["train"],
        "trainer.max_epochs": config["trainer"]["max_epochs"],
        "parameters": result.model["parameters"],
    }
    for section in ("model", "optimizer", "schedule"):
        chosen[section] = config[section].get("_target_", "none").rpartition(".")[2]
        chosen |= {
            f"{section}.{key}": value
            for key, value in config[section].items()
            if key not in ("_target_", "_partial_", "input_shape", "num_classes", "fused")
        }
    for word in result.overrides:
        key, _, text = word.lstrip("+").partition("=")
        if key != "report" and not key.startswith("callbacks.dashboard"):  # which change no number
            value = OmegaConf.select(OmegaConf.create(config), key) if "." in key else text
            chosen.setdefault(key, text if value is None else value)
    chosen = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in chosen.items()
        if value is not None
    }
    logger.experiment.add_text("config", "```yaml\n" + OmegaConf.to_yaml(OmegaConf.create(config)) + "```")
    logger.experiment.add_text("command", f"`{result.command}`")
    logger.finalize("success")
    logger.save()
    row = FileWriter(logger.log_dir, filename_suffix=HPARAMS)
    for summary in hparams(chosen, {})[1:]:  # the first fixes the tab's columns, for all runs to those of one
        row.add_summary(summary)
    row.close()
