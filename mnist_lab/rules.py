"""Rules for the values of a config, each alone and all together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from mnist_lab.errors import CONTROLS, UserError, closest, one_line
from mnist_lab.files import plain
from mnist_lab.keys import SET_ELSEWHERE, keys_of
from mnist_lab.metrics import metric_conflicts
from mnist_lab.targets import logger_sections, writes_tensorboard

SECTIONS = ("data", "model", "loss", "optimizer", "trainer")
"""Sections that are a class or a function and its arguments."""
MAY_BE_EMPTY = ("schedule", "callbacks", "logger")
PACKAGES = {"augment": "data", "experiment": "_global_", "space": "sweep.space"}
"""Groups whose options are not a section of their own, with the package that each of their files must name."""
NEEDED = (
    *("name", "seed", "seeds.weights", "seeds.dropout", "test_checkpoint", "compile"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.precision"),
    *("trainer.max_epochs", "trainer.gradient_clip_val", "trainer.accumulate_grad_batches"),
)
"""Keys that the program itself reads."""
NEEDED_BY_DATA = ("data.name", "data.val", "data.shape", "data.num_classes")
"""Keys that our data sets can't do without."""
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")
INITS = ("glorot_uniform", "pytorch")
EMNIST_CLASSES = {"balanced": 47, "byclass": 62, "bymerge": 47, "letters": 26, "digits": 10, "mnist": 10}
PRECISIONS = ("32-true", "auto", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")


@dataclass(frozen=True)
class Rule:
    """A rule for a value.

    Attributes:
        allowed: the allowed values, in words for the user.
        holds: whether a value is allowed.
        choices: the allowed words, for a hint at the closest one.
    """

    allowed: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def or_null(self) -> Rule:
        """Allow null as well."""
        return Rule(f"{self.allowed}, or null", lambda v: v is None or self.holds(v), self.choices)

    def or_list(self, least: int = 0) -> Rule:
        """Allow a list of such values as well, with at least so many of them."""

        def holds(v: Any) -> bool:
            return (len(v) >= least and all(map(self.holds, v))) if isinstance(v, list) else self.holds(v)

        return Rule(f"{self.allowed}, or a list of them", holds, self.choices)

    def check(self, key: str, value: Any) -> None:
        """Raise UserError, which names the key and what is allowed, where a value breaks the rule."""
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
    """Return the rule that a value is one of these words."""
    return Rule("one of " + ", ".join(choices), lambda v: v in choices, choices)


def whole_number(key: str, word: str, low: int, high: int | None = None) -> int:
    """Return the number that a verb's own option was given.

    Raises:
        UserError: it is no whole number from `low` to `high`.
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
metric = Rule("the name of a metric, such as val/loss", lambda v: isinstance(v, str) and v != "")
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
        or (isinstance(v, list) and v != [] and all(map(_is_integer, v)))
    ),
)

SEED = _integer(0, 2**32 - 1)
RULES: dict[str, Rule] = {
    "name": Rule(
        "a text of 1 to 200 characters in one line, the name of a folder below outputs/",
        lambda v: isinstance(v, str) and re.fullmatch(rf"(?!/|(.*/)?\.\.(/|$)|.*{CONTROLS}).{{1,200}}", v) is not None,
    ),
    "seed": SEED,
    **{f"seeds.{of}": SEED for of in ("weights", "split", "order", "dropout", "augment")},
    "test_checkpoint": one_of("last", "best"),
    "monitor": metric,
    "mode": one_of("min", "max").or_null(),
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
    "data.workers": _integer(0, 128),
    "data.augment.shift": not_negative,
    "data.augment.rotate": Rule("a number of degrees, 0 to 180", lambda v: _is_number(v) and 0 <= v <= 180),
    "data.augment.scale": below_one,
    "data.augment.elastic": not_negative,
    "data.augment.erase": zero_to_one,
    "data.resize": Rule(
        "a whole number, 1 or more, or two of them: [height, width]",
        lambda v: all(_is_integer(n) and n >= 1 for n in (v if isinstance(v, list) and len(v) == 2 else [v])),
    ).or_null(),
    "data.channels": Rule("1 (grey) or 3 (colour)", lambda v: _is_integer(v) and v in (1, 3)).or_null(),
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
    **{f"optimizer.{key}": positive for key in ("lr", "eps")},
    **{f"optimizer.{key}": below_one for key in ("alpha", "momentum")},
    "optimizer.betas": betas,
    "optimizer.weight_decay": not_negative,
    "optimizer.nesterov": boolean,
    "optimizer.fused": boolean.or_null(),
    "schedule.every": _integer(1),
    "schedule.gamma": up_to_one,
    "schedule.warmup": below_one,
    "schedule.initial": up_to_one,
    "schedule.final": zero_to_one,
    "schedule.interval": one_of("step", "epoch"),
    "schedule.frequency": _integer(1),
    "schedule.monitor": metric,
    "schedule.mode": one_of("min", "max").or_null(),
    "schedule.factor": inside_one,
    "schedule.patience": _integer(0),
    **{f"schedule.{key}": not_negative for key in ("min_delta", "min_lr")},
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
    "trainer.deterministic": Rule("true, false or warn", lambda v: isinstance(v, bool) or v == "warn"),
    "trainer.log_every_n_steps": _integer(1).or_null(),
    **{f"trainer.{key}": boolean for key in ("detect_anomaly", "enable_checkpointing", "enable_autolog_hparams")},
    "trainer.reload_dataloaders_every_n_epochs": _integer(0),
    "trainer.num_sanity_val_steps": _integer(-1),
    "trainer.max_steps": Rule("a whole number, 1 or more, or -1", lambda v: _is_integer(v) and (v == -1 or v >= 1)),
    "sweep.sampler": one_of("grid", "random", "tpe", "cmaes", "qmc", "nsga2"),
    "sweep.trials": _integer(1).or_null(),
    "sweep.objective": metric.or_list(least=1).or_null(),
    "sweep.direction": one_of("maximize", "minimize").or_list(least=1).or_null(),
    "sweep.seed": _integer(0, 2**31 - 1),
    "sweep.pruner": one_of("none", "median", "halving"),
    "sweep.patience": _integer(1),
    "sweep.retries": _integer(0),
    "sweep.max_failures": _integer(1).or_null(),
    "sweep.at_a_time": _integer(1).or_null(),
    "sweep.space": Rule("a section of keys and what each sweeps over", lambda v: isinstance(v, dict)),
    "sweep.storage": text.or_null(),
    **{f"sweep.{key}": boolean for key in ("dry_run", "accept_changes")},
    "callbacks.early_stopping.monitor": metric,
    "callbacks.early_stopping.mode": one_of("min", "max").or_null(),
    "callbacks.early_stopping.patience": _integer(1),
    "callbacks.early_stopping.min_delta": not_negative,
    "callbacks.dashboard.mistakes": _integer(0),
    "callbacks.dashboard.histograms": boolean,
    "callbacks.dashboard.embedding": _integer(0, 10_000),
}
"""Rules of our own keys and of those of the libraries that we configure; a user's own class checks its arguments."""


def check(cfg: DictConfig) -> None:
    """Check the sections, every value that has a rule, and what several values must fulfil together.

    Raises:
        UserError: with the first mistake: the key, what is wrong, and what is allowed.
    """
    _check_sections(cfg)
    check_there(cfg, NEEDED)
    if _is_known(cfg, "data.name"):
        check_there(cfg, NEEDED_BY_DATA)
    for group, package in PACKAGES.items():
        if cfg.get(group):
            inside = ", and has all the rest below augment:" if group == "augment" else ""
            raise UserError(f"{group}: a file of this group begins with the line `# @package {package}`{inside}")
    for key in sorted((k for k in keys_of(cfg) if k.partition(".")[0] != "hydra"), key=lambda k: k.count(".")):
        value = _value(cfg, key)
        if key in RULES and _is_known(cfg, key):
            RULES[key].check(key, value)
    for mistake in _conflicts(cfg):
        raise UserError(mistake)


def _check_sections(cfg: DictConfig) -> None:
    sections = (*SECTIONS, *(["module"] if "module" in cfg else []))  # earlier versions had none, nor metrics
    for section in (*sections, *MAY_BE_EMPTY, *(["metrics"] if "metrics" in cfg else [])):
        try:
            node = OmegaConf.select(cfg, section)
        except OmegaConfBaseException as error:
            raise UserError(f"{section}: " + one_line(error)) from error
        if not isinstance(node, DictConfig):
            what = f"{section}={node}" if section in cfg else f"without {section}"
            hint = "see --help" if section in sections else f"such as {section}=none"
            raise UserError(f"{what} is not allowed: {section} must be one of its options, {hint}")
        if section in sections and not isinstance(node.get("_target_"), str):
            raise UserError(f"{section}: its config names no class or function, {section}._target_")
    logger_sections(cfg.logger)
    if "checkpoint" in cfg and not OmegaConf.is_dict(cfg.checkpoint):
        raise UserError(
            f"checkpoint={cfg.checkpoint} is not allowed: test_checkpoint=best says which is tested, and "
            "checkpoint.every='500 steps' how often one is written"
        )


def check_there(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Raise UserError for the first of these keys that the config doesn't have."""
    for key in keys:
        section, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, section) if section else cfg
        there = isinstance(node, DictConfig) and name in node
        if there and key in NEEDED_BY_DATA and not OmegaConf.is_interpolation(node, name):
            there = node[name] is not None
        if not there:
            raise UserError(f"{key} can't be left out: set it, {key}=VALUE")


def _value(cfg: DictConfig, key: str) -> Any:
    """Return the value of a key, resolved, with lists and sections as Python's own.

    Raises:
        UserError: the value is missing, an interpolation in it can't be resolved, or a number is too large.
    """
    try:
        value = OmegaConf.select(cfg, key, throw_on_missing=True)
        if isinstance(value, DictConfig):
            return OmegaConf.to_container(value)
        value = OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
        plain(value)  # raises ValueError for what a run's files can't hold
        return value
    except MissingMandatoryValue:
        raise UserError(f"{key} must be given: {key}=...") from None
    except InterpolationResolutionError as error:
        # OmegaConf keeps of the resolver's own error only its text, in its first line.
        message = str(error).splitlines()[0].rpartition("while resolving interpolation: ")[2]
        raise UserError(message if message.startswith("data.") else f"{key}: {message}") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{key}: " + one_line(error)) from error


def _is_known(cfg: DictConfig, key: str) -> bool:
    """Return whether a key is an argument of a class that the rules know, or of none."""
    section = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
    target = str(section.get("_target_", "")) if isinstance(section, DictConfig) else ""
    return target == "" or target.startswith(("mnist_lab.", "torch.", "lightning."))


def _conflicts(cfg: DictConfig) -> Iterator[str]:
    """Yield a sentence for each mistake that several values make together."""

    def get(key: str) -> Any:
        return OmegaConf.select(cfg, key)

    without = "validation data, and data.val=none gives none: use data.val=random"
    if get("data.val") == "none":
        if cfg.test_checkpoint == "best":
            yield f"test_checkpoint=best needs {without}"
        for name, key in (("early stopping", "callbacks.early_stopping.monitor"), ("the schedule", "schedule.monitor")):
            if str(get(key)).startswith("val/"):
                yield f"{name} watches {without}"
    every, epochs = get("trainer.check_val_every_n_epoch"), get("trainer.max_epochs")
    if epochs == -1 and get("trainer.max_steps") in (None, -1) and get("trainer.max_time") is None:
        yield "trainer.max_epochs=-1 never ends: add trainer.max_steps=N, or '+trainer.max_time={minutes: 10}'"
    if cfg.test_checkpoint == "best" and get("trainer.enable_checkpointing") is False:
        yield "test_checkpoint=best needs checkpoints: leave out trainer.enable_checkpointing=false"
    if cfg.test_checkpoint == "best" and _is_integer(every) and _is_integer(epochs) and every > epochs > 0:
        yield f"test_checkpoint=best needs validation: trainer.check_val_every_n_epoch={every} is past the last"
    ours = all(str(get(f"{section}._target_")).startswith("mnist_lab.") for section in ("model", "module"))
    for name, mend in {
        "input_shape": "data.shape=[CHANNELS,HEIGHT,WIDTH]",
        "num_classes": "data.num_classes=N",
    }.items():
        if ours and name in cfg.model and cfg.model[name] is None:
            yield f"model.{name} must be known, and data doesn't say: add {mend}"
    if get("data.transform") is not None and get("data.loader") != "workers":
        yield "data.transform works image by image: add data.loader=workers"
    if get("data.eval_transform") is not None and get("data.transform") is None:
        yield "data.eval_transform without data.transform: training images would be on another scale"
    if get("callbacks.dashboard") is not None and not writes_tensorboard(cfg.logger):
        yield "callbacks=dashboard writes for TensorBoard: add logger=tensorboard"
    yield from metric_conflicts(cfg)
    for key, instead in SET_ELSEWHERE.items():
        if key in cfg.trainer:
            yield f"trainer.{key} is not allowed, it is {instead} here"
    clips, fused = get("trainer.gradient_clip_val") is not None, get("optimizer.fused")
    if clips and fused and str(get("trainer.precision")).endswith(("-mixed", "auto")):
        yield "gradients can't be clipped in mixed precision by a fused optimiser: add optimizer.fused=false"
    digit, classes = get("data.one_vs_rest"), get("data.num_classes")
    if digit is not None and digit >= classes:
        key = "model.digit" if get("model.digit") is not None else "data.one_vs_rest"
        yield f"{key}={digit} is not allowed: {get('data.name')} has the classes 0 to {classes - 1}"
    if get("optimizer.nesterov") and not get("optimizer.momentum"):
        yield "optimizer.nesterov=true needs momentum: add optimizer.momentum=0.9"
