"""The verb `resume`: a run or a sweep goes on where it was."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig, OmegaConf

from mnist_lab.command import quoted, read_command
from mnist_lab.errors import UserError, printable
from mnist_lab.files import check_contents, is_sweep
from mnist_lab.folders import run_folder
from mnist_lab.launch import launch
from mnist_lab.processes import is_helper_process, refuse_launcher
from mnist_lab.rules import check
from mnist_lab.run_folder import asked_of, load_config
from mnist_lab.sweep.study import is_own, load_asked
from mnist_lab.trust import is_harmless
from mnist_lab.words import divide, folder_of

if TYPE_CHECKING:
    from mnist_lab.result import Result

LIMITS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")
CHANGEABLE = ("trainer.devices", "data.root")
CHANGED = ("The number of epochs has changed", "The number of steps has changed")
USAGE = (
    "use: python -m mnist_lab resume outputs/.../RUN [trainer.max_epochs=N] [trainer.max_steps=N] "
    "[trainer.max_time='{minutes: N}'] [trainer.devices=N] [data.root=DIR], or "
    "resume outputs/sweeps/NAME [sweep.trials=N ...]"
)


def resume(words: list[str]) -> None:
    """Go on with what a folder holds.

    A run goes on from its last checkpoint, in the middle of an epoch if it was stopped there, to the numbers that it
    would have had; one that is finished stays as it is. Of a sweep, what is left is run: trials that wait or were
    stopped, then those whose process was killed, each from its last checkpoint.

    Args:
        words: the folder, then overrides: of a run `trainer.max_epochs=8` or another limit, which goes on with a
            finished one, and `trainer.devices=2`, which goes on with another number of processes from the end of an
            epoch; of a sweep `sweep.trials=40`, which adds trials, or `sweep.accept_changes=true`, which goes on
            although code or configs have changed.

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
    check_contents(folder)
    asked = load_asked(folder)
    if not is_own(asked):
        for word in (str(word) for word in asked["argv"] if word not in ("-m", "--multirun")):
            # An interpolation can make a _target_, and model=../../x reads a file that came with the sweep.
            code = "_target_" in word and not is_harmless(word)
            if code or word.startswith("-") or any(part in word for part in ("hydra", "$", "..")):
                raise UserError(
                    f"{folder} was not started here, and its {word} could run code of whoever did. If you trust it: "
                    "MNIST_LAB_TRUST=sweep"
                )
    for word in words:
        if not word.startswith("sweep."):
            raise UserError(f"{word}: only sweep.* can be changed of a sweep that has begun\n{USAGE}")
    configs = read_command(asked["argv"]).args.config_dir
    if configs is not None and "cwd" in asked and not Path(configs).is_dir():
        raise UserError(f"--config-dir {configs}: there is no such folder here. Resume the sweep from {asked['cwd']}")
    launch([*asked["argv"], *words, f"hydra.sweep.dir={quoted(folder.absolute())}"], fresh=False)


def _run(folder: Path, words: list[str]) -> None:
    started = time.perf_counter()
    options, others = divide(words, dict.fromkeys((*LIMITS, *CHANGEABLE), ""), USAGE)
    if others:
        known = ", ".join((*LIMITS, *CHANGEABLE))
        raise UserError(f"{others[0]}: of a run that has begun only these can be changed: {known}\n{USAGE}")
    options = {key: value for key, value in options.items() if value}
    planned = load_config(folder, [])
    cfg = _with_limits(load_config(folder, [f"{key}={options[key]}" for key in CHANGEABLE if key in options]), options)
    asked = asked_of(folder)
    try:
        command, overrides = list(asked["command"]), list(asked["overrides"])
        remarks = list(map(str, asked.get("remarks", [])))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'run.json'} can't be read, or doesn't say what was asked for") from error
    from mnist_lab.result import Result

    epochs = planned.trainer.max_epochs
    if not is_helper_process() and (folder / "result.json").exists():
        before = Result.load(folder)
        epochs = len(before.history)
        same = all(OmegaConf.select(cfg, key) == OmegaConf.select(planned, key) for key in LIMITS[1:])
        if same and cfg.trainer.max_epochs in (planned.trainer.max_epochs, *range(epochs + 1)):
            print(printable(f"{folder} is finished, after {epochs} epochs. To train it longer: {_longer(before)}"))
            return
        remarks = [note for note in before.notes if note.startswith(CHANGED)]
    if "_target_" in cfg.schedule or "early_stopping" in cfg.callbacks:
        remarks += _remarks(planned, options, epochs)
    from mnist_lab.fast.process import flush_denormals
    from mnist_lab.run import run
    from mnist_lab.user_code import errors_in_one_line

    flush_denormals()
    report = asked.get("report", True)
    with run_folder(folder, until=None), errors_in_one_line(cfg, folder):
        run(cfg, folder, _changed(overrides, options), _changed(command, options), started, (), report, remarks)


def _with_limits(cfg: DictConfig, options: dict[str, str]) -> DictConfig:
    """Return the config with other limits.

    Raises:
        UserError: a value is not allowed.
    """
    for key in (key for key in LIMITS if key in options):
        try:
            OmegaConf.update(cfg, key, yaml.safe_load(options[key]), merge=False, force_add=True)
        except yaml.YAMLError:
            raise UserError(f"{key}={options[key]}: not understood") from None
    check(cfg)
    return cfg


def _changed(words: list[str], options: dict[str, str]) -> list[str]:
    """Return the words of a command with other values for some options: the command that repeats the whole run."""
    kept = [word for word in words if not (word.startswith("+") and word.lstrip("+").partition("=")[0] in options)]
    # Every config has the others.
    return kept + [f"{'+' * (key == 'trainer.max_time')}{key}={value}" for key, value in options.items()]


def _longer(result: Result) -> str:
    """Return the option with which a finished run trains longer."""
    ended = result.ended.get("by")
    if ended == "max_steps":
        return f"trainer.max_steps={result.ended['steps'] + 1}"
    return (
        "'trainer.max_time={minutes: 10}'" if ended == "max_time" else f"trainer.max_epochs={len(result.history) + 1}"
    )


def _remarks(planned: DictConfig, options: dict[str, str], epochs: int) -> list[str]:
    """Return a note on each limit that is another now.

    Args:
        planned: the config that the run had.
        options: the limits that were typed.
        epochs: of the run so far, or that were planned.
    """
    before = {"epochs": epochs, "steps": planned.trainer.get("max_steps", -1)}
    now = {unit: options.get(f"trainer.max_{unit}", str(count)) for unit, count in before.items()}
    return [
        f"The number of {unit} has changed, {count} → {now[unit]}: a run of {now[unit]} from the start has another "
        "schedule, or may have stopped earlier."
        for unit, count in before.items()
        if now[unit] != str(count)
    ]
