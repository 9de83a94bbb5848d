"""The processes of one run: what each one is, and how they end together. Imports nothing heavy."""

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
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich import get_console

from mnist_lab.errors import ProcessLost, UserError, interrupted, printable

if TYPE_CHECKING:
    import lightning as L

FIRST = "MNIST_LAB_FIRST_PROCESS"
"""Environment variable of the processes that a run has started: the id of the process that started them."""
PATIENCE = 5.0
"""Seconds that other processes get to end by themselves, or to report a clearer error."""
CUT_OFF = 75
"""Exit status of a helper process that has lost its connection to the others: EX_TEMPFAIL of sysexits.h."""
ANSWER_WITHIN = 5
"""Minutes that a process waits for another's part of a computation. PyTorch's default, 30, would waste rented time."""


def is_helper_process() -> bool:
    """Return whether this is a helper process of a distributed run: any but the first, whose folder they share."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") != "0"


def started_together() -> tuple[str, int]:
    """Return what started this process with others, "torchrun" or "srun", and how many there are; else "" and 1."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ["WORLD_SIZE"])
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # set by srun, not for the batch script
    return ("srun", tasks) if tasks > 1 else ("", 1)


def refuse_launcher(what: str) -> None:
    """Make sure that torchrun or srun has not started this command.

    Args:
        what: what they can't start, in words for the user.

    Raises:
        UserError: one of them has started it.
    """
    name, count = started_together()
    if count > 1:
        raise UserError(
            f"{what} can't be started by {name}: start it by itself, and trainer=ddp trainer.devices={count} has each "
            "of its runs start its own processes"
        )


def fail(error: Exception) -> NoReturn:
    """End the program with an error's message; HYDRA_FULL_ERROR=1 shows where it was raised.

    Args:
        error: a mistake of the user, exit status 2; or ProcessLost, exit status 1. One that Ctrl-C has caused is not
            shown, exit status 130.
    """
    if interrupted(error):
        sys.exit(130)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    if not is_helper_process():  # the first says the same; what is wrong in this process alone, `helping` says
        print(printable(f"error: {error}"), file=sys.stderr)
    sys.exit(1 if isinstance(error, ProcessLost) else 2)


@contextmanager
def helping() -> Iterator[None]:
    """Run a helper process: it prints nothing, ends with the first process and lets that one report errors.

    Raises:
        Exception: what went wrong in this process, after a few seconds. If it went wrong in the first process too, that
            one has reported it by then and ended this one.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if FIRST in os.environ:
        from mnist_lab.terminal import to_go_on

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the first as well, which passes it on
        resume = f"To go on: {to_go_on(Path(sys.argv[-1]))}"
        why = f"the run's first process has been killed, and so all have ended. {resume}"
        end_with(int(os.environ[FIRST]), why if os.environ["LOCAL_RANK"] == "1" else "")
    try:
        yield
    except Exception as error:
        time.sleep(PATIENCE)
        if is_cut_off(error):  # another process failed, and the first reports it
            os._exit(CUT_OFF)
        if isinstance(error, UserError):
            print(printable(f"error: {error}"), file=sys.stderr)
        raise


@cache
def end_with(parent: int, why: str = "") -> None:
    """Have this process end within a second of its parent, however that ends.

    Args:
        parent: the id of the parent's process.
        why: what to print then; empty: nothing.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if why:
            print(printable(f"error: {why}"), file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def processes(trainer: L.Trainer, run_dir: Path) -> Iterator[None]:
    """Start the helper processes of a distributed run, unless torchrun or SLURM has, and end all of them together.

    Each is a `resume` of the run's folder. Lightning would repeat the program's own command, which for a sweep is the
    whole sweep; and when one process is killed, Lightning kills the others without a message.

    Args:
        trainer: the run's, before training begins.
        run_dir: the run's folder, with its config.

    Raises:
        ProcessLost: a process has ended too early, or doesn't answer.
    """
    import torch

    if is_helper_process():
        yield  # if this fails, connections stay open, so that the others wait for `helping` to say why
        torch.distributed.destroy_process_group()
        return
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from mnist_lab.terminal import to_go_on, to_log_file

    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)  # strategies for one device have none
    helpers = None
    resume = f"To go on: {to_go_on(run_dir)}"
    try:
        ours = isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally
        if ours and trainer.num_devices > 1:
            os.environ |= {"MASTER_PORT": str(environment.main_port), "LOCAL_RANK": "0"}
            helpers = _Helpers(trainer.num_devices, run_dir, resume)
        yield
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # NCCL needs all for this, so it comes before any wait
        if helpers is not None:
            helpers.wait()
    except Exception as error:
        if not (is_cut_off(error) or (helpers is not None and helpers.fate)):
            raise
        fate = helpers.fate_soon() if helpers is not None else ""  # known a moment after its consequences
        if not fate:
            silent = "imed out" in str(error) or "timeout" in str(error)
            fate = "another process of this run "
            fate += f"has not answered for {ANSWER_WITHIN} minutes" if silent else "has ended"
        told = f"{fate}; the others were ended. {resume}"
        to_log_file(told)
        raise ProcessLost(told) from error
    finally:
        if helpers is not None:
            helpers.end()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


class _Helpers:
    """The helper processes of a run on this machine, watched by a thread until they are told to end.

    Args:
        count: number of processes, including the first.
        run_dir: the run's folder.
        resume: what to print after the reason if one is lost.
    """

    def __init__(self, count: int, run_dir: Path, resume: str) -> None:
        command = [sys.executable, "-m", "mnist_lab", "resume", str(run_dir.absolute())]
        self.fate = ""
        """How the first failed process ended, in words for the user; empty if none has failed."""
        self._resume = resume
        self._over, self._found = threading.Event(), threading.Event()
        self._processes = [
            subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(rank), FIRST: str(os.getpid())})
            for rank in range(1, count)
        ]
        threading.Thread(target=self._watch, daemon=True).start()

    def fate_soon(self) -> str:
        """Return the fate, after waiting up to PATIENCE seconds for it to become known."""
        self._found.wait(PATIENCE)
        return self.fate

    def wait(self) -> None:
        """Wait up to PATIENCE seconds for each process to end by itself."""
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)

    def end(self) -> None:
        """Kill the processes that have not ended."""
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
            status, rank = min(failed)  # a killed process comes before those that failed because of it
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
            if not self._over.wait(PATIENCE):  # the main thread waits for an answer and can't be woken
                get_console().show_cursor()  # a progress bar hides it
                print(f"error: {self.fate}; the others were ended. {self._resume}", file=sys.stderr, flush=True)
                os._exit(1)
            return


def is_cut_off(error: Exception) -> bool:
    """Return whether an error comes from a connection between processes: gloo and NCCL have no class for theirs."""
    import torch

    words = ("gloo", "NCCL", "TCPStore", "pair closure")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
