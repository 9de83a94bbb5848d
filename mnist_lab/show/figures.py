"""The figures of a run's report, each fit to stand alone in a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mnist_lab.show.answers import BINS, Answers, Bin, wilson_interval
from mnist_lab.show.style import BLUE, GREY, ORANGE, subplots, titled
from mnist_lab.training.metrics import precision_recall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISTAKES = 15
"""Most mistakes that are shown."""
READABLE = 20
"""Most classes of a confusion matrix whose cells can hold readable numbers."""


def predictions(answers: Answers) -> Figure:
    """Draw the first nine test images, three per row, each with its predicted class and its label."""
    chosen = torch.arange(min(9, len(answers.labels)))
    pairs = [(answers.names[int(answers.predicted[n])], answers.names[int(answers.labels[n])]) for n in chosen]
    between = " " if max(len(name) for pair in pairs for name in pair) <= 3 else "\n"
    texts = [f"Predicted: {predicted}{between}Label: {label}" for predicted, label in pairs]
    wrong = (answers.predicted != answers.labels)[chosen].tolist()
    return titled(answers.shown(chosen), 3, 4.9, texts, wrong)


def worst(answers: Answers) -> Figure:
    """Draw the mistakes with the highest confidence, five per row, with both probabilities."""
    chosen = answers.mistakes[:MISTAKES]
    texts = []
    for n in chosen:
        of, label = answers.probabilities[n], int(answers.labels[n])
        named = ((int(answers.predicted[n]), "Predicted"), (label, "Label"))
        texts.append("\n".join(f"{word}: {answers.names[k]}, {percent(float(of[k]))}" for k, word in named))
    return titled(answers.shown(chosen), 5, 9.0, texts)


def least_probable(answers: Answers, count: int) -> Figure:
    """Draw the mistakes whose label got the lowest probability, in a square grid, each with both classes.

    Args:
        answers: with at least one mistake.
        count: most mistakes to draw, 1 or more.
    """
    of_the_label = answers.probabilities[answers.mistakes, answers.labels[answers.mistakes]]
    chosen = answers.mistakes[of_the_label.argsort(stable=True)[:count]]
    pairs = [(answers.names[int(answers.labels[n])], answers.names[int(answers.predicted[n])]) for n in chosen]
    between = " → " if max(len(name) for pair in pairs for name in pair) <= 3 else "\n→ "
    side = math.ceil(math.sqrt(len(chosen)))
    figure = titled(answers.shown(chosen), side, 6.0, [between.join(pair) for pair in pairs])
    height = figure.get_figheight() + 0.4  # inches, with the title
    figure.axes[0].set_position((0, 0, 1, figure.get_figheight() / height))
    figure.set_figheight(height)
    title = f"{len(answers.mistakes):,} of {len(answers.labels):,} wrong, the worst first: label → predicted"
    figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=11)
    return figure


def confusion_matrix(answers: Answers) -> Figure:
    """Draw counts by label and prediction: correct ones in blue and mistakes in orange, by their share of the label."""
    from matplotlib import colormaps

    counts = answers.confusion()
    k = len(answers.classes)
    side = min(9.0, max(5.0, 2.0 + 0.42 * k))
    figure, (ax,) = subplots(width=side, height=side * 0.93)
    figure.set_layout_engine("compressed")  # made for axes of a fixed shape: the usual one cuts some titles off
    ax.grid(visible=False)
    shares = (counts.double() / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    hits = np.eye(k, dtype=bool)
    most = max(float(shares[~hits].max()), 1e-9)
    ax.imshow(np.ma.array(shares, mask=~hits), cmap="Blues", vmin=0, vmax=1.25, interpolation="none")
    mistakes = np.ma.array(100 * shares, mask=hits | (shares == 0))
    oranges = colormaps["Oranges"]
    drawn = ax.imshow(mistakes, cmap=oranges, vmin=0, vmax=100 * most, interpolation="none")
    if k <= READABLE:
        for row, column in counts.nonzero().tolist():
            dark = shares[row, column] > 0.6 if row == column else shares[row, column] > 0.65 * most
            ax.text(
                column, row, f"{counts[row, column]:,}", ha="center", va="center",
                fontsize=9 if k <= 12 else 7, color="white" if dark else "#222222",
            )  # fmt: skip
    step = -(-k // 64)  # more names can't be read
    names = answers.names[::step]
    size = min(9.0, 330 / (k / step))
    fits = 0.6 * size * max(map(len, names)) < 72 * 0.75 * side * step / k  # of a cell's width, in points
    ax.set_xticks(range(0, k, step), names, fontsize=size, rotation=0 if fits else 90)
    ax.set_yticks(range(0, k, step), names, fontsize=size)
    ax.set_xlabel("predicted")
    ax.set_ylabel("label")
    ax.tick_params(length=0 if k <= READABLE else 2)
    if len(answers.mistakes):
        figure.colorbar(drawn, ax=ax, label="mistakes, % of the label's images", shrink=0.6, pad=0.02, aspect=30)
    return figure


def class_scores(answers: Answers) -> Figure:
    """Draw precision and recall of each class."""
    k = len(answers.classes)
    figure, (ax,) = subplots(width=4.6, height=1.3 + 0.27 * k)
    precision, recall = (100 * values.numpy() for values in precision_recall(answers.confusion()))
    places = np.arange(k)
    ax.hlines(places, np.fmin(precision, recall), np.fmax(precision, recall), color="#bbbbbb", linewidth=1.5, zorder=1)
    ax.plot(precision, places, "o", color=BLUE, markersize=6, label="precision")
    ax.plot(recall, places, "D", color=ORANGE, markersize=5, label="recall")
    ax.set_yticks(places, answers.names, fontsize=9 if k <= 30 else 8)
    ax.set_ylim(k - 0.5, -0.5)
    ax.set_xlim(right=min(ax.get_xlim()[1], 100.9))  # room for a marker at 100, none for a tick at 101
    ax.set_xlabel("%")
    ax.grid(visible=False, axis="y")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def reliability(bins: Sequence[Bin]) -> Figure:
    """Draw accuracy against confidence, with 95 % intervals, above the number of images in each bin."""
    figure, (ax, below) = subplots(
        1, 2, width=5.2, height=2.5, sharex=True, gridspec_kw={"height_ratios": [3, 1], "hspace": 0.05}
    )
    where = [100 * b.confidence for b in bins]
    values = [100 * b.correct / b.n for b in bins]
    ends = [wilson_interval(b.correct, b.n) for b in bins]
    errors = [
        [max(0.0, value - 100 * low) for value, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, 100 * high - value) for value, (_, high) in zip(values, ends, strict=True)],
    ]
    ax.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="perfectly calibrated")
    ax.errorbar(
        where, values, yerr=errors, fmt="o-", color=BLUE, capsize=2, markersize=5, linewidth=1, label="measured"
    )
    ax.set_ylabel("accuracy, %")
    ax.set_ylim(-3, 103)
    ax.legend(frameon=False, loc="upper left")
    below.bar(where, [b.n for b in bins], width=100 / BINS * 0.6, color=BLUE)
    below.set_yscale("log")
    below.set_ylim(0.7, None)
    below.set_ylabel("images")
    below.set_xlabel("confidence: probability of the predicted class, %")
    below.set_xlim(0, 102)
    return figure


def percent(share: float) -> str:
    """Return a fraction as text, such as `97.82 %`; `< 0.01 %` if it would be rounded to 0."""
    if math.isnan(share):
        return "not a number"
    return "< 0.01 %" if 0 < share < 0.00005 else f"{100 * share:.2f} %"
