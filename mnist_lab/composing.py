"""Compose and check a config. Imports neither torch nor Lightning, so that a mistake is answered at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import Container, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from mnist_lab.errors import UserError, closest, one_line
from mnist_lab.hydra_adapter import Hydra, hydra_with
from mnist_lab.image_folders import class_folders
from mnist_lab.keys import IN_BASE, OF_TRAINER, SET_ELSEWHERE, WITHOUT_EFFECT, check_read, keys_of, unknown_key_hint
from mnist_lab.metrics import known_mode, steady
from mnist_lab.rules import EMNIST_CLASSES, MAY_BE_EMPTY, NEEDED, PACKAGES, RULES, SECTIONS, check
from mnist_lab.targets import parameters_of, with_current_names

REPLACEABLE = ("model", "module", "loss", "optimizer", "schedule", "metrics", "callbacks", "logger")
"""Sections whose class may be replaced by another with other arguments."""
SINGLE = ("model", "module", "data", "loss", "optimizer", "schedule", "augment", "trainer", "sweep", "space")
"""Groups of which a run has one option."""
OmegaConf.register_new_resolver("class_folders", lambda folder: len(class_folders(folder)), replace=True)
OmegaConf.register_new_resolver("emnist_classes", lambda split: EMNIST_CLASSES.get(split, 0), replace=True)
OmegaConf.register_new_resolver("steady", steady, replace=True)
OmegaConf.register_new_resolver(
    "mode_of", lambda metric, monitor, mode: known_mode(metric, mode, monitor), replace=True
)


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose, check and resolve the config that `overrides` ask for, from the configs in `conf/`.

    Args:
        overrides: Hydra overrides of one run, such as `["model=cnn", "optimizer.lr=0.01"]`.

    Returns:
        The config, with Hydra's own part under `hydra`.

    Raises:
        UserError: something in it is unknown, malformed or not allowed.
    """
    with hydra_with() as hydra:
        cfg = compose_with(hydra, with_plus_signs(overrides))
        settle(cfg, overrides)
        for key in [str(key) for key in cfg if key != "hydra"]:  # while it is known what ${hydra:...} means
            value = cfg[key]
            if isinstance(value, Container):
                OmegaConf.resolve(value)
            if OmegaConf.is_interpolation(cfg, key):
                cfg[key] = value
        return cfg


def compose_with(hydra: Hydra, overrides: list[str], config_name: str = "config") -> DictConfig:
    """Compose and check a config, not resolved, from the configs that `hydra` finds.

    Raises:
        UserError: something in it is unknown, malformed or not allowed.
    """
    try:
        cfg = hydra.compose_config(config_name, overrides, run_mode=RunMode.RUN)
    except MissingConfigException as error:
        raise UserError(_unknown_option(error, hydra)) from error
    except ConfigCompositionException as error:
        raise UserError(_unknown_key(error, overrides, config_name, hydra)) from error
    except OverrideParseException as error:
        raise UserError(not_understood(error)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if "group override must be" in str(error) and (empty := [w for w in overrides if w.endswith("=null")]):
            raise UserError(f"{empty[0]} is not allowed: a group takes one of its options, such as none") from error
        raise UserError(one_line(error)) from error
    except yaml.YAMLError as error:
        raise UserError("a config file is not valid YAML: " + one_line(error)) from error
    except (AssertionError, AttributeError, TypeError) as error:  # Hydra's, of a list in the place of an option, say
        words = [word for word in overrides if re.search(r"[\[{$]", word)] or overrides
        raise UserError(f"{' '.join(words)}: not understood, {one_line(error)}") from error
    HydraConfig.instance().set_config(cfg)
    for group, _, options in (word.rstrip("]").partition("=[") for word in overrides):
        if group in SINGLE and options:
            raise UserError(f"{group}=[{options}]: a run has one {group}. For a run of each: -m {group}={options}")
    _check_hydra(cfg)
    check(cfg)
    known = (*RULES, *NEEDED, *PACKAGES, "experiment", "reported")
    check_read(cfg, overrides, known, free=(*SECTIONS, "module", "metrics", *MAY_BE_EMPTY))
    return cfg


def run_config(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """Return what makes a run's numbers: the config without Hydra's part, the sweep's and the report's, resolved.

    Classes that have moved have their new names.

    Args:
        cfg: the config, as Hydra or `compose_config` has composed it.
        overrides: those of a config that Hydra has composed; none for one of `compose_config`.
    """
    cfg = cfg.copy()
    settle(cfg, overrides)
    with open_dict(cfg):
        for key in ("hydra", "sweep", "report"):
            cfg.pop(key, None)
    resolved = OmegaConf.create(with_current_names(OmegaConf.to_container(cfg, resolve=True)))
    assert isinstance(resolved, DictConfig)
    return resolved


def with_plus_signs(overrides: Sequence[str]) -> list[str]:
    """Return overrides with the `+` or `++` that Hydra needs for what the config doesn't have.

    - `GROUP={_target_: ...}` gives a group its class and arguments; `logger._target_=CLASS` is a single logger, in the
      place of those that have sections of their own.
    - `trainer.NAME=VALUE` sets any argument of Lightning's Trainer, with or without a `+`.
    """
    return [_with_plus_signs(word) for word in overrides]


def _with_plus_signs(word: str) -> str:
    key, _, value = word.partition("=")
    section, _, name = key.lstrip("+").partition(".")
    if key == "logger._target_" or (key in REPLACEABLE and value.startswith("{") and "_target_" in value):
        return f"++{word}"
    if section == "trainer" and name in (*OF_TRAINER, *SET_ELSEWHERE, *WITHOUT_EFFECT):
        return f"++{word.lstrip('+')}"
    return word.lstrip("+") if section == "trainer" and name in IN_BASE else word


def settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Drop arguments that a class named on the command line doesn't take; set `data.shape` to the size after resizing.

    `loss._target_=torch.nn.NLLLoss` replaces the class of `loss=cross_entropy`. Arguments from `cross_entropy.yaml` are
    dropped, except those that `NLLLoss` takes, too, and those that were typed.
    """
    typed: set[str] = set()
    # Parsing takes milliseconds a word.
    words = list(overrides) if any("_target_" in word for word in overrides) else []
    for override in OverridesParser.create().parse_overrides(words):
        key, value = override.get_key_element().lstrip("+~"), override.value()
        typed |= {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
    with open_dict(cfg):
        for key in typed:
            section, _, name = key.rpartition(".")
            if name == "_target_" and section.partition(".")[0] in REPLACEABLE:
                _drop_arguments(cfg, section, typed)
        data = cfg.get("data") or {}
        resize, channels, shape = (data.get(key) for key in ("resize", "channels", "shape"))
        if shape is not None and (resize is not None or channels is not None):
            size = [resize, resize] if isinstance(resize, int) else list(resize or shape[1:])
            cfg.data.shape = [channels or shape[0], *size]


def _drop_arguments(cfg: DictConfig, section: str, typed: set[str]) -> None:
    """Drop the arguments of a section that its class or function doesn't take, and that were not typed."""
    described = OmegaConf.select(cfg, section)
    try:
        target = get_object(described._target_)
    except Exception:  # whatever the module that it is in raises: it is said when the class is used
        return
    taken = {*parameters_of(target)}
    if "kwargs" in taken and not isinstance(target, type):
        taken.add("num_classes")  # as torchvision's functions that make networks take it
    for name in [str(name) for name in described if not str(name).startswith("_")]:
        if name not in taken and not any(f"{key}.".startswith(f"{section}.{name}.") for key in typed):
            del described[name]


def use_absolute_root(cfg: DictConfig) -> None:
    """Have `data.root` name the same folder from wherever the config is used; `~` stays the user's home."""
    root = OmegaConf.select(cfg, "data.root")
    if isinstance(root, str) and not root.startswith("~"):
        cfg.data.root = str(Path(root).absolute())


def _check_hydra(cfg: DictConfig) -> None:
    """Raise UserError for what Hydra would fail on only once the command's folder is there."""
    alone = OmegaConf.masked_copy(cfg, ["hydra"])  # which is how Hydra reads these
    try:
        for key in ("hydra.mode", "hydra.job.chdir", "hydra.job.env_set", "hydra.job.env_copy"):
            OmegaConf.select(alone, key)
        for section in ("run", "sweep", "job", "job_logging", "hydra_logging", "overrides", "runtime"):
            if not OmegaConf.is_dict(OmegaConf.select(cfg, key := f"hydra.{section}")):
                raise UserError(f"{key} is a section, and can't be replaced: set one of its keys")
        for group in ("launcher", "sweeper"):
            if not isinstance(OmegaConf.select(cfg, key := f"hydra.{group}._target_"), str):
                raise UserError(f"{key} names no class: choose one of its options, hydra/{group}=OPTION")
        if OmegaConf.select(cfg, key := "hydra.output_subdir") == "":
            raise UserError(f"{key} must be the name of a folder in the run's, or null")
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {one_line(error)}") from error


def not_understood(error: OverrideParseException) -> str:
    """Return what is wrong with an override that Hydra can't parse."""
    key, _, value = str(error.override).partition("=")
    plain_text = value and not re.search(r"[\[\]{}()'\",]", value)
    hint = f""". A text with such characters is quoted twice: '{key}="{value}"'""" if plain_text else ""
    return f"{error.override}: not understood, {one_line(error)}{hint}"


def _unknown_option(error: MissingConfigException, hydra: Hydra) -> str:
    wanted = error.missing_cfg_file or ""
    group, _, option = wanted.rpartition("/")
    options = error.options or hydra.config_loader.get_group_options(group)  # which Hydra doesn't give for a list
    if not options:
        return f"{wanted}: there is no such config"
    return (
        f"{group}={option}: there is no such {group}.{closest(option, options)}\n"
        f"The options of {group} are: {', '.join(sorted(options))}"
    )


def _unknown_key(error: ConfigCompositionException, overrides: list[str], config_name: str, hydra: Hydra) -> str:
    if (group := re.search(r"Multiple values for ([\w/]+)\.", str(error))) is not None:
        return f"+{group[1]}: there is one already, which {group[1]}=OPTION replaces"
    found = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^'=]+)", str(error))
    cause = error.__cause__
    deleted = str(error).endswith("does not exist.")
    if found is None or not (deleted or isinstance(cause, ConfigKeyError | AttributeError)):
        return one_line(error)
    key = found.group(1)
    section, *names = key.split(".")
    if names and names[0] in hydra.config_loader.get_group_options(section):
        return f"{key}: the run has no {section}.{names[0]}. Add {section}={names[0]}"
    rest = [o for o in overrides if re.split(r"[=@]", o.lstrip("+~"), maxsplit=1)[0] != key]
    try:
        cfg = hydra.compose_config(config_name, rest, run_mode=RunMode.RUN)
    except (HydraException, OmegaConfBaseException):  # there is a second mistake
        cfg = hydra.compose_config(config_name, [], run_mode=RunMode.RUN)
    if key in keys_of(cfg):
        return f"{key}: can't be replaced by other keys than it has. To add one: +{key}.NAME=VALUE"
    return f"{key}: there is no such option.{unknown_key_hint(key, cfg)}"
