"""The command many times over: each in a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["warmed"])


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
) -> BaseProcess:
    """Start `python -m mnist_lab WORDS`.

    Args:
        words: of the command.
        cwd: its folder.
        shown: what it shows goes to the files `shown`.out and .err.
        environment: variables beside those of this process.
        helpers: number of `python -m mnist_lab` that it may start itself and that are forked as well; more are fresh.
        open_end: of a pipe, which is closed when the command and its helpers have ended.
    """
    variables = {**os.environ, **(environment or {})}
    process = FORKS.Process(target=_front_door, args=(words, cwd, shown, variables, helpers, open_end))
    process.start()
    return process


def lab(
    words: list[str], cwd: Path, seconds: float = 300, environment: dict[str, str] | None = None, helpers: int = 0
) -> Done:
    """Run `python -m mnist_lab WORDS` to its end, or for so many seconds; `helpers` as for `start`."""
    with TemporaryDirectory() as folder:
        shown, (reader, writer) = Path(folder) / "shown", FORKS.Pipe(duplex=False)
        process = start(words, cwd, shown, environment, helpers, writer)
        writer.close()
        process.join(seconds)
        if helpers:
            assert reader.poll(seconds), "a process is left"
        return told(process, shown)


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

    import torch

    if not torch.cuda.is_available():  # which needs addresses without end
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # a damaged file may ask for any amount
    os.chdir(cwd)
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(f"{shown}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    sys.path[:0] = [str(cwd), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if helpers:
        words, environment = _with_helpers(helpers, words, environment)
    _run(words, {**environment, "COLUMNS": "120"})


def _run(words: list[str], environment: dict[str, str]) -> None:
    from mnist_lab import __main__, startup

    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(Path(__main__.__file__)), *words]
    startup.STARTED = time.perf_counter()
    with suppress(BrokenPipeError):
        __main__.main()


def _with_helpers(number: int, words: list[str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Fork processes that wait to be a `python -m mnist_lab WORDS` that this one starts.

    Returns:
        Words and environment of the command: in a helper those that it is started with.
    """
    ready: list[tuple[int, int]] = []
    for _ in range(number):
        reader, writer = os.pipe()
        if (process := os.fork()) == 0:
            for handle in (writer, *(handle for _, handle in ready)):
                os.close(handle)
            with os.fdopen(reader, encoding="utf-8") as pipe:
                told = pipe.read()
            if not told:  # there was no need for it
                os._exit(0)
            words, environment = json.loads(told)
            return words, environment
        os.close(reader)
        ready.append((process, writer))
    fork_exec = subprocess._fork_exec  # type: ignore[attr-defined]

    def fork_or_exec(args: list[str], *others: Any) -> int:
        if not ready or list(args[:3]) != [sys.executable, "-m", "mnist_lab"]:
            return int(fork_exec(args, *others))
        process, writer = ready.pop(0)
        variables = dict(os.fsdecode(variable).split("=", 1) for variable in others[4])
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            json.dump([args[3:], variables], pipe)
        return process

    subprocess._fork_exec = fork_or_exec  # type: ignore[attr-defined]
    return words, environment
