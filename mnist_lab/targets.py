"""Names of classes and functions that configs used before they moved: run folders and users' own files keep working."""

from __future__ import annotations

from typing import Any

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
"""The new name of each."""


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
