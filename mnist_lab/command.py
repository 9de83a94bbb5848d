"""The check of a training command, before anything is imported or written for it."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig

from mnist_lab.composing import compose_with, not_understood, with_plus_signs
from mnist_lab.errors import UserError
from mnist_lab.folders import check_folder
from mnist_lab.hydra_adapter import Hydra, hydra_with, parse_arguments
from mnist_lab.metrics import ALL, COSTS, MONITOR, mode_of, unknown_metric
from mnist_lab.rules import RULES, check_there
from mnist_lab.sweep.space import axis
from mnist_lab.words import path_of

OF_A_SWEEP = re.compile(r"(sweep|space)([.=@]|$)|hydra\.sweep\.|hydra[./](sweeper|launcher)([.=@]|$)")
"""Overrides that only a multirun reads."""


@dataclass(frozen=True)
class Command:
    """A training command.

    Attributes:
        words: its flags and overrides, as they were typed.
        args: the same, as Hydra's own parser reads them.
    """

    words: list[str]
    args: Namespace

    @property
    def multirun(self) -> bool:
        """Return whether it asks for several jobs."""
        return bool(self.args.multirun) or "hydra.mode=MULTIRUN" in self.args.overrides

    @property
    def shows_help(self) -> bool:
        """Return whether it asks for a help text, for which no config is needed."""
        return bool(self.args.hydra_help or self.args.shell_completion or self.args.help)

    @property
    def runs(self) -> bool:
        """Return whether it trains, and doesn't only show something."""
        return not (self.shows_help or self.args.cfg or self.args.info)

    @property
    def config_flags(self) -> list[str]:
        """The flags that say where configs are, each followed by its value."""
        flags = {f"--config-{of}": getattr(self.args, f"config_{of}") for of in ("path", "dir", "name")}
        return [word for flag, value in flags.items() if value is not None for word in (flag, value)]


def read_command(words: list[str]) -> Command:
    """Read a training command.

    Raises:
        UserError: a flag is unknown or lacks its value.
    """
    words = with_plus_signs(words)
    return Command(words, parse_arguments(words))


def check_kind(overrides: Iterable[str], multirun: bool) -> None:
    """Check that the command is of the kind, single run or multirun, that reads all of its words.

    Raises:
        UserError: naming the first word that only the other kind reads.
    """
    for word in overrides:
        key = word.lstrip("+~")
        if not multirun and OF_A_SWEEP.match(key):
            raise UserError(f"{word}: only a multirun reads this. Add -m")
        if multirun and key.startswith("hydra.run."):
            raise UserError(f"{word}: only a single run reads this. A multirun's folder is hydra.sweep.dir")


def quoted(path: Path) -> str:
    """Return a path as a value in Hydra's grammar of overrides."""
    return QuotedString(str(path), Quote.single).with_quotes()


def check_command(command: Command, fresh: bool = True) -> tuple[DictConfig, Path, Path]:
    """Check everything that a command asks for, before anything is imported or written for it.

    Args:
        command: what `read_command` returned.
        fresh: whether its folder must be empty or new.

    Returns:
        The config, of a multirun one with the first value of each sweep; the command's own folder; the deepest folder
        on the way to it that exists already.

    Raises:
        UserError: with the first mistake found.
    """
    args = command.args
    if fresh:
        check_kind(args.overrides, command.multirun)
    with hydra_with(args.config_path, args.config_dir) as hydra:
        compose = partial(compose_with, hydra, config_name=args.config_name or "config")
        if command.multirun:
            return _check_multirun(hydra, compose, args.overrides, fresh)
        cfg = compose(args.overrides)
        if cfg.hydra.mode == RunMode.MULTIRUN:
            raise UserError("hydra.mode=MULTIRUN is not allowed in a config: -m makes a command a multirun")
        return cfg, *_folder("hydra.run.dir", cfg.hydra.run.dir, fresh)


def _folder(key: str, named: str | None, fresh: bool) -> tuple[Path, Path]:
    folder = named and str(path_of(named))  # ~ is the user's home
    existing = check_folder(key, folder or "", fresh)
    return Path(folder or "").absolute(), existing


def _check_multirun(
    hydra: Hydra, compose: Callable[[list[str]], DictConfig], overrides: list[str], fresh: bool
) -> tuple[DictConfig, Path, Path]:
    """Check a multirun value by value: each option of each swept group once, with the first values of the others."""
    try:
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
    except OverrideParseException as error:
        raise UserError(not_understood(error)) from error
    # Of each override what shows whether it is allowed: all values of a sweep's, or both ends of an interval.
    axes = [axis(o).extremes() if o.is_sweep_override() else [str(o.input_line)] for o in parsed]
    first = [values[0] for values in axes]
    cfg = compose(first)
    folders = _folder("hydra.sweep.dir", cfg.hydra.sweep.dir, fresh)
    for n, (override, values) in enumerate(zip(parsed, axes, strict=True)):
        key = override.get_key_element().lstrip("+")
        if hydra.config_loader.get_group_options(key):
            for value in values[1:]:
                compose([*first[:n], value, *first[n + 1 :]])
        elif key in RULES:
            for other in OverridesParser.create().parse_overrides(values[1:]):
                RULES[key].check(key, other.value())
    for mistake in _sweep_conflicts(parsed, cfg):
        raise UserError(mistake)
    return cfg, *folders


def _sweep_conflicts(overrides: list[Override], cfg: DictConfig) -> Iterator[str]:
    """Yield a sentence for each mistake that a sweep's options make together.

    Raises:
        UserError: one of the options is missing, or an objective's name doesn't say whether it is to be small.
    """
    check_there(cfg, ("sweep.sampler", "sweep.objective", "sweep.direction", "sweep.pruner", "sweep.space"))
    sweep, trainer, without = cfg.sweep, cfg.trainer, cfg.data.val == "none"
    objectives, directions = (
        list(value) if isinstance(value, ListConfig) else [value] for value in (sweep.objective, sweep.direction)
    )
    if sweep.direction is not None and len(objectives) != len(directions):
        yield f"sweep.direction={directions} is not allowed: sweep.objective has {len(objectives)}, so give as many"
    monitor = str(cfg.get("monitor", MONITOR))
    judged = [str(name or monitor) for name in objectives]
    for name in judged:
        yield from unknown_metric(cfg, "sweep.objective", name, ALL)
        if sweep.direction is None:
            mode_of(name, cfg.get("mode"), monitor)
    tasks = cfg.hydra.launcher.get("tasks_per_node", 1)
    if tasks > 1:
        yield (
            f"hydra.launcher.tasks_per_node={tasks} is not allowed: a trial is one task, which starts its other "
            f"processes itself: trainer=ddp trainer.devices={tasks}"
        )
    yield from _pruner_conflicts(cfg, objectives)
    if without and any(str(name).startswith("val/") for name in objectives):
        yield "sweep.objective needs validation data, and data.val=none gives none: use data.val=random"
    every, epochs = trainer.get("check_val_every_n_epoch"), trainer.max_epochs
    of_validation = not without and any(name.startswith("val/") for name in judged)
    if of_validation and every and epochs > 0 and epochs % every:
        yield (
            f"trainer.check_val_every_n_epoch={every} leaves the last of trainer.max_epochs={epochs} epochs without "
            f"validation, by which a sweep judges: trainer.max_epochs={epochs + every - epochs % every}"
        )
    if cfg.hydra.sweeper._target_.startswith("hydra_plugins.mnist_lab"):
        for override in overrides:
            if override.key_or_group == "hydra.sweep.subdir":
                yield (
                    f"{override.input_line} is not allowed: a trial's folder is its number; "
                    "hydra/sweeper=basic has folders of any name"
                )
    swept = [override for override in overrides if override.is_sweep_override()]
    intervals = [str(override.input_line) for override in swept if override.is_interval_sweep()]
    intervals += [f"{key}={value}" for key, value in sweep.space.items() if "interval(" in str(value)]
    if sweep.sampler == "grid" and intervals:
        yield f"{intervals[0]}: a grid needs values that can be counted: add sweep=random or sweep=tpe"
    if sweep.sampler != "grid" and not (swept or sweep.space or cfg.hydra.sweeper.get("params")):
        yield f"sweep={sweep.sampler}: there is nothing to search; give ranges, or space=mlp or space=cnn"


def _pruner_conflicts(cfg: DictConfig, objectives: list[Any]) -> Iterator[str]:
    """Yield a sentence for each reason why the pruner can't end a trial early."""
    pruner, devices = f"sweep.pruner={cfg.sweep.pruner}", cfg.trainer.devices
    if cfg.sweep.pruner == "none":
        return
    if len(objectives) > 1:
        yield f"{pruner} needs a single objective, and there are {len(objectives)}"
    monitor = str(cfg.get("monitor", MONITOR))
    objective = objectives[0] or (monitor.replace("val/", "test/", 1) if cfg.data.val == "none" else monitor)
    if objective.startswith("test/") or objective in COSTS:
        yield (
            f"{pruner} looks at each epoch, and {objective} is known when a run is over: use sweep.objective=val/acc, "
            "with validation data (data.val=random)"
        )
    if isinstance(devices, int) and devices > 1:
        yield f"{pruner} can't end one trial of trainer.devices={devices} processes: use one, or sweep.pruner=none"
