"""The processes of one run: who they are, and that they end together. Imports nothing heavy."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich import get_console

from mnist_lab.errors import Lost, UserError

if TYPE_CHECKING:
    import lightning as L

FIRST = "MNIST_LAB_FIRST_PROCESS"
"""Environment variable of the processes that a run has started: the id of the one that did."""
PATIENCE = 5.0
"""Seconds that are left to others to end in a better way, or to say it better."""
CUT_OFF = 75
"""Exit status of a further process that others have left alone, EX_TEMPFAIL of sysexits.h."""
ANSWER_WITHIN = 5
"""Minutes that a process waits for another's part of a computation. PyTorch's own 30 are half an hour's rent."""


def is_helper_process() -> bool:
    """Whether this is one of the further processes of a distributed run, which share the first one's folder."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") != "0"


def started_together() -> tuple[str, int]:
    """What has started this process and others beside it, torchrun or srun, and how many. "" and 1: nothing has."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ["WORLD_SIZE"])
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # which a batch script doesn't have, what it sruns does
    return ("srun", tasks) if tasks > 1 else ("", 1)


def alone(what: str) -> None:
    """Refuses what torchrun and srun must not start.

    Args:
        what: can't be started by them, in words for the user.

    Raises:
        UserError: they have.
    """
    name, count = started_together()
    if count > 1:
        raise UserError(
            f"{what} can't be started by {name}: start it by itself, and trainer=ddp trainer.devices={count} has each "
            "of its runs start its own processes"
        )


@contextmanager
def helping() -> Iterator[None]:
    """What a further process does apart: it is silent, ends when the first does, and leaves the last word to that one.

    Raises:
        Exception: what went wrong in this process alone, after a while. Where it went wrong in the first as well, that
            has told it by then, and ended this one.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if FIRST in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which the first gets too, and passes on
        threading.Thread(target=_end_with_the_first, args=(int(os.environ[FIRST]),), daemon=True).start()
    try:
        yield
    except Exception as error:
        time.sleep(PATIENCE)
        if _is_cut_off(error):  # which is another's fault, and told by the first
            os._exit(CUT_OFF)
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        raise


def _end_with_the_first(first: int) -> None:
    while os.getppid() == first:
        time.sleep(0.5)
    if os.environ["LOCAL_RANK"] == "1":
        how = f"To go on: python -m mnist_lab resume {quote(sys.argv[-1])}"
        print(f"error: the run's first process has been killed, and so all have ended. {how}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def processes(trainer: L.Trainer, run_dir: Path) -> Iterator[None]:
    """Starts the further processes of a distributed run, unless torchrun or SLURM has, and has all end together.

    Each is a `resume` of the run's folder. Lightning would repeat the program's own command, which of a sweep is the
    whole sweep; and where one is killed, it kills the others without a word.

    Args:
        trainer: the run's, which has not begun.
        run_dir: the run's folder, with its config.

    Raises:
        Lost: a process has ended before its time, or doesn't answer.
    """
    import torch

    if is_helper_process():
        yield  # connections stay open if that fails, so that the others wait for `helping` to say why
        torch.distributed.destroy_process_group()
        return
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from mnist_lab.terminal import relative, to_log_file

    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)  # which a strategy of one device lacks
    helpers = None
    resume = f"To go on: python -m mnist_lab resume {quote(str(relative(run_dir)))}"
    try:
        ours = isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally
        if ours and trainer.num_devices > 1:
            os.environ |= {"MASTER_PORT": str(environment.main_port), "LOCAL_RANK": "0"}
            helpers = _Helpers(trainer.num_devices, run_dir, resume)
        yield
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # which NCCL does only when all do, so before any is waited for
        if helpers is not None:
            helpers.wait()
    except Exception as error:
        if not (_is_cut_off(error) or (helpers is not None and helpers.fate)):
            raise
        fate = helpers.fate_soon() if helpers is not None else ""  # which comes a moment after its consequences
        if not fate:
            silent = "imed out" in str(error) or "timeout" in str(error)
            fate = "another process of this run "
            fate += f"has not answered for {ANSWER_WITHIN} minutes" if silent else "has ended"
        told = f"{fate}; the others were ended. {resume}"
        to_log_file(told)
        raise Lost(told) from error
    finally:
        if helpers is not None:
            helpers.end()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


class _Helpers:
    """The further processes of a run on this machine, watched from a thread until they are told to end.

    Args:
        count: of all processes, the first among them.
        run_dir: the run's folder.
        resume: what to say after the reason where one is lost.
    """

    def __init__(self, count: int, run_dir: Path, resume: str) -> None:
        command = [sys.executable, "-m", "mnist_lab", "resume", str(run_dir.absolute())]
        self.fate = ""
        """What happened to the process that ended first, in words for the user; empty where none has."""
        self._resume = resume
        self._over, self._found = threading.Event(), threading.Event()
        self._processes = [
            subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(rank), FIRST: str(os.getpid())})
            for rank in range(1, count)
        ]
        threading.Thread(target=self._watch, daemon=True).start()

    def fate_soon(self) -> str:
        """The fate, where it is known within a while."""
        self._found.wait(PATIENCE)
        return self.fate

    def wait(self) -> None:
        """Waits a while for all to end by themselves."""
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)

    def end(self) -> None:
        """Ends those that have not ended."""
        self._over.set()
        for process in self._processes:
            process.kill()
            process.wait()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            ended = [(process.poll(), rank) for rank, process in enumerate(self._processes, 2)]
            failed = [(status, rank) for status, rank in ended if status]
            if not failed:
                continue
            status, rank = min(failed)  # one that was killed before those that ended because of it
            how = f"ended with exit status {status}, see above"
            if status == CUT_OFF:
                how = f"has lost its connection to another, or has waited {ANSWER_WITHIN} minutes for it"
            if status < 0:
                how = f"was killed by {signal.Signals(-status).name}"
                how += ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
            self.fate = f"process {rank} of {len(self._processes) + 1} {how}"
            self._found.set()
            for process in self._processes:
                process.kill()
            if not self._over.wait(PATIENCE):  # the main thread waits for an answer, where nothing can wake it
                get_console().show_cursor()  # which a progress bar hides
                print(f"error: {self.fate}; the others were ended. {self._resume}", file=sys.stderr, flush=True)
                os._exit(1)
            return


def _is_cut_off(error: Exception) -> bool:
    """Whether an error is that of a connection between processes: gloo's and NCCL's have no class of their own."""
    import torch

    words = ("gloo", "NCCL", "TCPStore", "pair closure")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
