"""One experiment, top to bottom: config → data, network, trainer → fit → test → result."""

from __future__ import annotations

import copy
import ctypes
import json
import logging
import math
import platform
import shlex
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mnist_lab.build import (
    brief,
    build,
    build_network,
    build_tested,
    build_trainer,
    check_batches,
    check_device,
    check_fit,
    check_optimizer,
    check_processes,
    check_time_left,
    limits_of,
    load_weights,
    make_steps_cheap,
)
from mnist_lab.config import use_absolute_root
from mnist_lab.data import ImageDataModule
from mnist_lab.data.facts import test_facts
from mnist_lab.data.moved import read_recorded
from mnist_lab.errors import Diverged, UserError
from mnist_lab.evaluate import asked_of
from mnist_lab.files import marked, write_whole
from mnist_lab.processes import processes
from mnist_lab.result import (
    SCHEMA_VERSION,
    Result,
    code_state,
    cores,
    most_memory,
    own_code,
    package_versions,
    processor,
)
from mnist_lab.seeds import seed_of
from mnist_lab.show.report import leave_report
from mnist_lab.terminal import metrics_table, relative, show, show_result, show_where, warn
from mnist_lab.training import CHARTS, Checkpoints, Classifier, History, NeuronForwardPass, ending
from mnist_lab.training.checkpoint_files import read_checkpoint, to_resume
from mnist_lab.training.loggers import close_loggers, log_config, open_loggers, versions_of
from mnist_lab.trust import seal

log = logging.getLogger(__name__)
LIGHTNING_LOGS = ("lightning.pytorch", "lightning.fabric")

INSTEAD = {
    StochasticWeightAveraging: "Its EMAWeightAveraging averages weights here: "
    "_target_: lightning.pytorch.callbacks.EMAWeightAveraging",
    LearningRateFinder: "A sweep finds the rate here: -m sweep=tpe 'optimizer.lr=tag(log,interval(1e-4,1))'",
    BatchSizeFinder: "A sweep compares sizes here: -m data.batch_size=32,128,512",
    GradientAccumulationScheduler: "The same number in all epochs is trainer.accumulate_grad_batches=N",
}
"""Callbacks that count on automatic optimisation, and what does their work."""

HPARAMS = ".hparams"
"""The end of the name of TensorBoard's file with the run's row in the HParams tab."""


def quieten() -> None:
    """Silences what Lightning says that is not about anything done here."""
    for name in LIGHTNING_LOGS:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # scalars are logged by epoch
    warnings.filterwarnings("ignore", ".*It is recommended to use `self.log.*sync_dist.*")  # sums are of all processes
    warnings.filterwarnings("ignore", ".*but have no logger configured.*")  # logger=none is a choice
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero.*")  # data.val=none, too
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "The `srun` command is available")  # where to start what is for the user to say


def flush_denormals() -> None:
    """Has this process take float32 numbers below 1.2e-38 as 0, as TensorFlow and XLA do.

    Adam's mean of a gradient that is 0 from some step on, as those of a pixel that stays dark, falls below it 830 steps
    later, for ever. Processors take long over such numbers: D's optimiser 250 µs a step, and later 300, instead of 180.

    Threads do as the one that began them, for good: so this comes before the first parallel operation, and only in
    processes that are ours, not in one that calls `mnist_lab.train`.
    """
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)  # older NumPy warns if the first look at it finds no such numbers
    torch.set_flush_denormal(True)


def run(
    cfg: DictConfig,
    run_dir: Path,
    overrides: list[str],
    command: list[str],
    started: float | None = None,
    callbacks: Sequence[L.Callback] = (),
    report: bool = False,
    remarks: Sequence[str] = (),
    recorded: Mapping[str, Any] | None = None,
) -> Result | None:
    """Trains and tests what `cfg` describes, and leaves everything about it in `run_dir`.

    Where a checkpoint of the same run is in `run_dir` it goes on from there, to the same numbers on a CPU.

    Args:
        cfg: a checked and resolved config, without Hydra's own part.
        run_dir: the run's folder: config.yaml, run.json, history.csv, checkpoints/, tensorboard/, result.json,
            report.html.
        overrides: what was asked for in Hydra's grammar.
        command: the words after `python -m mnist_lab` that repeat the run.
        started: `time.perf_counter()` when the program started; None: now.
        callbacks: beside those of the config.
        report: whether to leave the page report.html, which takes a second.
        remarks: what else a reader of the result must know.
        recorded: `digest` and `fallback` of the data of the run that is repeated: no other is taken in its place.

    Returns:
        The result; None in all processes of a distributed run but the first.

    Raises:
        UserError: what is asked for can't be done. Nothing is left in `run_dir` then.
    """
    started = time.perf_counter() if started is None else started
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    quieten()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    keep_memory()

    data = build(cfg, "data")
    use_absolute_root(cfg)  # what is recorded holds in any folder
    torch.manual_seed(cfg.seeds.weights)
    net = build_network(cfg)
    loss = build(cfg, "loss")
    history = History(run_dir / "history.csv")
    configured: dict[str, Any] = {
        key: build(cfg, f"callbacks.{key}") if OmegaConf.is_dict(described) else None
        for key, described in cfg.callbacks.items()
    }
    for key, callback in configured.items():
        if not isinstance(callback, L.Callback):
            raise UserError(f"callbacks.{key} is no Lightning callback: it needs a _target_ that is one")
        for kind, instead in INSTEAD.items():
            if isinstance(callback, kind):
                raise UserError(
                    f"callbacks.{key}: Lightning's {kind.__name__} needs training steps of one mini-batch. {instead}"
                )
    last, saved = to_resume(run_dir / "checkpoints", limits_of(cfg))
    states, step = saved.get("callbacks", {}), saved.get("global_step", 0)
    versions = versions_of(asked_of(run_dir).get("loggers"))
    trainer = build_trainer(cfg, run_dir, [*configured.values(), history, *callbacks], step, versions)
    check_processes(cfg, trainer)
    check_device(cfg, trainer)
    check_regrouped(saved, trainer.world_size, run_dir)
    if states.get("Checkpoints", {}).get("over") != limits_of(cfg):
        check_time_left(trainer, states)
    done = len(states["History"]["rows"]) if "History" in states else 0
    epochs = done + bool(saved.get("counted", {}).get("sums"))
    if -1 != cfg.trainer.max_epochs < epochs:
        raise UserError(
            f"trainer.max_epochs={cfg.trainer.max_epochs} is not allowed: {relative(run_dir)} has had more already, "
            f"trainer.max_epochs={epochs} is the least"
        )
    if last is not None:  # Lightning loads them, after callbacks have seen the weights that a run begins with
        load_weights(copy.deepcopy(net), last, saved)
    began_with = saved.get("ImageDataModule", recorded or {})
    before = data.root
    read_recorded(data, began_with)
    if data.root != before:
        cfg.data.root = str(data.root)
    data.prepare_data()
    data.setup()
    assert data.images is not None
    if last is not None and began_with.get("digest", data.images.digest) != data.images.digest:
        raise UserError(
            f"{relative(run_dir)} began with other images than {data.images.name} has now, and those that it learned "
            "from may be among today's validation or test images. To go on, put the files back as they were; to use "
            "those of now, start a new run"
        )
    own = own_code([OmegaConf.to_container(cfg)])  # now: they may be edited while it trains
    doubts = check_fit(cfg, net, loss, data)
    check_batches(net, data, trainer)
    optimizer, schedule = build(cfg, "optimizer"), build(cfg, "schedule") or None
    check_optimizer(net, optimizer, schedule)
    module = Classifier(
        net, loss, optimizer, schedule, cfg.trainer.gradient_clip_val, cfg.trainer.accumulate_grad_batches
    )
    if cfg.compile is not None:
        net.compile(mode=cfg.compile)
        module.compiled = True
    make_steps_cheap(trainer, data, module)
    module.example_input_array = trainer.precision_plugin.convert_input(torch.zeros(1, *data.shape))

    asked = {"command": command, "overrides": overrides, "report": report, "remarks": list(remarks)}
    succeeded = False
    if trainer.is_global_zero:
        asked["loggers"] = open_loggers(trainer.loggers, step)
    try:
        if trainer.is_global_zero:
            begin(cfg, run_dir, asked, trainer)
            announce(cfg, net, data, trainer, run_dir)
            warn(doubts)
        torch.manual_seed(seed_of("dropout", cfg.seeds.dropout, trainer.global_rank))
        times = [time.perf_counter()]
        with processes(trainer, run_dir):
            fit(trainer, module, data, last, run_dir)
            if not history.rows:
                raise UserError("training was stopped before its first step: see trainer.max_time and the callbacks")
            times.append(time.perf_counter())
            tested = load_tested(cfg, trainer, module, run_dir, len(history.rows))
            trainer.test(module, datamodule=data, verbose=False)
        times.append(time.perf_counter())
        if not trainer.is_global_zero:
            return None
        result = Result(
            schema_version=SCHEMA_VERSION,
            name=cfg.name,
            command=shlex.join(["python", "-m", "mnist_lab", *command]),
            overrides=overrides,
            config=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
            seed=cfg.seed,
            started_at=started_at,
            code=code_state() | own,
            packages=package_versions(),
            machine=machine(trainer),
            data=data_facts(cfg, data) | test_facts(data, int(module.metrics["test/n"]), trainer.world_size),
            model={
                "target": cfg.model._target_,
                "parameters": sum(p.numel() for p in net.parameters()),
                "trainable_parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
            },
            history=history.rows,
            test={
                "loss": module.metrics["test/loss"],
                "acc": module.metrics["test/acc"],
                "correct": round(module.metrics["test/acc"] * module.metrics["test/n"]),
                "n": int(module.metrics["test/n"]),
                "checkpoint": cfg.test_checkpoint,
                "epoch": tested,
            },
            ended={
                "by": ending.reason(trainer, len(history.rows)),
                "epochs": len(history.rows),
                "steps": trainer.global_step,
            },
            seconds={
                "start": round(times[0] - started, 3),
                "train": round(times[1] - times[0], 3),
                "test": round(times[2] - times[1], 3),
            },
            notes=[
                *notes(cfg, data, [*history.rows, module.metrics], module.processes),
                *cut_short(module, len(history.rows)),
                *remarks,
                *doubts,
            ],
            extras=extras(trainer),
        )
        log_hyperparameters(trainer, result)
        succeeded = True
    finally:
        if trainer.is_global_zero:
            close_loggers(trainer.loggers, succeeded)
    result.save(run_dir)  # last: a run that has it is finished, and nothing of it is done again
    show_result(result)
    show_where(result, run_dir, leave_report(run_dir, data) if report else None)
    return result


def cut_short(module: Classifier, epochs: int) -> list[str]:
    """Return a note on the last epoch where a limit has cut it short."""
    seen, there = module.mini_batches_done
    if seen >= there:
        return []
    return [
        f"Epoch {epochs} was cut short after {seen:,} of {there:,} mini-batches: its training loss and accuracy are of "
        "those alone."
    ]


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


def fit(trainer: L.Trainer, module: Classifier, data: ImageDataModule, last: Path | None, run_dir: Path) -> None:
    """Train to the end; the module has afterwards the weights that the training ended with.

    Args:
        trainer: the run's.
        module: what is trained.
        data: on which images.
        last: the checkpoint to go on from; None: the training begins.
        run_dir: the run's folder.

    Raises:
        UserError: Lightning refuses an option, or a metric that a callback follows isn't there.
        Diverged: a loss or a weight is not finite.
    """
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except MisconfigurationException as error:  # what Lightning sees only when it looks at the batches
        raise UserError(f"trainer: {brief(error)}") from error
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on metric"):  # which is not there
            raise
        raise UserError(f"callbacks: {brief(error)}") from error
    except Diverged as error:
        kept = run_dir / "checkpoints" / "last.ckpt"
        good = f"the last good checkpoint is {relative(kept)}" if kept.exists() else "no checkpoint is there"
        raise Diverged(f"{error}; {good}. A smaller optimizer.lr may help") from error
    checkpoints.finish(trainer, module)


def load_tested(cfg: DictConfig, trainer: L.Trainer, module: Classifier, run_dir: Path, epochs: int) -> int:
    """Give the module the weights that are to be tested, and return the epoch that they are of, from 1.

    Raises:
        UserError: the best epoch's are asked for, and no epoch was validated.
    """
    if cfg.test_checkpoint != "best":
        return epochs
    best = Path(trainer.strategy.broadcast(str(run_dir / "checkpoints" / "best.ckpt")))
    if not best.exists():
        raise UserError("test_checkpoint=best: no epoch was validated, see trainer.check_val_every_n_epoch")
    chosen = read_checkpoint(best)
    load_weights(module.net, best, chosen)
    return int(chosen["epoch"]) + 1


def test_again(cfg: DictConfig, run_dir: Path, checkpoint: Path) -> dict[str, float]:
    """Tests a run's checkpoint, shows the outcome beside the one that the run recorded, and writes nothing.

    Args:
        cfg: the run's config.
        run_dir: the run's folder.
        checkpoint: the checkpoint's file.

    Returns:
        test/loss, test/acc and test/n.

    Raises:
        UserError: the checkpoint is of another network or can't be read, or the data can't be had.
    """
    quieten()
    recorded = Result.load(run_dir) if (run_dir / "result.json").exists() else None
    data = build_tested(cfg, run_dir)
    net, loss = build(cfg, "model"), build(cfg, "loss")
    check_fit(cfg, net, loss, data)
    load_weights(net, checkpoint, read_checkpoint(checkpoint))
    module = Classifier(net, loss, build(cfg, "optimizer"))
    cfg.logger = {}
    cfg.trainer.devices, cfg.trainer.num_nodes, cfg.trainer.strategy = 1, 1, "auto"
    trainer = build_trainer(cfg, run_dir, [])
    trainer.test(module, datamodule=data, verbose=False)
    found = module.metrics
    if trainer.is_global_zero:
        facts, warnings_ = data_facts(cfg, data), notes(cfg, data, [])
        rows: list[tuple[str, float | None, float]] = [
            (f"test, {found['test/n']:,.0f} images of {facts['name']}", found["test/loss"], found["test/acc"])
        ]
        if recorded is not None:
            then = recorded.test
            rows.append((f"recorded, {then['checkpoint']} checkpoint", then["loss"], then["acc"]))
            if facts["digest"] != recorded.data["digest"]:
                warnings_.append("These are not the files that the run recorded: their digest differs.")
        show(metrics_table(f"{cfg.name}, {checkpoint.stem} checkpoint", rows))
        warn(warnings_)
    return found


def check_regrouped(saved: dict[str, Any], processes: int, run_dir: Path) -> None:
    """Refuses to go on in the middle of an epoch with another number of processes.

    What has been counted of an epoch, and the random numbers' state, are each process's own.

    Args:
        saved: the checkpoint to go on from; empty where there is none.
        processes: how many there are now.
        run_dir: the run's folder.

    Raises:
        UserError: the checkpoint is in the middle of an epoch, of another number of processes.
    """
    *_, before = saved.get("processes", [processes])
    if before != processes and saved["counted"]["sums"]:
        raise UserError(
            f"{relative(run_dir)} was stopped in the middle of epoch {saved['epoch'] + 1} with {before} process(es), "
            f"and {processes} can't go on from there, only from an epoch's end. To go on with as many as before: "
            f"python -m mnist_lab resume {shlex.quote(str(relative(run_dir)))} trainer.devices={before}"
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


def keep_memory() -> None:
    """Lets the process keep the memory that each step frees and the next one needs.

    glibc gives large blocks back to the system at once, and each of their 4 KiB pages costs a fault when it is touched
    again: a quarter of a small network's step.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # names of malloc.h
        mallopt(mmap_threshold, 2**25)  # bytes; glibc allows no more
        mallopt(trim_threshold, 2**29)


def announce(cfg: DictConfig, net: nn.Module, data: ImageDataModule, trainer: L.Trainer, run_dir: Path) -> None:
    """Says what is about to run, and warns."""
    assert data.images is not None
    parts = [f"{len(data.train_index):,} train"]
    if data.val != "none":
        parts.append(f"{data.val_count:,} val")
    parts.append(f"{len(data.images.test_labels):,} test images")
    log.info(
        f"{cfg.name}: {type(net).__name__}, {sum(p.numel() for p in net.parameters()):,} parameters, "
        f"on {data.images.name} ({', '.join(parts)}), seed {cfg.seed}, {trainer.strategy.root_device.type}"
        + (f" in {trainer.precision}" if trainer.precision != "32-true" else "")
    )
    log.info(f"in {relative(run_dir)}")
    warn(notes(cfg, data, []))


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
