"""The command many times over: each in a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import _posixsubprocess
import atexit
import fcntl
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import forkserver, get_context, set_start_method
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["warmed"])
MODULES = ("mnist_lab", "joblib.externals.loky.backend.popen_loky_posix")
"""What commands start themselves: a run's other processes, the workers of a sweep, what is measured."""


@dataclass(frozen=True)
class Done:
    """How a command ended. Of one that was killed the status is minus the signal's number."""

    returncode: int
    stdout: str
    stderr: str


def start(
    words: list[str],
    cwd: Path,
    shown: Path,
    environment: dict[str, str] | None = None,
    helpers: int = 0,
    open_end: Connection | None = None,
    module: str = "mnist_lab",
) -> BaseProcess:
    """Start `python -m mnist_lab WORDS`.

    Args:
        words: of the command.
        cwd: its folder.
        shown: what it shows goes to the files `shown`.out and .err.
        environment: variables beside those of this process.
        helpers: number of processes, MODULES, that it may start itself and that are forked as well; more are fresh.
        open_end: of a pipe, which is closed when the command and its helpers have ended.
        module: the module to run, if not mnist_lab.
    """
    variables = {**os.environ, **(environment or {})}
    _start_fork_server()
    process = FORKS.Process(target=_front_door, args=([module, *words], cwd, shown, variables, helpers, open_end))
    process.start()
    return process


def lab(
    words: list[str],
    cwd: Path,
    seconds: float = 300,
    environment: dict[str, str] | None = None,
    helpers: int = 0,
    module: str = "mnist_lab",
) -> Done:
    """Run `python -m mnist_lab WORDS` to its end, or for so many seconds; the rest as for `start`."""
    with TemporaryDirectory() as folder:
        shown, (reader, writer) = Path(folder) / "shown", FORKS.Pipe(duplex=False)
        process = start(words, cwd, shown, environment, helpers, writer, module)
        writer.close()
        process.join(seconds)
        if helpers:
            assert reader.poll(seconds), "a process is left"
        return told(process, shown)


def _start_fork_server() -> None:
    """Start the fork server if it isn't running. It finds `warmed` by PYTHONPATH: it ignores the parent's sys.path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()


def told(process: BaseProcess, shown: Path) -> Done:
    """How a process has ended, which is killed if it hasn't, and what it showed."""
    if process.is_alive():
        process.kill()
        process.join()
    out, err = (Path(f"{shown}.{kind}") for kind in ("out", "err"))
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    assert process.exitcode is not None
    return Done(process.exitcode, *texts)


def _front_door(
    words: list[str], cwd: Path, shown: Path, environment: dict[str, str], helpers: int, open_end: Connection | None
) -> None:
    import resource

    assert "warmed" in sys.modules, "the fork server has imported nothing: each command would import everything"
    import torch

    if not torch.cuda.is_available():  # which needs addresses without end
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # a damaged file may ask for any amount
    os.chdir(cwd)
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(f"{shown}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    encoding = environment.get("PYTHONIOENCODING")
    sys.stdout = os.fdopen(1, "w", closefd=False, encoding=encoding)  # which knows whether it is a pipe
    sys.path[:0] = [str(cwd), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment |= {"COLUMNS": "120"}
    if helpers:
        words, environment = _with_helpers(helpers, words, environment)
    status = 0
    try:
        _run(*words, environment=environment)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:  # before the command has begun
        status = 130
    # The end of a Python. That of `multiprocessing` waits for child processes before it has told them to end.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(module: str, *words: str, environment: dict[str, str]) -> None:
    from mnist_lab import __main__, startup

    set_start_method(None, force=True)  # the system's, as in a fresh Python
    os.environ.clear()
    os.environ.update(environment)
    if module != "mnist_lab":
        sys.argv = [module, *words]
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    sys.argv = [str(Path(__main__.__file__)), *words]
    startup.STARTED = time.perf_counter()
    __main__.main()


def _with_helpers(number: int, words: list[str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Fork processes that wait to be a `python -m MODULE WORDS` that this one starts.

    Returns:
        Module, words and environment of the command: in a helper those that it is started with.
    """
    ready: list[tuple[int, socket.socket]] = []
    for _ in range(number):
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if (process := os.fork()) == 0:
            for end in (here, *(end for _, end in ready)):
                end.close()
            return _told_by(there)
        there.close()
        ready.append((process, here))
    fork_exec = _posixsubprocess.fork_exec

    def fork_or_exec(args: list[str | bytes], *others: Any) -> int:
        words = [word for word in map(os.fsdecode, args[1:]) if word not in ("-u", "-m")]
        if not ready or not words[0].startswith(MODULES):
            return int(fork_exec(args, *others))
        (process, there), variables = ready.pop(0), [os.fsdecode(variable) for variable in others[4]]
        handles = {handle: handle for handle in others[2] if handle != others[12]}  # its number there, and here
        handles |= {n: handle for n, handle in enumerate((others[5], others[8], others[10])) if handle != -1}
        message = json.dumps([words, variables, [*handles], others[14]]).encode()
        socket.send_fds(there, [message], [*handles.values()])
        there.close()
        return process

    subprocess._fork_exec = _posixsubprocess.fork_exec = fork_or_exec  # type: ignore[assignment, attr-defined]
    return words, environment


def _told_by(parent: socket.socket) -> tuple[list[str], dict[str, str]]:
    """Module, words and environment that a helper is started with, which gets the file handles that go with them."""
    message, received, *_ = socket.recv_fds(parent, 1 << 20, 99)
    parent.close()
    if not message:  # there was no need for it
        os._exit(0)
    words, variables, numbers, own_session = json.loads(message)
    moved = [fcntl.fcntl(handle, fcntl.F_DUPFD, 500) for handle in received]
    for handle in received:
        os.close(handle)
    for handle, number in zip(moved, numbers, strict=True):
        os.dup2(handle, number)
        os.close(handle)
    if own_session:
        os.setsid()
    return words, dict(variable.split("=", 1) for variable in variables)
