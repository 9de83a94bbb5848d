"""From a checked config to the objects that it describes, with every mistake told before a run begins."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from mnist_lab.data import ImageDataModule
from mnist_lab.data.moved import read_recorded
from mnist_lab.errors import UserError, brief
from mnist_lab.result import Result
from mnist_lab.targets import parameters_of
from mnist_lab.training import Classifier
from mnist_lab.training.checkpoint_files import read_checkpoint


def build(cfg: DictConfig, section: str) -> Any:
    """Make what a section of the config describes.

    Args:
        cfg: the run's config.
        section: its key, as "model" or "callbacks.early_stopping".

    Raises:
        UserError: its class doesn't exist, or doesn't take what the section gives it.
    """
    described = OmegaConf.select(cfg, section)
    try:
        built = instantiate(described, _convert_="all")
    except (InstantiationException, TypeError) as error:  # the latter of a `_partial_` that is no truth value, say
        cause = error.__cause__
        mistake = cause is None or isinstance(
            cause, TypeError | ValueError | ImportError | AttributeError | RuntimeError
        )
        if not mistake:
            raise
        raise UserError(f"{section}: {described.get('_target_')} can't be made: {brief(cause or error)}") from error
    return built


def build_data(cfg: DictConfig) -> L.LightningDataModule:
    """Make the LightningDataModule that `data` describes.

    Keys that `conf/` gives every data set, such as `root`, are passed to a user's own class only if it takes them; to
    one made of `ImageDataModule` all but those that are null.

    Raises:
        UserError: it can't be made, or is something else.
    """
    target = _object(cfg, "data")
    section = cfg
    if target is not ImageDataModule:
        taken, ours = parameters_of(target), inspect.signature(ImageDataModule).parameters
        made_of_ours = isinstance(target, type) and issubclass(target, ImageDataModule)
        section = cfg.copy()
        section.data = {
            key: value
            for key, value in cfg.data.items()
            if key in taken or key not in ours or (made_of_ours and value is not None)
        }
    built = build(section, "data")
    if not isinstance(built, L.LightningDataModule):
        raise UserError(f"data: {cfg.data._target_} is no LightningDataModule, nor a class made of it")
    return built


def build_network(cfg: DictConfig) -> nn.Module:
    """Make the network that `model` describes.

    Raises:
        UserError: it can't be made, or is no `torch.nn.Module`.
    """
    net = build(cfg, "model")
    if not isinstance(net, nn.Module):
        raise UserError(
            f"model: {cfg.model._target_} gives {type(net).__name__}, and model must be a torch.nn.Module that maps "
            "images, float32 (B, C, H, W), to logits (B, classes)"
        )
    return net


def check_size(cfg: DictConfig, path: Path, saved: dict[str, Any]) -> None:
    """Check that the config's network is no larger than its checkpoint, before it takes memory.

    Args:
        cfg: the run's config.
        path: the checkpoint's file, as errors name it.
        saved: what `read_checkpoint` found there.

    Raises:
        UserError: it is larger.
    """
    if is_module(cfg) or "model" not in groups_used(cfg):
        return
    try:
        with torch.device("meta"):
            net = build_network(cfg)
        needed, kept = (
            sum(value.numel() for value in values.values() if isinstance(value, Tensor))
            for values in (net.state_dict(), saved["state_dict"])
        )
    except (UserError, NotImplementedError, RuntimeError):  # of a user's own network that needs values
        return
    if needed > kept:
        raise UserError(
            f"{path} is of another network than the run's config: it has {kept:,} values, and the config's {needed:,}"
        )


def build_module(cfg: DictConfig, data: L.LightningDataModule) -> L.LightningModule:
    """Make the LightningModule that `module` describes, or `model` where that is one.

    Parameters named `net`, `loss`, `optimizer`, `schedule`, `metrics` and `num_classes` that `module` doesn't set are
    made of the config's groups `model`, `loss`, `optimizer`, `schedule`, `metrics`, and of the data: those without a
    default, and all of a class made of `Classifier`.

    Raises:
        UserError: it can't be made, or is something else.
    """
    parts: dict[str, Callable[[], Any]] = {
        "net": lambda: build_network(cfg),
        "loss": lambda: build(cfg, "loss"),
        "optimizer": lambda: build(cfg, "optimizer"),
        "schedule": lambda: build(cfg, "schedule") or None,
        "num_classes": lambda: _num_classes(cfg, data),
        "metrics": lambda: build_metrics(cfg, data),
    }
    if is_module(cfg):
        return build_network(cfg)  # type: ignore[return-value]
    section, needed = _module_section(cfg), _needed(cfg)
    described = {"module": {**OmegaConf.to_container(section), "_partial_": True}}  # type: ignore[dict-item]
    made = {name: part() for name, part in parts.items() if name in needed}
    partial = build(OmegaConf.create(described), "module")
    try:
        module = partial(**made)
    except (TypeError, ValueError) as error:
        raise UserError(f"module: {section._target_} can't be made: {brief(error)}") from error
    if not isinstance(module, L.LightningModule):
        raise UserError(f"module: {section._target_} is no LightningModule, nor a class made of it")
    return module


def build_metrics(cfg: DictConfig, data: L.LightningDataModule) -> dict[str, Metric]:
    """Make the metrics that `metrics` describes, by name: one in each key, or a `MetricCollection`.

    Raises:
        UserError: one can't be made, is no `torchmetrics.Metric`, or gives something else than one number.
    """
    described = cfg.get("metrics") or {}
    if "_target_" in described:
        found = build(cfg, "metrics")
        metrics = dict(found.items(keep_base=True)) if isinstance(found, MetricCollection) else {"_target_": found}
    else:
        metrics = {str(name): _metric(cfg, f"metrics.{name}", data) for name in described}
    for name, metric in metrics.items():
        key = f"metrics.{name}"
        if not isinstance(metric, Metric):
            raise UserError(f"{key} is no torchmetrics.Metric: it needs a _target_ that is one")
        if name in ("loss", "acc") or not re.fullmatch(r"\w+", name):
            raise UserError(f"{key}: another name is needed, of letters, digits and _; every run has loss and acc")
        classes = _num_classes(cfg, data)
        trial = metric.clone()
        try:
            with warnings.catch_warnings(action="ignore"):
                trial.update(torch.eye(classes), torch.arange(classes))
                value = trial.compute()
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{key} can't be used on class probabilities and labels: {brief(error)}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(f"{key} gives more than one number: choose a mean over the classes, as average=macro")
    return metrics


def _metric(cfg: DictConfig, key: str, data: L.LightningDataModule) -> Any:
    """Make one metric; fill in `num_classes` from the data where its class takes it and the config doesn't set it."""
    described = OmegaConf.select(cfg, key)
    if not OmegaConf.is_dict(described) or "_target_" not in described:
        return None
    if "num_classes" in parameters_of(_object(cfg, key, described)) and described.get("num_classes") is None:
        described = {**described, "num_classes": _num_classes(cfg, data)}
    return build(OmegaConf.create({key.partition(".")[2]: described}), key.partition(".")[2])


def groups_used(cfg: DictConfig) -> set[str]:
    """Return those of the groups model, loss, optimizer, schedule and metrics of which the run's module is made."""
    if is_module(cfg):
        return {"model"}
    return {"model" if name == "net" else name for name in _needed(cfg)}


def _module_section(cfg: DictConfig) -> DictConfig:
    section: DictConfig = cfg.get("module") or OmegaConf.create({"_target_": "mnist_lab.fast.FastClassifier"})
    return section


def _needed(cfg: DictConfig) -> set[str]:
    """Return the parameters of the module that its section doesn't set and that have no default."""
    section = _module_section(cfg)
    target = _object(cfg, "module", section)
    is_classifier = isinstance(target, type) and issubclass(target, Classifier)
    return {
        name
        for name, parameter in parameters_of(target).items()
        if name not in section and (is_classifier or parameter.default is parameter.empty)
    }


def is_module(cfg: DictConfig) -> bool:
    """Return whether `model` names a LightningModule, which needs none of ours around it."""
    target = _object(cfg, "model")
    return isinstance(target, type) and issubclass(target, L.LightningModule)


def build_tested(cfg: DictConfig, run_dir: Path) -> ImageDataModule:
    """Return the data that a run was tested on, read and divided.

    Args:
        cfg: the run's config.
        run_dir: the run's folder.

    Raises:
        UserError: it can't be had, or is not an `ImageDataModule`.
    """
    data = build_data(cfg)
    if not isinstance(data, ImageDataModule):
        raise UserError(f"{run_dir} was trained on {cfg.data._target_}, whose images are not known here")
    read_tested(data, run_dir)
    return data


def read_tested(data: ImageDataModule, run_dir: Path) -> None:
    """Read and divide the images that a run was tested on: others in their place would make another number.

    Raises:
        UserError: they can't be had.
    """
    data.fallback = None
    if (run_dir / "result.json").exists():
        read_recorded(data, Result.load(run_dir).data)
    elif (last := run_dir / "checkpoints" / "last.ckpt").exists():
        read_recorded(data, read_checkpoint(last).get("ImageDataModule", {}))
    data.prepare_data()
    data.setup()


def load_weights(net: nn.Module, path: Path, saved: dict[str, Any], prefix: str = "net.") -> None:
    """Give a network the weights of a checkpoint.

    Args:
        net: the network, or a LightningModule.
        path: the checkpoint's file, as errors name it.
        saved: what `read_checkpoint` found there.
        prefix: of its weights' names; empty for a LightningModule.

    Raises:
        UserError: they are the weights of another network.
    """
    weights = {k.removeprefix(prefix): value for k, value in saved["state_dict"].items() if k.startswith(prefix)}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[1].split())
        raise UserError(f"{path} is of another network than the run's config: {reason}") from error


def load_module(module: L.LightningModule, path: Path, saved: dict[str, Any]) -> None:
    """Give a module the weights of a checkpoint, and whatever else a user's own module has kept in it.

    Raises:
        UserError: they are of another module.
    """
    if isinstance(module, Classifier):
        load_weights(module.net, path, saved)
        return
    module.on_load_checkpoint(saved)
    load_weights(module, path, saved, prefix="")


def _num_classes(cfg: DictConfig, data: L.LightningDataModule) -> int:
    if isinstance(data, ImageDataModule):
        return len(data.class_names)
    found = getattr(data, "num_classes", cfg.data.get("num_classes"))
    if not isinstance(found, int):
        raise UserError(f"data: {cfg.data._target_} doesn't say how many classes there are: give data.num_classes=N")
    return found


def _object(cfg: DictConfig, section: str, described: DictConfig | None = None) -> Any:
    """Return what a section's `_target_` names."""
    target = (cfg[section] if described is None else described).get("_target_")
    try:
        return get_object(target)
    except Exception as error:  # whatever the module that it is in raises
        raise UserError(f"{section}: {target} can't be made: {brief(error.__cause__ or error)}") from error
