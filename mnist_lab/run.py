"""One experiment, top to bottom: config → data, network, trainer → fit → test → result."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from omegaconf import DictConfig, OmegaConf

from mnist_lab.build import (
    brief,
    build,
    build_network,
    build_tested,
    build_trainer,
    limits_of,
    load_weights,
)
from mnist_lab.checks import check_batches, check_device, check_fit, check_optimizer, check_processes, check_resumed
from mnist_lab.composing import use_absolute_root
from mnist_lab.data import ImageDataModule
from mnist_lab.data.moved import read_recorded
from mnist_lab.errors import Diverged, UserError
from mnist_lab.fast.process import keep_memory
from mnist_lab.fast.steps import choose_step_path
from mnist_lab.processes import processes
from mnist_lab.record import Experiment, begin, data_facts, log_hyperparameters, notes, result_of
from mnist_lab.result import Result, own_code
from mnist_lab.run_folder import asked_of
from mnist_lab.seeds import seed_of
from mnist_lab.show.report import leave_report
from mnist_lab.terminal import metrics_table, relative, show, show_result, show_where, warn
from mnist_lab.training import Checkpoints, Classifier, History
from mnist_lab.training.checkpoint_files import read_checkpoint, to_resume
from mnist_lab.training.loggers import opened, versions_of

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
        run_dir: the run's folder, where all that it leaves is written.
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
    made = build_experiment(cfg, run_dir, callbacks, recorded or {})
    trainer = made.trainer
    asked = {"command": command, "overrides": overrides, "report": report, "remarks": list(remarks)}
    with opened(trainer, made.step) as versions:
        if trainer.is_global_zero:
            begin(cfg, run_dir, asked | {"loggers": versions}, trainer)
            announce(cfg, made, run_dir)
        torch.manual_seed(seed_of("dropout", cfg.seeds.dropout, trainer.global_rank))
        seconds, before = {"start": time.perf_counter() - started}, time.perf_counter()
        with processes(trainer, run_dir):
            fit(made, run_dir)
            seconds["train"], before = time.perf_counter() - before, time.perf_counter()
            tested = load_tested(cfg, made, run_dir)
            trainer.test(made.module, datamodule=made.data, verbose=False)
        seconds["test"] = time.perf_counter() - before
        if not trainer.is_global_zero:
            return None
        result = result_of(cfg, asked, made, tested, started_at, seconds)
        log_hyperparameters(trainer, result)
    result.save(run_dir)  # last: a run that has it is finished, and nothing of it is done again
    show_result(result)
    show_where(result, run_dir, leave_report(run_dir, made.data) if report else None)
    return result


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
    data = build(cfg, "data")
    use_absolute_root(cfg)  # what is recorded holds in any folder
    torch.manual_seed(cfg.seeds.weights)
    net, loss = build_network(cfg), build(cfg, "loss")
    history = History(run_dir / "history.csv")
    last, saved = to_resume(run_dir / "checkpoints", limits_of(cfg))
    step, versions = saved.get("global_step", 0), versions_of(asked_of(run_dir).get("loggers"))
    trainer = build_trainer(cfg, run_dir, [*build_callbacks(cfg), history, *callbacks], step, versions)
    check_processes(cfg, trainer)
    check_device(cfg, trainer)
    check_resumed(cfg, saved, trainer, run_dir)
    if last is not None:  # Lightning loads them, after callbacks have seen the weights that a run begins with
        load_weights(copy.deepcopy(net), last, saved)
    read_data(cfg, data, saved.get("ImageDataModule"), recorded, run_dir)
    own = own_code([OmegaConf.to_container(cfg)])
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
    choose_step_path(trainer, data, module)
    module.example_input_array = trainer.precision_plugin.convert_input(torch.zeros(1, *data.shape))
    return Experiment(data, module, trainer, history, last, step, doubts, own)


def build_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """Make the callbacks that a config describes.

    Raises:
        UserError: one is none, or counts on automatic optimisation.
    """
    found: list[L.Callback] = []
    for key, described in cfg.callbacks.items():
        callback = build(cfg, f"callbacks.{key}") if OmegaConf.is_dict(described) else None
        if not isinstance(callback, L.Callback):
            raise UserError(f"callbacks.{key} is no Lightning callback: it needs a _target_ that is one")
        for kind, instead in INSTEAD.items():
            if isinstance(callback, kind):
                raise UserError(
                    f"callbacks.{key}: Lightning's {kind.__name__} needs training steps of one mini-batch. {instead}"
                )
        found.append(callback)
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


def fit(made: Experiment, run_dir: Path) -> None:
    """Train to the end; the module has afterwards the weights that the training ended with.

    Raises:
        UserError: Lightning refuses an option, a metric that a callback follows isn't there, or no step was made.
        Diverged: a loss or a weight is not finite.
    """
    trainer, module = made.trainer, made.module
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
    try:
        trainer.fit(module, datamodule=made.data, ckpt_path=made.last, weights_only=True)
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
    if not made.history.rows:
        raise UserError("training was stopped before its first step: see trainer.max_time and the callbacks")
    checkpoints.finish(trainer, module)


def load_tested(cfg: DictConfig, made: Experiment, run_dir: Path) -> int:
    """Give the module the weights that are to be tested, and return the epoch that they are of, from 1.

    Raises:
        UserError: the best epoch's are asked for, and no epoch was validated.
    """
    if cfg.test_checkpoint != "best":
        return len(made.history.rows)
    best = Path(made.trainer.strategy.broadcast(str(run_dir / "checkpoints" / "best.ckpt")))
    if not best.exists():
        raise UserError("test_checkpoint=best: no epoch was validated, see trainer.check_val_every_n_epoch")
    chosen = read_checkpoint(best)
    load_weights(made.module.net, best, chosen)
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


def announce(cfg: DictConfig, made: Experiment, run_dir: Path) -> None:
    """Say what is about to run, and warn."""
    net, data, trainer = made.module.net, made.data, made.trainer
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
    warn(made.doubts)
