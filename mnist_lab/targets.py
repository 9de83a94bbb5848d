"""Classes that a config's `_target_` names: those that have moved since, and the arguments of each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mnist_lab.errors import UserError

MOVED = {
    "mnist_lab.training.SGD": "mnist_lab.fast.SGD",
    "mnist_lab.training.Adam": "mnist_lab.fast.Adam",
    "mnist_lab.training.AdamW": "mnist_lab.fast.AdamW",
    "mnist_lab.training.RMSprop": "mnist_lab.fast.RMSprop",
    "mnist_lab.training.Replay": "mnist_lab.fast.Replay",
    "mnist_lab.training.NeuronForwardPass": "mnist_lab.models.NeuronForwardPass",
    "mnist_lab.training.Dashboard": "mnist_lab.show.tensorboard.Dashboard",
    "mnist_lab.training.CHARTS": "mnist_lab.show.tensorboard.CHARTS",
    "mnist_lab.training.newest": "mnist_lab.training.checkpoint_files.newest",
}
"""The new names of what has moved: run folders and users' own files keep working."""


def with_current_names(config: Any) -> Any:
    """Return a config with the new names of all that has moved.

    Args:
        config: dictionaries, lists and values, as YAML or JSON has them, or a single value.
    """
    if isinstance(config, dict):
        return {key: with_current_names(value) for key, value in config.items()}
    if isinstance(config, list):
        return [with_current_names(value) for value in config]
    return MOVED.get(config, config) if isinstance(config, str) else config


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """Return what a class or a function takes, with what a class passes on to its base by `**kwargs`."""
    found: dict[str, inspect.Parameter] = {}
    kinds = [base for base in target.__mro__ if "__init__" in vars(base)] if isinstance(target, type) else [target]
    for each in kinds:
        try:
            parameters = inspect.signature(each).parameters
        except ValueError:  # of a class written in C
            break
        found = {**parameters, **found}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found


def logger_sections(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the loggers that the section `logger` of a config describes, by their keys: `logger.csv`, say.

    Args:
        described: a section for each logger, or a single logger's own, as earlier versions had it.

    Raises:
        UserError: one of them names no class.
    """
    if "_target_" in described:
        return {"logger": described}
    found = {f"logger.{name}": section for name, section in described.items()}
    for key, section in found.items():
        if not (isinstance(section, Mapping) and isinstance(section.get("_target_"), str)):
            raise UserError(
                f"{key} names no class of a logger: +{key}._target_=CLASS. An option of one is in its section: "
                f"+logger.tensorboard.{key.partition('.')[2]}=VALUE"
            )
    return found


def writes_tensorboard(described: Mapping[str, Any]) -> bool:
    """Return whether one of the loggers that the section `logger` of a config describes is TensorBoard's."""
    return any(section["_target_"].endswith("TensorBoardLogger") for section in logger_sections(described).values())
