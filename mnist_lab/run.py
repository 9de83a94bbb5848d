"""One experiment, top to bottom: config → data, module, trainer → fit → test → result."""

from __future__ import annotations

import logging
import re
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig

from mnist_lab.build import build_data, build_module, check_size, groups_used, is_module, load_module, read_tested
from mnist_lab.data import ImageDataModule
from mnist_lab.errors import Diverged, UserError, brief
from mnist_lab.experiment import Experiment, build_experiment, check_module
from mnist_lab.fast.process import keep_memory
from mnist_lab.fast.steps import SEVERAL
from mnist_lab.processes import processes
from mnist_lab.record import begin, data_facts, images_tested, log_hyperparameters, notes, result_of
from mnist_lab.result import Result
from mnist_lab.seeds import seed_of
from mnist_lab.show.report import leave_report
from mnist_lab.terminal import metrics_table, relative, show, show_result, show_where, warn
from mnist_lab.trainer import build_trainer
from mnist_lab.training import Checkpoints, Classifier
from mnist_lab.training.callbacks import number_of
from mnist_lab.training.checkpoint_files import read_checkpoint
from mnist_lab.training.loggers import opened

log = logging.getLogger(__name__)
LIGHTNING_LOGS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.loggers.mlflow")


def quieten() -> None:
    """Silence what Lightning says that is not about anything done here."""
    for name in LIGHTNING_LOGS:
        logging.getLogger(name).setLevel(logging.ERROR if name.endswith("mlflow") else logging.WARNING)  # new databases
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
    """Train and test what `cfg` describes, and leave everything about it in `run_dir`.

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
            announce(cfg, made, run_dir, overrides)
        torch.manual_seed(seed_of("dropout", cfg.seeds.dropout, trainer.global_rank))
        seconds, before = {"start": time.perf_counter() - started}, time.perf_counter()
        with processes(trainer, run_dir), ctrl_c():
            fit(made, run_dir)
            seconds["train"], before = time.perf_counter() - before, time.perf_counter()
            tested = load_tested(cfg, made, run_dir)
            measured = test(made.trainer, made.module, made.data)
        seconds["test"] = time.perf_counter() - before
        if not trainer.is_global_zero:
            return None
        result = result_of(cfg, asked, made, measured, tested, started_at, seconds)
        log_hyperparameters(trainer, result)
    result.save(run_dir)  # last: a run that has it is finished, and nothing of it is done again
    show_result(result)
    show_where(result, run_dir, leave_report(run_dir, made.data) if report else None)
    return result


@contextmanager
def ctrl_c() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on Ctrl-C. Lightning would exit with status 1 and ignore further signals."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        if stopped.code != 1:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stopped


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
    except ModuleNotFoundError as error:
        if error.name is not None:  # an import of somebody's that failed
            raise
        raise UserError(f"callbacks: {brief(error)}") from error
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
    load_module(made.module, best, chosen)
    return int(chosen["epoch"]) + 1


def test(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule) -> dict[str, float]:
    """Test a module. Return what it logs, by name; nothing where it has no `test_step`."""
    if not is_overridden("test_step", module):
        return {}
    trainer.test(module, datamodule=data, verbose=False)
    return {name: number_of(value) for name, value in trainer.callback_metrics.items()}


def test_again(cfg: DictConfig, run_dir: Path, checkpoint: Path) -> dict[str, float]:
    """Test a run's checkpoint, show the outcome beside the one that the run recorded, and write nothing.

    Args:
        cfg: the run's config.
        run_dir: the run's folder.
        checkpoint: the checkpoint's file.

    Returns:
        What the test logs, by name: test/loss and test/acc of a `Classifier`; and test/n, the number of images, if it
        is known.

    Raises:
        UserError: the checkpoint is of another network or can't be read, or the data can't be had.
    """
    quieten()
    saved = read_checkpoint(checkpoint)
    check_size(cfg, checkpoint, saved)
    data = build_data(cfg)
    if isinstance(data, ImageDataModule):
        read_tested(data, run_dir)
    module = build_module(cfg, data)
    cfg.logger = {}
    cfg.trainer.devices, cfg.trainer.num_nodes, cfg.trainer.strategy = 1, 1, "auto"
    trainer = build_trainer(cfg, run_dir, [])
    check_module(cfg, module, data, trainer)
    load_module(module, checkpoint, saved)
    found = test(trainer, module, data)
    if not found:
        raise UserError(f"{type(module).__name__} has no test_step")
    if (seen := images_tested(trainer, data)) is not None:
        found["test/n"] = seen
    if trainer.is_global_zero:
        _show_test(cfg, run_dir, data, found, checkpoint.stem)
    return found


def _show_test(
    cfg: DictConfig, run_dir: Path, data: L.LightningDataModule, found: dict[str, float], checkpoint: str
) -> None:
    """Show the metrics of a test beside those that the run recorded."""
    recorded = Result.load(run_dir) if (run_dir / "result.json").exists() else None
    facts, warnings_ = data_facts(cfg, data), notes(cfg, data, [])
    seen = found.get("test/n")
    of = f", {seen:,.0f} images of {facts['name']}" if seen is not None else ""
    rows: list[tuple[str, Mapping[str, float | None]]] = [
        (f"test{of}", {name.removeprefix("test/"): value for name, value in found.items() if name != "test/n"})
    ]
    if recorded is not None:
        rows.append((f"recorded, {recorded.test['checkpoint']} checkpoint", recorded.test_metrics))
    show(metrics_table(f"{cfg.name}, {checkpoint} checkpoint", rows))
    if recorded is not None and facts["digest"] != recorded.data["digest"]:
        warnings_.append("These are not the files that the run recorded: their digest differs.")
    warn(warnings_)


def announce(cfg: DictConfig, made: Experiment, run_dir: Path, overrides: Sequence[str]) -> None:
    """Say what is about to run, and warn."""
    data, module, trainer = made.data, made.module, made.trainer
    facts = data_facts(cfg, data)
    parts = [
        f"{facts[part]:,} {name}"
        for part, name in (("train", "train"), ("val", "val"), ("test", "test images"))
        if facts.get(part) and not (part == "val" and cfg.data.get("val") == "none")
    ]
    net = module.net if isinstance(module, Classifier) else module
    amounts = f" ({', '.join(parts)})" if parts else ""
    log.info(
        f"{cfg.name}: {type(net).__name__}, {sum(p.numel() for p in net.parameters()):,} parameters, "
        f"on {facts['name']}{amounts}, seed {cfg.seed}, "
        f"{trainer.strategy.root_device.type}" + (f" in {trainer.precision}" if trainer.precision != "32-true" else "")
    )
    if isinstance(module, Classifier):
        how = "several steps at a time" if made.path.steps == SEVERAL else "one step at a time"
        log.info(how if made.path.why is None else f"{how}: {made.path.why}")
    if is_module(cfg):
        log.info(
            f"{type(module).__name__} is a LightningModule: module={cfg.get('module', {}).get('_target_')} is unused"
        )
    ignored = {"model", "loss", "optimizer", "schedule", "metrics"} - groups_used(cfg)
    # model=NAME sets the batch size and the epochs all the same.
    if unused := [
        word for word in overrides if re.split("[.=]", word.lstrip("+~"))[0] in ignored and "model=" not in word
    ]:
        log.info(f"{type(module).__name__} makes no use of {', '.join(unused)}")
    if not isinstance(data, ImageDataModule):
        log.info(f"{type(data).__name__} has loaders of its own: a run that is stopped goes on from an epoch's start")
    elif not isinstance(module, Classifier):
        log.info(f"after a stop within an epoch, what {type(module).__name__} logs of training is of the epoch's rest")
    log.info(f"in {relative(run_dir)}")
    warn(notes(cfg, data, []))
    warn(made.doubts)
