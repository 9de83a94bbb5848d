"""The records of a run: its config, its result, its row in TensorBoard's HParams."""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from mnist_lab.data import Batches, ImageDataModule
from mnist_lab.data.facts import test_facts
from mnist_lab.environment import code_state, cores, most_memory, package_versions, processor
from mnist_lab.errors import UserError, brief
from mnist_lab.experiment import Experiment
from mnist_lab.files import marked, plain, write_whole
from mnist_lab.models import NeuronForwardPass
from mnist_lab.result import SCHEMA_VERSION, Result
from mnist_lab.schema import RESULT, mismatch
from mnist_lab.show.tensorboard import CHARTS
from mnist_lab.training import Classifier, ending
from mnist_lab.training.loggers import log_config, tensorboard_of
from mnist_lab.training.metrics import precision_recall
from mnist_lab.trust import seal

HPARAMS = ".hparams"
"""The end of the name of TensorBoard's file with the run's row in the HParams tab."""


def begin(cfg: DictConfig, run_dir: Path, asked: dict[str, Any], trainer: L.Trainer) -> None:
    """Write what a run is and what it was asked for, for loggers, too; forget the result of a shorter one."""
    text = marked(OmegaConf.to_yaml(cfg))
    (run_dir / "result.json").unlink(missing_ok=True)
    write_whole(run_dir / "config.yaml", text)
    write_whole(run_dir / "run.json", json.dumps(asked | {"seal": seal(text)}) + "\n")
    if (logger := tensorboard_of(trainer)) is not None:
        for row in Path(logger.log_dir).glob(f"*{HPARAMS}"):  # TensorBoard keeps the first that it reads
            row.unlink()
        logger.experiment.add_custom_scalars(CHARTS)
    for other in trainer.loggers if _logs_config(cfg) else []:
        if not isinstance(other, TensorBoardLogger):  # which gets it at the end, with what the run found
            log_config(other, OmegaConf.to_container(cfg))  # type: ignore[arg-type]


def result_of(
    cfg: DictConfig,
    asked: Mapping[str, Any],
    made: Experiment,
    measured: dict[str, float],
    tested: int,
    started_at: str,
    seconds: dict[str, float],
) -> Result:
    """Return what a run has found, after its test.

    Args:
        cfg: the run's config.
        asked: `command`, `overrides`, and `remarks` that readers must know.
        made: what was trained and tested.
        measured: what the test has logged, by name.
        tested: the epoch whose weights were tested, from 1.
        started_at: ISO 8601 with time zone.
        seconds: start, train, test.
    """
    data, module, trainer, history = made.data, made.module, made.trainer, made.history.rows
    net = module.net if isinstance(module, Classifier) else module
    seen = images_tested(trainer, data)
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
        data=data_facts(cfg, data)
        | (test_facts(data, seen, trainer.world_size) if isinstance(data, ImageDataModule) and seen else {}),
        model={
            "target": cfg.model._target_ if isinstance(module, Classifier) else _name_of(module),
            "parameters": sum(p.numel() for p in net.parameters()),
            "trainable_parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
        },
        module={"target": _name_of(module), "steps": made.path.steps, "why": made.path.why},
        history=history,
        test=tested_metrics(measured, seen)
        | {"classes": tested_classes(module, data), "checkpoint": cfg.test_checkpoint, "epoch": tested},
        ended={"by": ending.reason(trainer, len(history)), "epochs": len(history), "steps": trainer.global_step},
        seconds={name: round(value, 3) for name, value in seconds.items()},
        notes=[
            *notes(cfg, data, [*history, measured], made.state.processes),
            *cut_short(*made.state.progress, len(history)),
            *asked["remarks"],
            *made.doubts,
        ],
        extras=extras(trainer),
    )


def tested_metrics(measured: Mapping[str, float], seen: int | None) -> dict[str, Any]:
    """Return a test's metrics as results have them.

    Args:
        measured: what the test has logged, by name.
        seen: the number of images; None where it isn't known.
    """
    acc = measured.get("test/acc")
    return {
        "loss": measured.get("test/loss"),
        "acc": acc,
        "correct": None if acc is None or seen is None else round(acc * seen),
        "n": seen if measured else None,
        "metrics": {name.removeprefix("test/"): value for name, value in measured.items()},
    }


def tested_classes(module: L.LightningModule, data: L.LightningDataModule) -> list[dict[str, Any]] | None:
    """Return of each class its name, the precision and recall of the test, and its images; None of another's module."""
    if not isinstance(module, Classifier) or not module.confusion.update_called:
        return None
    counts = module.confusion.compute().cpu()
    names = data.class_names if isinstance(data, ImageDataModule) else map(str, range(len(counts)))
    columns = (*(values.tolist() for values in precision_recall(counts)), counts.sum(1).tolist())
    return [
        {"name": name, "precision": precision, "recall": recall, "support": support}
        for name, precision, recall, support in zip(names, *columns, strict=True)
    ]


def images_tested(trainer: L.Trainer, data: L.LightningDataModule) -> int | None:
    """Return the number of images that the test has seen; None for loaders of somebody's own."""
    batches: Any = trainer.test_dataloaders
    if not isinstance(batches, Batches):
        return None
    at_once = batches.steps * batches.batch_size
    return min(len(batches.sampler.index), int(trainer.num_test_batches[0]) * at_once)


def _name_of(module: L.LightningModule) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def notes(
    cfg: DictConfig,
    data: L.LightningDataModule,
    measured: Sequence[Mapping[str, float | None]],
    processes: Sequence[int] = (),
) -> list[str]:
    """Return the remarks that a reader of the numbers must know.

    Args:
        cfg: the run's config.
        data: its data.
        measured: metrics by name; those that are not finite deserve a note.
        processes: how many have trained, one number after the other where a resumed run had others than before.
    """
    ours = data if isinstance(data, ImageDataModule) else None
    found = [ours.stand_in] if ours is not None and ours.stand_in is not None else []
    if ours is not None and ours.val == "test":
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


def cut_short(seen: int, there: int, epochs: int) -> list[str]:
    """Return a note on the last epoch where a limit has cut it short after `seen` mini-batches of `there`."""
    if seen >= there:
        return []
    return [
        f"Epoch {epochs} was cut short after {seen:,} of {there:,} mini-batches: its training loss and accuracy are of "
        "those alone."
    ]


def machine(trainer: L.Trainer) -> dict[str, Any]:
    """Return a description of the machine and of the devices that the run used."""
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


def data_facts(cfg: DictConfig, data: L.LightningDataModule) -> dict[str, Any]:
    """Return which data it really was. Another's DataModule says what its `describe()` returns.

    Raises:
        UserError: that can't be recorded: it is no dict, or a value is of another type than `mnist_lab.schema` says.
    """
    if not isinstance(data, ImageDataModule):
        name = f"{type(data).__module__}.{type(data).__qualname__}"
        unknown = dict.fromkeys(("fallback", "digest", "train", "val", "test", "val_from"))
        described = data.describe() if hasattr(data, "describe") else {}
        facts = {"requested": name, "name": name, "files": {}, "classes": []} | unknown
        try:
            values: dict[str, Any] = json.loads(json.dumps(plain(facts | described)))
            wrong = mismatch(values, RESULT["data"])
        except (TypeError, ValueError) as error:
            wrong = brief(error)
        if wrong is not None:
            raise UserError(f"data: what {name}.describe() returns can't be recorded: {wrong}")
        return values
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
    """Return results that only some networks have: the output of the article's neuron."""
    passes = [c for c in trainer.callbacks if isinstance(c, NeuronForwardPass)]  # type: ignore[attr-defined]
    return {"forward_pass": passes[0].output} if passes else {}


def _logs_config(cfg: Mapping[str, Any]) -> bool:
    return bool(cfg["trainer"].get("enable_autolog_hparams", True))


def log_hyperparameters(trainer: L.Trainer, result: Result) -> None:
    """Give each TensorBoard logger the run's row in the HParams tab, and the config as text."""
    for logger in trainer.loggers if _logs_config(result.config) else []:
        if isinstance(logger, TensorBoardLogger):
            _log_row(logger, result)


def _log_row(logger: TensorBoardLogger, result: Result) -> None:
    """Write a run's row in the HParams tab, and its config as text."""
    from torch.utils.tensorboard import FileWriter
    from torch.utils.tensorboard.summary import hparams

    config, composed = result.config, OmegaConf.create(result.config)
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
            value = OmegaConf.select(composed, key) if "." in key else text
            chosen.setdefault(key, text if value is None else value)
    chosen = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in chosen.items()
        if value is not None
    }
    logger.experiment.add_text("config", "```yaml\n" + OmegaConf.to_yaml(composed) + "```")
    logger.experiment.add_text("command", f"`{result.command}`")
    logger.finalize("success")
    logger.save()
    row = FileWriter(logger.log_dir, filename_suffix=HPARAMS)
    for summary in hparams(chosen, {})[1:]:  # the first fixes the tab's columns, for all runs to those of one
        row.add_summary(summary)
    row.close()
