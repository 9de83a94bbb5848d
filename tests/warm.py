"""The command many times over: each in a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["warmed"])


@dataclass(frozen=True)
class Done:
    """How a command ended. Of one that was killed the status is minus the signal's number."""

    returncode: int
    stdout: str
    stderr: str


def start(words: list[str], cwd: Path, shown: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Starts `python -m mnist_lab WORDS`; what it shows goes to the files `shown`.out and .err."""
    process = FORKS.Process(target=_front_door, args=(words, cwd, shown, {**os.environ, **(environment or {})}))
    process.start()
    return process


def lab(words: list[str], cwd: Path, seconds: float = 300, environment: dict[str, str] | None = None) -> Done:
    """Runs `python -m mnist_lab WORDS` to its end, or for so many seconds."""
    with TemporaryDirectory() as folder:
        shown = Path(folder) / "shown"
        process = start(words, cwd, shown, environment=environment)
        process.join(seconds)
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


def _front_door(words: list[str], cwd: Path, shown: Path, environment: dict[str, str]) -> None:
    import resource

    import torch

    from mnist_lab import __main__, startup

    if not torch.cuda.is_available():  # which needs addresses without end
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # a damaged file may ask for any amount
    os.environ.clear()
    os.environ.update(environment, COLUMNS="120")
    os.chdir(cwd)
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(f"{shown}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    sys.path[:0] = [str(cwd), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [str(Path(__main__.__file__)), *words]
    startup.STARTED = time.perf_counter()
    with suppress(BrokenPipeError):
        __main__.main()
