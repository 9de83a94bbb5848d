"""From the words of a command to a checked config. Imports neither torch nor Lightning, so that it answers at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from mnist_lab.errors import UserError, closest

_here = Path(__file__).resolve().parent
CONF_DIR = _here / "conf" if (_here / "conf").is_dir() else _here.parent / "conf"
"""The configs: inside the installed package (a wheel carries them there), beside it in a checkout."""

ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")
INITS = ("glorot_uniform", "pytorch")
EMNIST_CLASSES = {"balanced": 47, "byclass": 62, "bymerge": 47, "letters": 26, "digits": 10, "mnist": 10}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "transformer-engine")


def class_folders(folder: str) -> list[str]:
    """Names, sorted, of the folders that hold one class each: in DIR/train where there is one, else in DIR.

    Raises:
        UserError: `folder` does not exist or has fewer than two class folders.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={folder}: there is no such folder")
    inner = root / "train" if (root / "train").is_dir() else root
    names = sorted(d.name for d in inner.iterdir() if d.is_dir() and not d.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"data.root={folder}: {inner} has {len(names)} class folder(s), and at least two are needed")
    return names


OmegaConf.register_new_resolver("class_folders", lambda folder: len(class_folders(folder)), replace=True)
OmegaConf.register_new_resolver("emnist_classes", lambda split: EMNIST_CLASSES.get(split, 0), replace=True)


@dataclass(frozen=True)
class Rule:
    """What a value may be: in words for the user, as a test for us."""

    allowed: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def or_null(self) -> Rule:
        """The same, with null allowed."""
        return Rule(f"{self.allowed}, or null", lambda v: v is None or self.holds(v), self.choices)

    def or_list(self) -> Rule:
        """The same, with a list of such values allowed."""
        return Rule(
            f"{self.allowed}, or a list of them",
            lambda v: all(map(self.holds, v)) if isinstance(v, list) else self.holds(v),
        )


def _is_number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and abs(v) != float("inf") and v == v


def _is_integer(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool)


def _integer(low: int, high: int | None = None) -> Rule:
    words = f"a whole number from {low} to {high}" if high is not None else f"a whole number, {low} or more"
    return Rule(words, lambda v: _is_integer(v) and low <= v and (high is None or v <= high))


def one_of(*choices: str) -> Rule:
    """The rule that a value is one of these words."""
    return Rule("one of " + ", ".join(choices), lambda v: v in choices, choices)


positive = Rule("a number above 0", lambda v: _is_number(v) and v > 0)
not_negative = Rule("a number, 0 or more", lambda v: _is_number(v) and v >= 0)
below_one = Rule("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1)
inside_one = Rule("a number above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1)
up_to_one = Rule("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1)
zero_to_one = Rule("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
boolean = Rule("true or false", lambda v: isinstance(v, bool))
text = Rule("a text", lambda v: isinstance(v, str) and v != "")
part = Rule(
    "a number of images, 1 or more, or a fraction above 0 and below 1",
    lambda v: (_is_integer(v) and v >= 1) or (isinstance(v, float) and 0 < v < 1),
)
share = Rule(
    "a number of images, 1 or more, or a fraction above 0, at most 1",
    lambda v: (_is_integer(v) and v >= 1) or (isinstance(v, float) and 0 < v <= 1),
)
batches = Rule(
    "a number of batches, 1 or more, or a fraction above 0, at most 1",
    lambda v: (_is_integer(v) and v >= 1) or (isinstance(v, float) and 0 < v <= 1),
)
betas = Rule(
    "two numbers, each from 0 to below 1",
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(below_one.holds, v)),
)
image_shape = Rule(
    "three whole numbers, 1 or more: [channels, height, width]",
    lambda v: isinstance(v, list) and len(v) == 3 and all(_is_integer(n) and n >= 1 for n in v),
)
device_count = Rule(
    "a whole number, 1 or more, a list of device numbers, or auto",
    lambda v: (
        v == "auto"
        or (_is_integer(v) and (v >= 1 or v == -1))
        or (isinstance(v, list) and len(v) > 0 and all(map(_is_integer, v)))
    ),
)

# Values are checked here rather than where they are used: a mistake is told before torch is imported. The rules hold
# for our own keys and those of the libraries that we configure; those of a user's own class mean what that class says.
RULES: dict[str, Rule] = {
    "name": text,
    "seed": _integer(0, 2**32 - 1),
    "test_checkpoint": one_of("last", "best"),
    "loss.label_smoothing": below_one,
    "data.root": text,
    "data.fallback": one_of("mnist_5k").or_null(),
    "data.batch_size": _integer(1),
    "data.eval_batch_size": _integer(1),
    "data.val": one_of("random", "last", "test", "none"),
    "data.val_size": part,
    "data.train_size": share.or_null(),
    "data.scale": one_of("unit", "standard", "none"),
    "data.one_vs_rest": _integer(0).or_null(),
    "data.seed": _integer(0, 2**32 - 1),
    "data.shape": image_shape,
    "data.num_classes": _integer(2),
    "data.source.split": one_of(*EMNIST_CLASSES),
    "data.source.test_size": inside_one,
    "model.hidden": _integer(1).or_list(),
    "model.activation": one_of(*ACTIVATIONS),
    "model.init": one_of(*INITS),
    "model.dropout": below_one,
    "model.filters": _integer(1),
    "model.kernel_size": _integer(1),
    "model.pool": _integer(1),
    "model.digit": _integer(0),
    "optimizer.lr": positive,
    "optimizer.eps": positive,
    "optimizer.alpha": below_one,
    "optimizer.momentum": below_one,
    "optimizer.betas": betas,
    "optimizer.weight_decay": not_negative,
    "optimizer.nesterov": boolean,
    "optimizer.fused": boolean.or_null(),
    "schedule.every": _integer(1),
    "schedule.gamma": up_to_one,
    "schedule.warmup": below_one,
    "schedule.initial": up_to_one,
    "schedule.final": zero_to_one,
    "trainer.max_epochs": _integer(1),
    "trainer.accelerator": text,
    "trainer.devices": device_count,
    "trainer.num_nodes": _integer(1),
    "trainer.strategy": text,
    "trainer.precision": one_of(*PRECISIONS),
    "trainer.gradient_clip_val": positive.or_null(),
    "trainer.accumulate_grad_batches": _integer(1),
    "trainer.check_val_every_n_epoch": _integer(1),
    "trainer.limit_train_batches": batches,
    "trainer.limit_val_batches": Rule("0, " + batches.allowed, lambda v: v == 0 or batches.holds(v)),
    "trainer.limit_test_batches": batches,
    "trainer.deterministic": boolean,
    "trainer.detect_anomaly": boolean,
    "callbacks.early_stopping.monitor": one_of("val/loss", "val/acc", "train/loss", "train/acc"),
    "callbacks.early_stopping.mode": one_of("min", "max"),
    "callbacks.early_stopping.patience": _integer(1),
    "callbacks.early_stopping.min_delta": not_negative,
}


def compose_config(overrides: list[str], config_dir: str | None = None, config_name: str = "config") -> DictConfig:
    """Composes and checks the config that `overrides` ask for.

    Args:
        overrides: Hydra overrides of one run, such as `["model=cnn", "optimizer.lr=0.01"]`.
        config_dir: a folder with groups of the user's own, searched as Hydra's `--config-dir` does.
        config_name: the primary config's name.

    Returns:
        The config, with Hydra's own part under `hydra`.

    Raises:
        UserError: something in it is unknown, malformed or not allowed.
    """
    search = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir {config_dir}: there is no such folder")
        search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            cfg = compose(config_name, overrides + search, return_hydra_config=True)
        except MissingConfigException as error:
            raise UserError(_unknown_option(error)) from error
        except ConfigCompositionException as error:
            raise UserError(_unknown_key(error, overrides + search, config_name)) from error
        except OverrideParseException as error:
            raise UserError(f"{error.override}: not understood, {_one_line(error)}") from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(_one_line(error)) from error
        except yaml.YAMLError as error:
            raise UserError("a config file is not valid YAML: " + _one_line(error)) from error
    HydraConfig.instance().set_config(cfg)
    check(cfg)
    return cfg


def _one_line(error: Exception) -> str:
    words = re.sub(r"^Error parsing override '.*'", "", str(error)) or str(error.__cause__)
    return " ".join(re.sub(r"See https?://\S+.*", "", words).split())[:1000]


def _unknown_option(error: MissingConfigException) -> str:
    wanted = error.missing_cfg_file or ""
    group, _, option = wanted.rpartition("/")
    if not error.options:
        return f"{wanted}: there is no such config"
    # An option may itself be a folder with configs; those are not the choice that was asked for.
    return (
        f"{group}={option}: there is no such {group}.{closest(option, error.options)}\n"
        f"The options of {group} are: {', '.join(sorted(error.options))}"
    )


def _unknown_key(error: ConfigCompositionException, overrides: list[str], config_name: str) -> str:
    found = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^'=]+)", str(error))
    cause = error.__cause__
    if found is None or not isinstance(cause, ConfigKeyError | AttributeError):
        return _one_line(error)
    key = found.group(1)
    rest = [o for o in overrides if re.split(r"[=@]", o.lstrip("+~"), maxsplit=1)[0] != key]
    try:
        cfg = compose(config_name, rest, return_hydra_config=key.startswith("hydra"))
    except (HydraException, OmegaConfBaseException):
        return f"{key}: there is no such option"
    return f"{key}: there is no such option.{unknown_key_hint(key, cfg)}"


def unknown_key_hint(key: str, cfg: DictConfig) -> str:
    """What the user may have meant by a key that `cfg` doesn't have, and what there is beside it."""
    keys = [k for k in _keys(cfg) if not k.rpartition(".")[2].startswith("_")]
    parent, _, name = key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    elsewhere = [k for k in keys if k.rpartition(".")[2] == name]
    if parent and beside:
        hint = closest(name, beside).replace("mean ", f"mean {parent}.")
        return f"{hint}\n{parent} has: {', '.join(beside)}"
    hint = f" Did you mean {elsewhere[0]}?" if len(elsewhere) == 1 else closest(key, keys)
    return f"{hint}\nSee every option with --cfg job"


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, cfg):
        yield prefix + name
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            yield from _keys(node, f"{prefix}{name}.")


def check(cfg: DictConfig) -> None:
    """Checks every value that has a rule, and what several values must fulfil together.

    Raises:
        UserError: naming the first key whose value is not allowed, and what is.
    """
    keys = [k for k in _keys(cfg) if k.partition(".")[0] != "hydra"]
    for key in sorted(keys, key=lambda k: k.count(".")):
        try:
            value = OmegaConf.select(cfg, key, throw_on_missing=True)
        except MissingMandatoryValue:
            raise UserError(f"{key} must be given: {key}=...") from None
        except InterpolationResolutionError as error:
            # OmegaConf keeps of the resolver's own error only its text, in its first line.
            message = str(error).splitlines()[0].rpartition("while resolving interpolation: ")[2]
            raise UserError(message if message.startswith("data.") else f"{key}: {message!s}") from None
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: " + _one_line(error)) from error
        rule = RULES.get(key)
        if rule is None or not _is_known(cfg, key):
            continue
        value = OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value
        if value is None and not rule.holds(value):
            raise UserError(f"{key} must be given: {key}=..., {rule.allowed}")
        if not rule.holds(value):
            hint = closest(str(value), rule.choices)
            raise UserError(f"{key}={_show(value)} is not allowed: it must be {rule.allowed}.{hint}")
    _check_together(cfg)


def _is_known(cfg: DictConfig, key: str) -> bool:
    section = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
    target = str(section.get("_target_", "")) if isinstance(section, DictConfig) else ""
    return target == "" or target.startswith(("mnist_lab.", "torch.", "lightning."))


def _show(value: Any) -> str:
    return "null" if value is None else str(value)


def _check_together(cfg: DictConfig) -> None:
    def get(key: str) -> Any:
        return OmegaConf.select(cfg, key)

    without = next(
        (f"{k}={v}" for k, v in (("data.val", "none"), ("trainer.limit_val_batches", 0)) if get(k) == v), None
    )
    if without is not None:
        if cfg.test_checkpoint == "best":
            raise UserError(
                f"test_checkpoint=best needs validation data, and {without} gives none: use data.val=random"
            )
        if str(get("callbacks.early_stopping.monitor")).startswith("val/"):
            raise UserError(f"early stopping watches validation data, and {without} gives none: use data.val=random")
    digit, classes = get("data.one_vs_rest"), get("data.num_classes")
    if digit is not None and digit >= classes:
        key = "model.digit" if get("model.digit") is not None else "data.one_vs_rest"
        raise UserError(f"{key}={digit} is not allowed: {get('data.name')} has the classes 0 to {classes - 1}")
    if get("optimizer.nesterov") and not get("optimizer.momentum"):
        raise UserError("optimizer.nesterov=true needs momentum: add optimizer.momentum=0.9")
    if get("schedule.initial") is not None and get("schedule.warmup") == 0:
        raise UserError(
            "schedule.warmup=0 is not allowed with schedule=one_cycle: it must be a number above 0 and below 1"
        )


def check_command(overrides: list[str], config_dir: str | None, config_name: str, multirun: bool) -> Path:
    """Checks everything that a command asks for, before anything is imported or written for it.

    A sweep is checked value by value: each value of each swept key once, with the first values of the others.

    Returns:
        The deepest folder on the way to the command's own that exists already.

    Raises:
        UserError: with the first mistake found.
    """
    if not multirun:
        cfg = compose_config(overrides, config_dir, config_name)
        return _check_writable(Path(cfg.hydra.run.dir))
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise UserError(f"{error.override}: not understood, {_one_line(error)}") from error
    axes: list[list[str]] = []
    for override in parsed:
        if override.is_sweep_override():
            try:
                axes.append([f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()])
            except (HydraException, ValueError) as error:
                raise UserError(f"{override.input_line}: {error}") from error
        else:
            axes.append([str(override.input_line)])
    for n, axis in enumerate(axes):
        if len(axis) == 0:
            raise UserError(f"{overrides[n]}: an empty range, there is nothing to sweep over")
    first = [axis[0] for axis in axes]
    cfg = compose_config(first, config_dir, config_name)
    existing = _check_writable(Path(cfg.hydra.sweep.dir))
    for n, axis in enumerate(axes):
        for value in axis[1:]:
            compose_config([*first[:n], value, *first[n + 1 :]], config_dir, config_name)
    return existing


def _check_writable(folder: Path) -> Path:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be made: {existing} is not writable. Choose another with hydra.run.dir=DIR")
    return existing


def plain(cfg: DictConfig) -> DictConfig:
    """The config of a run alone, without Hydra's own part and with every interpolation resolved."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.pop("hydra", None)
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(resolved, DictConfig)
    return resolved
