"""Names of metrics: whether a smaller or a larger value is better, and which of them a config may name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from mnist_lab.errors import UserError, closest

Mode = Literal["min", "max"]
MODES: dict[str, Mode] = {"loss": "min", "error": "min", "acc": "max", "accuracy": "max", "f1": "max", "auroc": "max"}
"""Whether a metric is to be small or large, by the end of its name."""
MONITOR = "val/acc"
"""What a run is judged by unless its config says otherwise; configs of earlier versions have no `monitor`."""
OF_AN_EPOCH = ("val/loss", "val/acc", "train/loss", "train/acc")
"""What our own modules log in each epoch."""
COSTS = ("seconds", "parameters")
"""What every run has beside its metrics: seconds of training, and the number of the network's parameters."""
ALL = ("test/acc", "test/loss", *OF_AN_EPOCH, *COSTS)
"""What runs of our own modules can be judged by."""
PACKAGES = ("mnist_lab.", "lightning.", "torch.")
"""Where classes come from that log no metrics of their own."""


def known_mode(metric: str, mode: str | None = None, monitor: str | None = None) -> Mode | None:
    """Return whether a metric is to be small ("min") or large ("max"); None where neither the user nor the name says.

    Args:
        metric: its name, such as "val/loss".
        mode: what the user says, "min" or "max"; None: the name decides.
        monitor: the metric that `mode` is about, in whatever stage it is measured; None: this one.
    """
    if mode is not None and (monitor is None or _without_stage(metric) == _without_stage(monitor)):
        return "max" if mode == "max" else "min"
    if metric in COSTS:
        return "min"
    return next((mode for end, mode in MODES.items() if metric.lower().endswith(end)), None)


def mode_of(metric: str, mode: str | None = None, monitor: str | None = None) -> Mode:
    """Return what `known_mode` does.

    Raises:
        UserError: neither the user nor the name says.
    """
    found = known_mode(metric, mode, monitor)
    if found is None:
        raise UserError(
            f"{metric}: its name doesn't say whether it is to be small or large. Say it: monitor={metric} mode=min or "
            f"monitor={metric} mode=max"
        )
    return found


def _without_stage(metric: str) -> str:
    return metric.partition("/")[2] or metric


def is_accuracy(metric: str) -> bool:
    """Return whether a metric is a share of right answers, to be shown in percent."""
    return metric.lower().endswith(("acc", "accuracy"))


def steady(metric: str) -> str:
    """Return val/loss for val/acc, and any other metric unchanged: what early stopping and a plateau watch.

    An accuracy stands still by chance more often than the loss.
    """
    return "val/loss" if metric == "val/acc" else metric


def unknown_metric(cfg: DictConfig, key: str, metric: str, known: Sequence[str]) -> Iterator[str]:
    """Yield a sentence where nothing in a config can log a metric: its module and its callbacks are all ours.

    Args:
        cfg: the config.
        key: the option that names the metric.
        metric: its name.
        known: what our modules measure.
    """
    callbacks = cfg.get("callbacks") or {}
    parts = [cfg.get("model"), cfg.get("module"), *(callbacks.values() if OmegaConf.is_dict(callbacks) else ())]
    ours = [str(part.get("_target_", PACKAGES[0])).startswith(PACKAGES) for part in parts if OmegaConf.is_dict(part)]
    if all(ours) and metric not in known:
        yield f"{key}={metric} is not allowed: it must be one of {', '.join(known)}.{closest(metric, known)}"


def metric_conflicts(cfg: DictConfig) -> Iterator[str]:
    """Yield a sentence for each metric that a config's monitors name and nothing logs, or judge the wrong way."""
    for section in ("", "schedule.", "callbacks.early_stopping."):
        metric = OmegaConf.select(cfg, f"{section}monitor")
        target = OmegaConf.select(cfg, f"{section}_target_") if section else None
        if metric is None or not str(target or PACKAGES[0]).startswith(PACKAGES):
            continue
        yield from unknown_metric(cfg, f"{section}monitor", metric, OF_AN_EPOCH)
        mode, right = OmegaConf.select(cfg, f"{section}mode"), MODES.get(metric.rpartition("/")[2])
        if None not in (mode, right) and mode != right:
            yield f"{section}mode={mode} is wrong for {metric}: it must be {right}"
        mode_of(metric, mode)
