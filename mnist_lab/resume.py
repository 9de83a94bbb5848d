"""The verb `resume`: a run or a sweep goes on where it was."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from mnist_lab.config import quoted
from mnist_lab.errors import UserError
from mnist_lab.evaluate import asked_of, load_config
from mnist_lab.folders import at_work
from mnist_lab.processes import is_helper_process, refuse_launcher
from mnist_lab.sweep.study import is_own, is_sweep, load_asked
from mnist_lab.words import divide, folder_of

LONGER = "The number of epochs has changed"
USAGE = (
    "use: python -m mnist_lab resume outputs/.../RUN [trainer.max_epochs=N] [trainer.devices=N], or "
    "resume outputs/sweeps/NAME [sweep.trials=N ...]"
)


def resume(words: list[str]) -> None:
    """Goes on with what a folder holds.

    A run goes on from its last checkpoint, in the middle of an epoch if it was stopped there, to the numbers that it
    would have had; one that is finished stays as it is. Of a sweep, what is left is run: trials that wait or were
    stopped, then those whose process was killed, each from its last checkpoint.

    Args:
        words: the folder, then overrides: of a run `trainer.max_epochs=8`, which goes on with a finished one, and
            `trainer.devices=2`, which goes on with another number of processes from the end of an epoch; of a sweep
            `sweep.trials=40`, which adds trials, or `sweep.accept_changes=true`, which goes on although code or
            configs have changed.

    Raises:
        UserError: it is neither's folder, another process is at work on it, or what it is made of has changed.
    """
    folder = folder_of(words, USAGE)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if (folder / ".hydra").exists() and not (folder / "config.yaml").exists():
        raise UserError(f"{folder} was stopped before it began: nothing is lost, run its command again in a new folder")
    if is_sweep(folder) or not (folder / "config.yaml").exists():
        refuse_launcher("a sweep")
        _sweep(folder, words[1:])
    elif is_sweep(folder.parent) and not is_helper_process():
        sweep = shlex.quote(str(folder.parent))
        raise UserError(f"{folder} is a trial of a sweep, which goes on as a whole: resume {sweep}")
    else:
        _run(folder.absolute(), words[1:])


def _sweep(folder: Path, words: list[str]) -> None:
    from hydra._internal.utils import get_args_parser

    from mnist_lab.__main__ import train

    asked = load_asked(folder)
    if not is_own(asked):
        for word in (str(word) for word in asked["argv"] if word not in ("-m", "--multirun")):
            # An interpolation can make a _target_, and model=../../x reads a file that came with the sweep.
            if word.startswith("-") or any(part in word for part in ("_target_", "hydra", "$", "..")):
                raise UserError(
                    f"{folder} was not started here, and its {word} could run code of whoever did. If you trust it: "
                    "MNIST_LAB_TRUST=sweep"
                )
    for word in words:
        if not word.startswith("sweep."):
            raise UserError(f"{word}: only sweep.* can be changed of a sweep that has begun\n{USAGE}")
    configs = get_args_parser().parse_args(asked["argv"]).config_dir
    if configs is not None and "cwd" in asked and not Path(configs).is_dir():
        raise UserError(f"--config-dir {configs}: there is no such folder here. Resume the sweep from {asked['cwd']}")
    train([sys.argv[0], *asked["argv"], *words, f"hydra.sweep.dir={quoted(folder.absolute())}"], fresh=False)


def _run(folder: Path, words: list[str]) -> None:
    started = time.perf_counter()
    options, others = divide(words, dict.fromkeys(("trainer.max_epochs", "trainer.devices"), ""), USAGE)
    if others:
        raise UserError(
            f"{others[0]}: only trainer.max_epochs and trainer.devices can be changed of a run that has begun\n{USAGE}"
        )
    more = [f"{key}={value}" for key, value in options.items() if value]
    cfg = load_config(folder, more)
    asked = asked_of(folder)
    try:
        command, overrides = list(asked["command"]), list(asked["overrides"])
        remarks = list(map(str, asked.get("remarks", [])))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'run.json'} can't be read, or doesn't say what was asked for") from error
    from mnist_lab.result import Result

    epochs = planned = load_config(folder, []).trainer.max_epochs
    if not is_helper_process() and (folder / "result.json").exists():
        before = Result.load(folder)
        epochs = len(before.history)
        if cfg.trainer.max_epochs in (planned, *range(epochs + 1)):
            print(f"{folder} is finished, after {epochs} epochs. To train it longer: trainer.max_epochs={epochs + 1}")
            return
        remarks = [note for note in before.notes if note.startswith(LONGER)]
    if cfg.trainer.max_epochs != epochs and ("_target_" in cfg.schedule or "early_stopping" in cfg.callbacks):
        remarks.append(
            f"{LONGER}, {epochs} → {cfg.trainer.max_epochs}: a run of {cfg.trainer.max_epochs} from the start has "
            "another schedule, or may have stopped earlier."
        )
    from mnist_lab.run import flush_denormals, run
    from mnist_lab.user_code import errors_in_one_line

    flush_denormals()
    with at_work(folder, until=None), errors_in_one_line(cfg, folder):
        run(cfg, folder, overrides + more, command + more, started, report=asked.get("report", True), remarks=remarks)
