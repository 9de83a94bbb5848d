"""From the words of a command to a checked config. Imports neither torch nor Lightning, so that it answers at once."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from traceback import extract_tb
from typing import Any

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from mnist_lab.errors import UserError, closest
from mnist_lab.files import is_sweep
from mnist_lab.keys import check_kind, check_read, keys_of, unknown_key_hint
from mnist_lab.processes import is_helper_process
from mnist_lab.sweep.space import axis
from mnist_lab.words import path_of

_here = Path(__file__).resolve().parent
CONF_DIR = _here / "conf" if (_here / "conf").is_dir() else _here.parent / "conf"
"""The configs: inside the installed package (a wheel carries them there), beside it in a checkout."""

SECTIONS = ("data", "model", "loss", "optimizer", "trainer")
"""Sections that are a class or a function and its arguments."""
MAY_BE_EMPTY = ("schedule", "callbacks", "logger")
PACKAGES = {"augment": "data", "experiment": "_global_", "space": "sweep.space"}
"""Groups whose options are not a section of their own, with the package that each of their files must name."""
INSTEAD = {"callbacks": "callbacks.NAME", "logger": "logger", "default_root_dir": "hydra.run.dir"}
"""Arguments of Lightning's Trainer that are options of their own."""
NEEDED = (
    *("name", "seed", "seeds.weights", "seeds.dropout", "test_checkpoint", "compile"),
    *("data.name", "data.val", "data.num_classes"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.precision"),
    *("trainer.max_epochs", "trainer.gradient_clip_val", "trainer.accumulate_grad_batches"),
)
"""Keys that the program itself reads."""
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")
INITS = ("glorot_uniform", "pytorch")
EMNIST_CLASSES = {"balanced": 47, "byclass": 62, "bymerge": 47, "letters": 26, "digits": 10, "mnist": 10}
TRAINING, TEST = ("train", "training"), ("test", "testing")
VALIDATION = ("val", "valid", "validation", "dev")
"""Names that folders of training, test and validation images have; the last are not read."""
PRECISIONS = ("32-true", "auto", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")


def class_folders(folder: str) -> list[str]:
    """Names, sorted, of the folders that hold one class each: in DIR/train where there is one, else in DIR.

    Raises:
        UserError: `folder` does not exist or has fewer than two class folders.
    """
    root = path_of(folder)
    if not root.is_dir():
        raise UserError(f"data.root={folder}: there is no such folder")
    inner = part_of(root, TRAINING) or root
    names = sorted(d.name for d in inner.iterdir() if d.is_dir() and not d.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"data.root={folder}: {inner} has {len(names)} class folder(s), and at least two are needed")
    return names


def part_of(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first folder in `root` of one of these names; None where there is none.

    In upper case too, as in Train, and as training or testing only where no folder of another kind lies beside them:
    there it may be a class.
    """
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    parts = all(folder.name.lower() in (*TRAINING, *TEST, *VALIDATION) for folder in folders)
    names = names if parts else tuple(name for name in names if not name.endswith("ing"))
    return next((folder for folder in folders if (folder.name.lower() if parts else folder.name) in names), None)


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
            self.choices,
        )

    def not_empty(self) -> Rule:
        """The same, without the empty list."""
        return Rule(self.allowed, lambda v: v != [] and self.holds(v), self.choices)

    def check(self, key: str, value: Any) -> None:
        """Raises UserError, which names the key and what is allowed, where the rule doesn't hold for the value."""
        if self.holds(value):
            return
        if value is None:
            raise UserError(f"{key} must be given: {key}=..., {self.allowed}")
        hint = closest(str(value), self.choices)
        if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value):
            hint = " As it stands it is a text: ${oc.decode:...} around what gives it makes a number of it."
        raise UserError(f"{key}={value} is not allowed: it must be {self.allowed}.{hint}")


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


def whole_number(key: str, word: str, low: int, high: int | None = None) -> int:
    """The number that a verb's own option was given, from `low` to `high`.

    Raises:
        UserError: it is no such number.
    """
    rule = _integer(low, high)
    if not (word.isascii() and word.isdecimal() and rule.holds(int(word))):
        raise UserError(f"{key}={word} is not allowed: it must be {rule.allowed}.")
    return int(word)


def _amount(of: str, fraction: Rule) -> Rule:
    return Rule(
        f"a number of {of}, 1 or more, or {fraction.allowed.replace('number', 'fraction')}",
        lambda v: (_is_integer(v) and v >= 1) or (isinstance(v, float) and fraction.holds(v)),
    )


positive = Rule("a number above 0", lambda v: _is_number(v) and v > 0)
not_negative = Rule("a number, 0 or more", lambda v: _is_number(v) and v >= 0)
below_one = Rule("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1)
inside_one = Rule("a number above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1)
up_to_one = Rule("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1)
zero_to_one = Rule("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
boolean = Rule("true or false", lambda v: isinstance(v, bool))
text = Rule("a text", lambda v: isinstance(v, str) and v != "")
of_an_epoch = one_of("val/loss", "val/acc", "train/loss", "train/acc")
part = _amount("images", inside_one)
share = _amount("images", up_to_one)
batches = _amount("batches", up_to_one)
function = Rule(
    "a section of its own that names a class or a function, _target_",
    lambda v: isinstance(v, dict) and isinstance(v.get("_target_"), str),
)
betas = Rule(
    "two numbers, each from 0 to below 1",
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(below_one.holds, v)),
)
image_shape = Rule(
    "three whole numbers, 1 or more: [channels, height, width]",
    lambda v: isinstance(v, list) and len(v) == 3 and all(_is_integer(n) and n >= 1 for n in v),
)
stack = Rule(
    "a list, each of it a number of filters, 1 or more, or pool",
    lambda v: isinstance(v, list) and all(n == "pool" or (_is_integer(n) and n >= 1) for n in v),
)
device_count = Rule(
    "a whole number, 1 or more, a list of device numbers, or auto",
    lambda v: (
        v == "auto"
        or (_is_integer(v) and (v >= 1 or v == -1))
        or (isinstance(v, list) and len(v) > 0 and all(map(_is_integer, v)))
    ),
)

METRICS = ("test/acc", "test/loss", "val/acc", "val/loss", "train/acc", "train/loss", "seconds", "parameters")
"""What runs can be judged by: loss and accuracy of the test or of the last epoch, seconds of training, parameters."""

# Values are checked here rather than where they are used: a mistake is told before torch is imported. The rules hold
# for our own keys and those of the libraries that we configure; those of a user's own class mean what that class says.
RULES: dict[str, Rule] = {
    "name": Rule(
        "a text of 1 to 200 characters, the name of a folder below outputs/",
        lambda v: isinstance(v, str) and 0 < len(v) <= 200 and not Path(v).is_absolute() and ".." not in Path(v).parts,
    ),
    "seed": _integer(0, 2**32 - 1),
    "seeds.weights": _integer(0, 2**32 - 1),
    "seeds.split": _integer(0, 2**32 - 1),
    "seeds.order": _integer(0, 2**32 - 1),
    "seeds.dropout": _integer(0, 2**32 - 1),
    "seeds.augment": _integer(0, 2**32 - 1),
    "test_checkpoint": one_of("last", "best"),
    "checkpoint.every": Rule(
        "a number of epochs, steps or minutes: 1 epoch, 500 steps, 10 minutes",
        lambda v: isinstance(v, str) and re.fullmatch(r"[1-9]\d{0,8} (epoch|step|minute)s?", v) is not None,
    ),
    "report": boolean,
    "compile": one_of("default", "reduce-overhead", "max-autotune").or_null(),
    "loss.label_smoothing": below_one,
    "data.name": text,
    "data.source": function,
    "data.augment": function.or_null(),
    "data.transform": function.or_null(),
    "data.eval_transform": function.or_null(),
    "data.root": text,
    "data.fallback": one_of("mnist_5k").or_null(),
    "data.batch_size": _integer(1),
    "data.eval_batch_size": _integer(1),
    "data.val": one_of("random", "last", "test", "none"),
    "data.val_size": part,
    "data.train_size": share.or_null(),
    "data.scale": one_of("unit", "standard", "none"),
    "data.loader": one_of("memory", "workers"),
    "data.workers": _integer(0),
    "data.augment.shift": not_negative,
    "data.augment.rotate": Rule("a number of degrees, 0 to 180", lambda v: _is_number(v) and 0 <= v <= 180),
    "data.augment.scale": below_one,
    "data.augment.elastic": not_negative,
    "data.augment.erase": zero_to_one,
    "data.one_vs_rest": _integer(0).or_null(),
    "data.shape": image_shape,
    "data.num_classes": _integer(2),
    "data.source.split": one_of(*EMNIST_CLASSES),
    "data.source.test_size": inside_one,
    "model.hidden": _integer(1).or_list(),
    "model.activation": one_of(*ACTIVATIONS),
    "model.init": one_of(*INITS),
    "model.dropout": below_one,
    "model.filters": _integer(1).or_list(),
    "model.kernel_size": _integer(1).or_list(),
    "model.pool": _integer(1),
    "model.layers": stack,
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
    "schedule.monitor": of_an_epoch,
    "schedule.factor": inside_one,
    "schedule.patience": _integer(0),
    "schedule.min_delta": not_negative,
    "schedule.min_lr": not_negative,
    "trainer.max_epochs": Rule(
        "a whole number, 1 or more, or -1 where trainer.max_steps or trainer.max_time ends the training",
        lambda v: _is_integer(v) and (v == -1 or v >= 1),
    ),
    "trainer.accelerator": text,
    "trainer.devices": device_count,
    "trainer.num_nodes": _integer(1),
    "trainer.strategy": text,
    "trainer.precision": one_of(*PRECISIONS),
    "trainer.gradient_clip_val": positive.or_null(),
    "trainer.accumulate_grad_batches": _integer(1),
    "trainer.check_val_every_n_epoch": _integer(1).or_null(),
    "trainer.limit_train_batches": batches,
    "trainer.limit_val_batches": Rule(batches.allowed + ". For no validation: data.val=none", batches.holds),
    "trainer.limit_test_batches": batches,
    "trainer.deterministic": boolean,
    "trainer.detect_anomaly": boolean,
    "trainer.num_sanity_val_steps": _integer(-1),
    "trainer.max_steps": Rule("a whole number, 1 or more, or -1", lambda v: _is_integer(v) and (v == -1 or v >= 1)),
    "sweep.sampler": one_of("grid", "random", "tpe", "cmaes", "qmc", "nsga2"),
    "sweep.trials": _integer(1).or_null(),
    "sweep.objective": one_of(*METRICS).or_list().not_empty().or_null(),
    "sweep.direction": one_of("maximize", "minimize").or_list().not_empty().or_null(),
    "sweep.seed": _integer(0, 2**31 - 1),
    "sweep.pruner": one_of("none", "median", "halving"),
    "sweep.patience": _integer(1),
    "sweep.retries": _integer(0),
    "sweep.max_failures": _integer(1).or_null(),
    "sweep.at_a_time": _integer(1).or_null(),
    "sweep.space": Rule("a section of keys and what each sweeps over", lambda v: isinstance(v, dict)),
    "sweep.storage": text.or_null(),
    "sweep.dry_run": boolean,
    "sweep.accept_changes": boolean,
    "callbacks.early_stopping.monitor": of_an_epoch,
    "callbacks.early_stopping.mode": one_of("min", "max"),
    "callbacks.early_stopping.patience": _integer(1),
    "callbacks.early_stopping.min_delta": not_negative,
    "callbacks.dashboard.mistakes": _integer(0),
    "callbacks.dashboard.histograms": boolean,
    "callbacks.dashboard.embedding": _integer(0, 10_000),
}


@contextmanager
def hydra_with(config_dir: str | None = None, config_path: str | None = None) -> Iterator[Hydra]:
    """Hydra with the search path that its command line has, for composing without running.

    Args:
        config_dir: a folder with groups of the user's own, as `--config-dir`.
        config_path: a folder in the place of `conf/`, as `--config-path`.

    Raises:
        UserError: there is no such folder.
    """
    for flag, folder in (("--config-dir", config_dir), ("--config-path", config_path)):
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"{flag} {folder}: there is no such folder")
    # Hydra's public compose() can't be given these folders; this is what its own command line does with them, in the
    # releases that pyproject.toml allows. Who calls `mnist_lab.train` may be at work with a Hydra of his own.
    globals_ = [vars(one.instance()) for one in (GlobalHydra, HydraConfig, version.VersionBase)]
    before = [dict(values) for values in globals_]
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    search_path = create_config_search_path(str(Path(config_path).resolve() if config_path else CONF_DIR))
    if config_dir is not None:
        own = f"file://{Path(config_dir).resolve()}"
        search_path.prepend(provider="command-line", path=own, anchor=SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(task_name="mnist_lab", config_search_path=search_path)
    finally:
        for values, value in zip(globals_, before, strict=True):
            values.update(value)


def compose_config(overrides: list[str], config_name: str = "config", hydra: Hydra | None = None) -> DictConfig:
    """Composes and checks the config that `overrides` ask for.

    Args:
        overrides: Hydra overrides of one run, such as `["model=cnn", "optimizer.lr=0.01"]`.
        config_name: the primary config's name.
        hydra: where configs are searched; None: in `conf/` alone.

    Returns:
        The config, with Hydra's own part under `hydra`.

    Raises:
        UserError: something in it is unknown, malformed or not allowed.
    """
    if hydra is None:
        with hydra_with() as hydra:
            cfg = compose_config(overrides, config_name, hydra)
            ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
            cfg.merge_with(OmegaConf.to_container(ours, resolve=True))  # while it is known what ${hydra:...} means
            return cfg
    try:
        cfg = hydra.compose_config(config_name, overrides, run_mode=RunMode.RUN)
    except MissingConfigException as error:
        raise UserError(_unknown_option(error)) from error
    except ConfigCompositionException as error:
        raise UserError(_unknown_key(error, overrides, config_name, hydra)) from error
    except OverrideParseException as error:
        raise UserError(_not_understood(error)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(one_line(error)) from error
    except yaml.YAMLError as error:
        raise UserError("a config file is not valid YAML: " + one_line(error)) from error
    except (AssertionError, AttributeError, TypeError) as error:  # Hydra's, of a list in the place of an option, say
        words = [word for word in overrides if re.search(r"[\[{$]", word)] or overrides
        raise UserError(f"{' '.join(words)}: not understood, {one_line(error)}") from error
    HydraConfig.instance().set_config(cfg)
    _check_hydra(cfg)
    check(cfg)
    known = (*RULES, *NEEDED, *PACKAGES, "experiment", "reported")
    check_read(cfg, overrides, known, free=(*SECTIONS, *MAY_BE_EMPTY))
    return cfg


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


def one_line(error: Exception) -> str:
    """What Hydra or OmegaConf says, in at most 1,000 characters."""
    words = re.sub(r"^Error parsing override '.*'", "", str(error)) or str(error.__cause__ or "")
    words = words or f"{type(error).__name__}: {extract_tb(error.__traceback__)[-1].line}"  # an assertion without text
    return " ".join(re.sub(r"See https?://\S+.*", "", words).split())[:1000]


def _not_understood(error: OverrideParseException) -> str:
    key, _, value = str(error.override).partition("=")
    plain_text = value and not re.search(r"[\[\]{}()'\",]", value)
    hint = f""". A text with such characters is quoted twice: '{key}="{value}"'""" if plain_text else ""
    return f"{error.override}: not understood, {one_line(error)}{hint}"


def _unknown_option(error: MissingConfigException) -> str:
    wanted = error.missing_cfg_file or ""
    group, _, option = wanted.rpartition("/")
    if not error.options:
        return f"{wanted}: there is no such config"
    return (
        f"{group}={option}: there is no such {group}.{closest(option, error.options)}\n"
        f"The options of {group} are: {', '.join(sorted(error.options))}"
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
    rest = [o for o in overrides if re.split(r"[=@]", o.lstrip("+~"), maxsplit=1)[0] != key]
    try:
        cfg = hydra.compose_config(config_name, rest, run_mode=RunMode.RUN)
    except (HydraException, OmegaConfBaseException):
        return f"{key}: there is no such option"
    if key in keys_of(cfg):
        return f"{key}: can't be replaced by other keys than it has. To add one: +{key}.NAME=VALUE"
    return f"{key}: there is no such option.{unknown_key_hint(key, cfg)}"


def check(cfg: DictConfig) -> None:
    """Checks every value that has a rule, and what several values must fulfil together.

    Raises:
        UserError: naming the first key whose value is not allowed, and what is.
    """
    for section in (*SECTIONS, *MAY_BE_EMPTY):
        try:
            node = OmegaConf.select(cfg, section)
        except OmegaConfBaseException as error:
            raise UserError(f"{section}: " + one_line(error)) from error
        if not isinstance(node, DictConfig):
            what = f"{section}={node}" if section in cfg else f"without {section}"
            raise UserError(f"{what} is not allowed: {section} must be one of its options, see --help")
        if section in SECTIONS and not isinstance(node.get("_target_"), str):
            raise UserError(f"{section}: its config names no class or function, {section}._target_")
    if cfg.logger and (
        "_target_" not in cfg.logger
        or any(
            OmegaConf.is_dict(value) and str(value.get("_target_")).endswith("Logger") for value in cfg.logger.values()
        )
    ):
        raise UserError("logger: one is possible, logger._target_=CLASS and its arguments beside it, or logger=none")
    _check_there(cfg, NEEDED)
    if "checkpoint" in cfg and not OmegaConf.is_dict(cfg.checkpoint):
        raise UserError(
            f"checkpoint={cfg.checkpoint} is not allowed: test_checkpoint=best says which is tested, and "
            "checkpoint.every='500 steps' how often one is written"
        )
    for group, package in PACKAGES.items():
        if cfg.get(group):
            inside = ", and has all the rest below augment:" if group == "augment" else ""
            raise UserError(f"{group}: a file of this group begins with the line `# @package {package}`{inside}")
    keys = [k for k in keys_of(cfg) if k.partition(".")[0] != "hydra"]
    for key in sorted(keys, key=lambda k: k.count(".")):
        try:
            value = OmegaConf.select(cfg, key, throw_on_missing=True)
            value = OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
        except MissingMandatoryValue:
            raise UserError(f"{key} must be given: {key}=...") from None
        except InterpolationResolutionError as error:
            # OmegaConf keeps of the resolver's own error only its text, in its first line.
            message = str(error).splitlines()[0].rpartition("while resolving interpolation: ")[2]
            raise UserError(message if message.startswith("data.") else f"{key}: {message}") from None
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: " + one_line(error)) from error
        if key not in RULES or not _is_known(cfg, key):
            continue
        value = OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
        RULES[key].check(key, value)
    _check_together(cfg)


def _check_there(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Raises UserError for the first of these keys that the config doesn't have."""
    for key in keys:
        section, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, section) if section else cfg
        if not isinstance(node, DictConfig) or name not in node:
            raise UserError(f"{key} can't be left out: set it, {key}=VALUE")


def _is_known(cfg: DictConfig, key: str) -> bool:
    section = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
    target = str(section.get("_target_", "")) if isinstance(section, DictConfig) else ""
    return target == "" or target.startswith(("mnist_lab.", "torch.", "lightning."))


def _check_together(cfg: DictConfig) -> None:
    def get(key: str) -> Any:
        return OmegaConf.select(cfg, key)

    if get("data.val") == "none":
        if cfg.test_checkpoint == "best":
            raise UserError(
                "test_checkpoint=best needs validation data, and data.val=none gives none: use data.val=random"
            )
        for name, key in (("early stopping", "callbacks.early_stopping.monitor"), ("the schedule", "schedule.monitor")):
            if str(get(key)).startswith("val/"):
                raise UserError(f"{name} watches validation data, and data.val=none gives none: use data.val=random")
    every, epochs = get("trainer.check_val_every_n_epoch"), get("trainer.max_epochs")
    if epochs == -1 and get("trainer.max_steps") in (None, -1) and get("trainer.max_time") is None:
        raise UserError(
            "trainer.max_epochs=-1 never ends: add trainer.max_steps=N, or '+trainer.max_time={minutes: 10}'"
        )
    if cfg.test_checkpoint == "best" and _is_integer(every) and _is_integer(epochs) and every > epochs > 0:
        raise UserError(
            f"test_checkpoint=best needs validation: trainer.check_val_every_n_epoch={every} is past the last"
        )
    if get("data.transform") is not None and get("data.loader") != "workers":
        raise UserError("data.transform works image by image: add data.loader=workers")
    if get("data.eval_transform") is not None and get("data.transform") is None:
        raise UserError("data.eval_transform without data.transform: training images would be on another scale")
    if get("callbacks.dashboard") is not None and not str(get("logger._target_")).endswith("TensorBoardLogger"):
        raise UserError("callbacks=dashboard writes for TensorBoard: add logger=tensorboard")
    monitor, mode = get("callbacks.early_stopping.monitor"), get("callbacks.early_stopping.mode")
    if monitor is not None and mode != (right := "max" if monitor.endswith("acc") else "min"):
        raise UserError(f"callbacks.early_stopping.mode={mode} is wrong for {monitor}: it must be {right}")
    for key, instead in INSTEAD.items():
        if key in cfg.trainer:
            raise UserError(f"trainer.{key} is not allowed, it is {instead} here")
    clips, fused = get("trainer.gradient_clip_val") is not None, get("optimizer.fused")
    if clips and fused and str(get("trainer.precision")).endswith(("-mixed", "auto")):
        raise UserError("gradients can't be clipped in mixed precision by a fused optimiser: add optimizer.fused=false")
    digit, classes = get("data.one_vs_rest"), get("data.num_classes")
    if digit is not None and digit >= classes:
        key = "model.digit" if get("model.digit") is not None else "data.one_vs_rest"
        raise UserError(f"{key}={digit} is not allowed: {get('data.name')} has the classes 0 to {classes - 1}")
    if get("optimizer.nesterov") and not get("optimizer.momentum"):
        raise UserError("optimizer.nesterov=true needs momentum: add optimizer.momentum=0.9")


def quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar of overrides."""
    return QuotedString(str(path), Quote.single).with_quotes()


def check_command(args: Namespace, multirun: bool, fresh: bool = True) -> tuple[Path, Path]:
    """Checks everything that a command asks for, before anything is imported or written for it.

    A sweep is checked value by value: each option of each swept group once, with the first values of the others.

    Args:
        args: the command line as Hydra's own parser reads it.
        multirun: whether it asks for several jobs.
        fresh: whether its folder must be empty or new.

    Returns:
        The command's own folder, and the deepest on the way to it that exists already.

    Raises:
        UserError: with the first mistake found.
    """
    name, overrides = args.config_name or "config", list(args.overrides)
    if fresh:
        check_kind(overrides, multirun)
    with hydra_with(args.config_dir, args.config_path) as hydra:
        if not multirun:
            composed = compose_config(overrides, name, hydra).hydra
            if composed.mode == RunMode.MULTIRUN:
                raise UserError("hydra.mode=MULTIRUN is not allowed in a config: -m makes a command a multirun")
            folder = composed.run.dir and str(path_of(composed.run.dir))  # ~ is the user's home
            return Path(folder).absolute(), check_folder("hydra.run.dir", folder, fresh)
        try:
            parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
        except OverrideParseException as error:
            raise UserError(_not_understood(error)) from error
        # Of each override what shows whether it is allowed: all values of a sweep's, or both ends of an interval.
        axes = [axis(o).extremes() if o.is_sweep_override() else [str(o.input_line)] for o in parsed]
        first = [values[0] for values in axes]
        folder = compose_config(first, name, hydra).hydra.sweep.dir
        folder = folder and str(path_of(folder))
        existing = check_folder("hydra.sweep.dir", folder, fresh)
        for n, (override, values) in enumerate(zip(parsed, axes, strict=True)):
            key = override.get_key_element().lstrip("+")
            if hydra.config_loader.get_group_options(key):
                for value in values[1:]:
                    compose_config([*first[:n], value, *first[n + 1 :]], name, hydra)
            elif key in RULES:
                for other in OverridesParser.create().parse_overrides(values[1:]):
                    RULES[key].check(key, other.value())
        _check_sweep(parsed, compose_config(first, name, hydra))
        return Path(folder).absolute(), existing


def _check_sweep(overrides: list[Override], cfg: DictConfig) -> None:
    """Checks what a sweep's options must fulfil together.

    Raises:
        UserError: they don't.
    """
    _check_there(cfg, ("sweep.sampler", "sweep.objective", "sweep.direction", "sweep.pruner", "sweep.space"))
    sweep = cfg.sweep
    objectives, directions = (
        value if isinstance(value, ListConfig) else [value] for value in (sweep.objective, sweep.direction)
    )
    if sweep.direction is not None and len(objectives) != len(directions):
        raise UserError(
            f"sweep.direction={list(directions)} is not allowed: sweep.objective has {len(objectives)}, so give as many"
        )
    tasks = cfg.hydra.launcher.get("tasks_per_node", 1)
    if tasks > 1:
        raise UserError(
            f"hydra.launcher.tasks_per_node={tasks} is not allowed: a trial is one task, which starts its other "
            f"processes itself: trainer=ddp trainer.devices={tasks}"
        )
    if sweep.pruner != "none":
        if len(objectives) > 1:
            raise UserError(f"sweep.pruner={sweep.pruner} needs a single objective, and there are {len(objectives)}")
        objective = objectives[0] or ("test/acc" if cfg.data.val == "none" else "val/acc")
        if not objective.startswith(("val/", "train/")):
            raise UserError(
                f"sweep.pruner={sweep.pruner} looks at each epoch, and {objective} is known when a run is over: use "
                "sweep.objective=val/acc, with validation data (data.val=random)"
            )
        if isinstance(cfg.trainer.devices, int) and cfg.trainer.devices > 1:
            raise UserError(
                f"sweep.pruner={sweep.pruner} can't end one trial of trainer.devices={cfg.trainer.devices} processes: "
                "use one, or sweep.pruner=none"
            )
    if cfg.data.val == "none" and any(str(name).startswith("val/") for name in objectives):
        raise UserError("sweep.objective needs validation data, and data.val=none gives none: use data.val=random")
    every, epochs = cfg.trainer.get("check_val_every_n_epoch"), cfg.trainer.max_epochs
    of_validation = cfg.data.val != "none" and any(str(name or "val/acc").startswith("val/") for name in objectives)
    if of_validation and every and epochs > 0 and epochs % every:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every} leaves the last of trainer.max_epochs={epochs} epochs without "
            f"validation, by which a sweep judges: trainer.max_epochs={epochs + every - epochs % every}"
        )
    if cfg.hydra.sweeper._target_.startswith("hydra_plugins.mnist_lab"):
        for override in overrides:
            if override.key_or_group == "hydra.sweep.subdir":
                raise UserError(
                    f"{override.input_line} is not allowed: a trial's folder is its number; "
                    "hydra/sweeper=basic has folders of any name"
                )
    swept = [override for override in overrides if override.is_sweep_override()]
    intervals = [str(override.input_line) for override in swept if override.is_interval_sweep()]
    intervals += [f"{key}={value}" for key, value in sweep.space.items() if "interval(" in str(value)]
    if sweep.sampler == "grid" and intervals:
        raise UserError(f"{intervals[0]}: a grid needs values that can be counted: add sweep=random or sweep=tpe")
    if sweep.sampler != "grid" and not (swept or sweep.space or cfg.hydra.sweeper.get("params")):
        raise UserError(f"sweep={sweep.sampler}: there is nothing to search; give ranges, or space=mlp or space=cnn")


def todays_root() -> str:
    """The data folder that the config and the environment name now, for a command that names none."""
    base = OmegaConf.load(CONF_DIR / "base.yaml")
    return str(OmegaConf.select(base, "data.root"))


def use_absolute_root(cfg: DictConfig) -> None:
    """Have `data.root` name the same folder from wherever the config is used; `~` stays the user's home."""
    root = OmegaConf.select(cfg, "data.root")
    if isinstance(root, str) and not root.startswith("~"):
        cfg.data.root = str(Path(root).absolute())


def check_folder(key: str, folder: str, fresh: bool) -> Path:
    """Checks that a folder can be written to, before anything is done for it.

    Args:
        key: the option that names it.
        folder: its path.
        fresh: whether it must be new or empty, as a run's must.

    Returns:
        The deepest existing folder on the way to it, or itself.

    Raises:
        UserError: it can't be.
    """
    existing = Path(folder).absolute()
    if not folder or (fresh and existing.is_dir() and any(existing.iterdir()) and not is_helper_process()):
        more = f"\nTo go on with that sweep: python -m mnist_lab resume {quote(folder)}" if is_sweep(existing) else ""
        raise UserError(f"{key}={folder} is not allowed: a run needs a new or an empty folder of its own{more}")
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{key}={folder} can't be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder} can't be made: {existing} is not writable. Choose another folder")
    return existing


def plain(cfg: DictConfig) -> DictConfig:
    """What makes a run's numbers: its config without Hydra's part, the sweep's and the report's, all resolved."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for key in ("hydra", "sweep", "report"):
            cfg.pop(key, None)
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(resolved, DictConfig)
    return resolved
