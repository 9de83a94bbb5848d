"""From the words of a training command to its jobs: check the words, have Hydra run them, run one job."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_lab import startup
from mnist_lab.command import Command, check_command, quoted, read_command
from mnist_lab.composing import run_config
from mnist_lab.errors import ProcessLost, UserError, one_line
from mnist_lab.files import CONF_DIR, folder_lock, is_sweep
from mnist_lab.folders import remove_on_failure
from mnist_lab.hydra_adapter import let_errors_through, run_composed, take_mode_from_words
from mnist_lab.processes import end_with, fail, helping, is_helper_process, refuse_launcher
from mnist_lab.rules import check

if TYPE_CHECKING:
    from lightning import Callback

    from mnist_lab.result import Result

OF_A_RUN = ("config.yaml", "history.csv", "checkpoints", "result.json")


def launch(words: list[str], fresh: bool = True) -> None:
    """Check a training command, and have Hydra run it: one job, or with `-m` several.

    Args:
        words: Hydra's command line: flags and overrides.
        fresh: whether the command's folder must be empty or new; the folder of each job must be in any case.

    Raises:
        UserError: what is asked for can't be done. Nothing new is left in the command's folder then.
    """
    command = read_command(words)
    words = command.words
    if command.multirun:
        refuse_launcher("a multirun")
    folder, existing = Path.cwd(), None
    if not command.shows_help:
        cfg, folder, existing = check_command(command, fresh and command.runs)
    let_errors_through()
    take_mode_from_words()
    added: list[str] = []
    composed: AbstractContextManager[None] = nullcontext()
    if command.runs and not is_helper_process():
        added = [f"hydra.{'sweep' if command.multirun else 'run'}.dir={quoted(folder)}"]
    if command.runs and not command.multirun:
        OmegaConf.set_readonly(cfg.hydra, False)
        cfg.hydra.run.dir = str(folder)
        cfg.hydra.overrides.hydra += [*added, "hydra.mode=RUN"]
        composed = run_composed(cfg)
    sys.argv = [sys.argv[0], *words, *added]
    job = Job(command, existing)
    with remove_on_failure(folder, until=existing if command.runs and fresh else None), composed:
        try:
            hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(job)()
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if job.began:
                raise
            raise UserError(one_line(error)) from error
        except AssertionError as error:  # of Hydra, which says no more than what it asserts
            if job.began:
                raise
            raise UserError(f"Hydra can't do that: {extract_tb(error.__traceback__)[-1].line}") from error


@dataclass
class Job:
    """The function that Hydra calls for each job, in the job's folder: one run, or one trial of a sweep.

    Attributes:
        command: the command that asks for it.
        existing: the deepest folder that was there before the command: it is never removed.
        began: whether a job has begun in this process. Until then, what Hydra can't do is a mistake in the words.
        process: the id of the command's process.
    """

    command: Command
    existing: Path | None
    began: bool = False
    process: int = field(default_factory=os.getpid)

    def __call__(self, cfg: DictConfig) -> None:
        """Run the job; end the program where the job can't be done."""
        self.began = True
        if os.getppid() == self.process:  # one of joblib's, which would wait for more jobs after a killed command
            end_with(self.process)
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        of_a_sweep = self.command.multirun and is_sweep(run_dir.parent)
        try:
            if not (of_a_sweep or is_helper_process()) and any((run_dir / name).exists() for name in OF_A_RUN):
                raise UserError(
                    f"{run_dir} has the files of another run: each job of a sweep needs a folder of its own"
                )
            with remove_on_failure(run_dir, until=None if is_helper_process() else self.existing):
                (self._trial if of_a_sweep else self._run)(cfg, run_dir)
        except (ProcessLost, UserError) as error:
            fail(error)

    def _run(self, cfg: DictConfig, run_dir: Path) -> None:
        """Run a single run, or a job of Hydra's own sweeper."""
        from mnist_lab.run import run
        from mnist_lab.user_code import errors_in_one_line

        _settle_process()
        words, started = self.command.words, None
        report = cfg.get("report", True)  # a primary config of the user's own may not have it
        if self.command.multirun:
            words, report = self._words(), False
        else:
            started = startup.STARTED
        lock = helping() if is_helper_process() else folder_lock(run_dir, str(run_dir))
        with lock, errors_in_one_line(cfg, run_dir):
            if self.command.multirun:
                check(cfg)  # how its values fit together: alone they have been checked
            run(run_config(cfg, _overrides()), run_dir, _overrides(), words, started, report=report)

    def _trial(self, cfg: DictConfig, run_dir: Path) -> None:
        """Run a trial of a sweep that is kept as a study."""
        from mnist_lab.run import run
        from mnist_lab.sweep.study import is_own, load_asked
        from mnist_lab.sweep.trial import discard_stale_trial, run_trial
        from mnist_lab.trust import check_harmless

        def trial(callbacks: list[Callback], remarks: list[str]) -> Result | None:
            check(cfg)
            config = run_config(cfg, _overrides())
            if not is_own(load_asked(run_dir.parent)):
                check_harmless(run_dir, OmegaConf.to_container(config))
            discard_stale_trial(run_dir, config)
            return run(config, run_dir, _overrides(), self._words(), callbacks=callbacks, remarks=remarks)

        _settle_process()
        run_trial(run_dir, trial)

    def _words(self) -> list[str]:
        """Return the words of the command that repeats this job alone."""
        return [*self.command.config_flags, *_overrides()]


def _settle_process() -> None:
    """Set what needs torch, once everything is imported."""
    from mnist_lab.fast.process import flush_denormals

    flush_denormals()
    startup.collect_garbage_again()


def _overrides() -> list[str]:
    """Return the overrides of the current job."""
    return list(HydraConfig.get().overrides.task)
