"""The keys of a config: which one was meant, and which are refused because nothing reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_lab.errors import UserError, closest

WITHOUT_EFFECT = {
    "limit_predict_batches": (None, "a run trains, validates and tests, and doesn't predict"),
    "use_distributed_sampler": (False, "each process takes its share of every batch, without a sampler"),
    "barebones": (False, "Lightning would log no metric, so the run would have no result"),
    "model_registry": (None, "it uploads checkpoints to Lightning's service, and a run's stay in its folder"),
}
"""Arguments of Lightning's Trainer that nothing here uses: the value that changes nothing, and why."""
SET_ELSEWHERE = {"callbacks": "callbacks.NAME", "logger": "logger", "default_root_dir": "hydra.run.dir"}
"""Trainer arguments that are options of their own here."""
OF_TRAINER = (
    *("min_epochs", "min_steps", "max_time", "fast_dev_run", "overfit_batches", "val_check_interval"),
    *("log_every_n_steps", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "inference_mode"),
    *("gradient_clip_algorithm", "benchmark", "profiler", "sync_batchnorm", "plugins", "enable_autolog_hparams"),
    "reload_dataloaders_every_n_epochs",
)
"""Arguments of Lightning's Trainer that conf/base.yaml doesn't have: trainer.NAME=VALUE adds one."""
IN_BASE = (
    *("max_epochs", "max_steps", "accelerator", "devices", "num_nodes", "strategy", "precision", "deterministic"),
    *("gradient_clip_val", "accumulate_grad_batches", "check_val_every_n_epoch", "limit_train_batches"),
    *("limit_val_batches", "limit_test_batches", "detect_anomaly", "num_sanity_val_steps"),
)
"""Arguments of Lightning's Trainer that conf/base.yaml has."""
ELSEWHERE = {
    "ckpt_path": "resume RUN goes on with a run, test run=RUN checkpoint=best tests one",
    "hparams_search": "-m sweep=tpe and ranges, such as 'optimizer.lr=tag(log,interval(1e-4,0.1))'",
    "optimized_metric": "monitor=val/acc, and of a sweep sweep.objective=val/acc",
    "task_name": "name=NAME",
    "tags": "name=NAME",
    "paths": "data.root=DIR has the data, hydra.run.dir=DIR is the run's folder",
    "debug": "trainer=debug, or trainer.fast_dev_run=true, trainer.overfit_batches=3, trainer.profiler=simple",
    "extras": "--cfg job prints the config",
    "train": "every run trains; test run=RUN only tests",
    "test": "every run tests when it has trained; test run=RUN tests it again",
    "data.data_dir": "data.root=DIR",
    "data.num_workers": "images are held in memory; with data.loader=workers, data.workers=N",
    "data.train_val_test_split": "data.val_size=N, and data.train_size=N for fewer of the rest",
    "model.compile": "compile=default",
    "model.scheduler": "schedule=NAME, and schedule.OPTION=VALUE",
    "model.net": "model=NAME, and model.OPTION=VALUE",
}
"""Words of other frameworks' command lines, and what does their work here."""
OF_LOADERS = ("use_distributed_sampler",)
"""Arguments in WITHOUT_EFFECT that Lightning uses for a user's own loaders."""


def keys_of(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a config at every depth, such as "data" and "data.name". Interpolations are not followed."""
    name: Any
    for name in cfg:
        yield prefix + str(name)
        if not (OmegaConf.is_missing(cfg, name) or OmegaConf.is_interpolation(cfg, name)):
            node = cfg[name]
            if isinstance(node, DictConfig):
                yield from keys_of(node, prefix + str(name) + ".")


def unknown_key_hint(key: str, cfg: DictConfig) -> str:
    """Return what the user may have meant by a key that `cfg` doesn't have, and what there is beside it."""
    keys = [k for k in keys_of(cfg) if not k.rpartition(".")[2].startswith("_")]
    parent, _, name = key.rpartition(".")
    if (here := next((ELSEWHERE[start] for start in _starts(key) if start in ELSEWHERE), None)) is not None:
        return f" Here: {here}\nSee every option with --cfg job"
    beside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    beside += OF_TRAINER if parent == "trainer" else ()
    elsewhere = [k for k in keys if k.rpartition(".")[2] == name]
    if parent and beside:
        hint = closest(name, beside).replace("mean ", f"mean {parent}.")
        return f"{hint}\n{parent} has: {', '.join(beside)}"
    hint = f" Did you mean {elsewhere[0]}?" if len(elsewhere) == 1 else closest(key, keys)
    if key == "epochs":
        hint = " Did you mean trainer.max_epochs?"
    return f"{hint}\nSee every option with --cfg job"


def _starts(key: str) -> Iterator[str]:
    """Yield a key and the sections that it is in, the innermost first: "a.b", then "a"."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def check_read(cfg: DictConfig, overrides: Sequence[str], known: Sequence[str], free: Iterable[str]) -> None:
    """Check that something reads every key of a composed config.

    Notes of the user's own stay allowed in files, and so does whatever another value refers to by interpolation.

    Args:
        cfg: the config, not resolved.
        overrides: what was typed.
        known: all keys that this program reads, such as "seeds.order".
        free: sections whose keys are a class's arguments, which that class checks.

    Raises:
        UserError: naming the first key that nothing reads.
    """
    sections = {*(key.partition(".")[0] for key in known), *free, "hydra"}
    for section in ("seeds", "checkpoint", "sweep"):
        names = [key.partition(".")[2] for key in known if key.startswith(f"{section}.")]
        for key in map(str, cfg[section] if OmegaConf.is_dict(cfg.get(section)) else ()):
            if key not in names and not _is_referred_to(f"{section}.{key}", cfg):
                raise UserError(f"{section}.{key}: nothing reads this.{closest(key, names)}")
    added = {re.split(r"[./]", key)[0]: key for key in map(_added, overrides) if key}
    for key in map(str, cfg):
        if key in sections or _is_referred_to(key, cfg):
            continue
        if hint := closest(key, sections):
            raise UserError(f"{key}: nothing reads this.{hint}")
        if key in added:
            raise UserError(f"+{added[key]}: nothing reads this.{_hint(added[key], cfg)}")
        content = OmegaConf.to_container(cfg)[key]  # type: ignore[call-overload,index]
        if inner := next((name for name in _sections([content]) if name in (*free, "sweep", "_target_")), None):
            raise UserError(
                f"{key}: nothing reads this, nor the {inner} in it. A file whose keys belong at the top of the config "
                "begins with the line `# @package _global_`"
            )
    _check_trainer(cfg)


def _check_trainer(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    if trainer._target_ in ("lightning.Trainer", "lightning.pytorch.Trainer"):
        known = (*OF_TRAINER, *IN_BASE, *SET_ELSEWHERE, *WITHOUT_EFFECT)
        for key in map(str, trainer):
            if key not in known and not key.startswith("_"):
                raise UserError(f"trainer.{key}: Lightning's Trainer has no such argument.{closest(key, known)}")
    own_loaders = not str(cfg.data.get("_target_")).startswith("mnist_lab.")
    for key, (neutral, why) in WITHOUT_EFFECT.items():
        if key in trainer and trainer[key] != neutral and not (own_loaders and key in OF_LOADERS):
            raise UserError(f"trainer.{key}={trainer[key]} has no effect here: {why}")


def _added(override: str) -> str:
    """Return the key that an override adds to the config; an empty string where it adds none."""
    found = re.match(r"\++(?:[\w./-]+@)?([\w./-]+)(?:@[\w.]*)?=", override)
    return found[1] if found else ""


def _is_referred_to(key: str, cfg: DictConfig) -> bool:
    """Return whether a value outside of `key`, and outside of what Hydra records of the command, refers to it."""
    rest: Any = OmegaConf.to_container(cfg)
    rest.pop(key, None)
    if "hydra" in rest:
        del rest["hydra"]["overrides"], rest["hydra"]["runtime"], rest["hydra"]["job"]["override_dirname"]
    return re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", str(rest)) is not None


def _hint(key: str, cfg: DictConfig) -> str:
    others = OmegaConf.masked_copy(cfg, [str(other) for other in cfg if str(other) != re.split(r"[./]", key)[0]])
    known, parts = set(keys_of(others)), key.split(".")
    for n in range(1, len(parts)):
        if (inner := ".".join(parts[n:])) in known:
            return f" Did you mean {inner}?"
    return unknown_key_hint(parts[0], others)


def _sections(content: Any) -> Iterator[str]:
    """Yield at every depth `_target_` and the names of sections."""
    parts = content.items() if isinstance(content, dict) else ((0, part) for part in content)
    for name, part in parts:
        if isinstance(part, dict) or name == "_target_":
            yield str(name)
        if isinstance(part, dict | list):
            yield from _sections(part)
