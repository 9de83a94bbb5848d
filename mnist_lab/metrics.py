"""Names of metrics: whether a smaller or a larger value is better, and which of them a config may name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from mnist_lab.errors import UserError, closest

Mode = Literal["min", "max"]
MODES: dict[str, Mode] = {
    **dict.fromkeys(("loss", "error"), "min"),
    **dict.fromkeys(("acc", "accuracy", "f1", "auroc", "precision", "recall"), "max"),
}
"""Whether a metric is to be small or large, by the end of its name."""
MONITOR = "val/acc"
"""Metric that judges a run whose config names none; configs of earlier versions have no `monitor`."""
OF_AN_EPOCH = ("train/loss", "train/acc", "val/loss", "val/acc")
"""Metrics that our own modules log in each epoch."""
COSTS = ("seconds", "parameters")
"""Costs that every run has beside its metrics: seconds of training, and the number of the network's parameters."""
ALL = ("test/acc", "test/loss", *OF_AN_EPOCH, *COSTS)
"""Metrics that can judge runs of our own modules."""
NO_METRICS = ("epoch", "lr", "seconds")
"""Columns of a history that are no metrics."""
PACKAGES = ("mnist_lab.", "lightning.", "torch.")
"""Where classes come from that log no metrics of their own."""


def known_mode(metric: str, mode: str | None = None, monitor: str | None = None) -> Mode | None:
    """Return whether a metric is to be small ("min") or large ("max"); None where neither the user nor the name says.

    Args:
        metric: its name, such as "val/loss".
        mode: what the user says, "min" or "max"; None: the name decides.
        monitor: the metric that `mode` is about, in whatever stage it is measured; None: this one.
    """
    if mode is not None and (monitor is None or split(metric)[1] == split(monitor)[1]):
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


def split(metric: str) -> tuple[str, str]:
    """Return the stage, "train", "val", "test" or "", and the rest of a metric's name."""
    found = re.fullmatch(r"(train|val|test)[/_](.+)", metric)
    return (found[1], found[2]) if found else ("", metric)


def of_stage(row: Mapping[str, float | None], stage: str) -> dict[str, float | None]:
    """Return a history row's metrics of one stage, by name without the stage; none if none was measured."""
    found = {split(name)[1]: value for name, value in row.items() if split(name)[0] == stage and name not in NO_METRICS}
    return found if any(value is not None for value in found.values()) else {}


def is_accuracy(metric: str) -> bool:
    """Return whether a metric is a share of right answers, to be shown in percent."""
    return metric.lower().endswith(("acc", "accuracy"))


def shown(metric: str, value: float | None) -> str:
    """Return a metric's value as text, an accuracy in percent."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if is_accuracy(metric):
        return f"{value:.2%}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"


def steady(metric: str) -> str:
    """Return val/loss for val/acc, and any other metric unchanged: what early stopping and a plateau watch.

    An accuracy stands still by chance more often than the loss.
    """
    return "val/loss" if metric == "val/acc" else metric


def unknown_metric(cfg: DictConfig, key: str, metric: str, known: Sequence[str]) -> Iterator[str]:
    """Yield a sentence where nothing in a config can log a metric: its module and its callbacks are all ours.

    Those of the section `metrics` are known, too.

    Args:
        cfg: the config.
        key: the option that names the metric.
        metric: its name.
        known: what our modules measure.
    """
    callbacks = cfg.get("callbacks") or {}
    parts = [cfg.get("model"), cfg.get("module"), *(callbacks.values() if OmegaConf.is_dict(callbacks) else ())]
    ours = [str(part.get("_target_", PACKAGES[0])).startswith(PACKAGES) for part in parts if OmegaConf.is_dict(part)]
    more = cfg.get("metrics") or {}
    stages = {split(name)[0] for name in known} - {"train"}
    known = (*known, *(f"{stage}/{name}" for stage in ("val", "test") if stage in stages for name in more))
    if all(ours) and "_target_" not in more and metric not in known:
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
