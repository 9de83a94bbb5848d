"""A run's metrics by epoch, as a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mnist_lab.metrics import NO_METRICS, is_accuracy, of_stage, split
from mnist_lab.result import Result
from mnist_lab.show.style import BLUE, GREY, VERMILION, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def logged_names(result: Result) -> list[str]:
    """Return the names, without their stage, of the metrics that a run has logged in its epochs."""
    return list(dict.fromkeys(split(key)[1] for row in result.history for key in row if key not in NO_METRICS))


def curves(result: Result) -> Figure:
    """Draw each metric of training and validation by epoch, and the test's. At least one must be in the history."""
    from matplotlib.ticker import MaxNLocator

    names = logged_names(result)
    columns = min(2, len(names))
    figure, axes = subplots(columns, math.ceil(len(names) / columns), height=3.4)
    epochs = [row["epoch"] for row in result.history]
    seen = {"train": ("training", BLUE, "o-"), "val": ("validation", VERMILION, "s--"), "": ("logged", BLUE, "o-")}
    legend = {}
    for ax, name in zip(axes, names, strict=False):
        scale = 100 if is_accuracy(name) else 1
        for stage, (label, colour, line) in seen.items():
            values = [of_stage(row, stage).get(name) for row in result.history]
            if any(value is not None for value in values):
                gaps = [math.nan if value is None else scale * value for value in values]
                (legend[label],) = ax.plot(epochs, gaps, line, color=colour, markersize=4, label=label)
        if (tested := result.test_metrics.get(name)) is not None:
            at_end = result.tested is result.history[-1]
            label = "test, at the end" if at_end else f"test, epoch {result.tested['epoch']}'s network"
            legend[label] = ax.axhline(scale * tested, color=GREY, linestyle=":", label=label)
        if not any(np.isfinite(line.get_ydata()).any() for line in ax.lines):
            ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", color=GREY)
            ax.set_yticks([])
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.set_xlabel("epoch")
        ax.set_ylabel(("accuracy" if name == "acc" else name) + (", %" if scale == 100 else ""))
        ax.set_xlim(0.5, len(epochs) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=3, frameon=False)
    return figure
