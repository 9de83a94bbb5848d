"""The figures of a run's report, each fit to stand alone in a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from mnist_lab.data import DatasetImages
from mnist_lab.show.style import (
    BLUE,
    GREY,
    ORANGE,
    canvas,
    draw,
    drawable,
    shortened,
    subplots,
    tiled,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
"""Bins of confidence, as in Guo et al. 2017."""
UNITS = 30
"""Most units of a first layer whose weights are drawn."""
MISTAKES = 15
"""Most mistakes that are shown."""
READABLE = 20
"""Most classes of a confusion matrix whose cells can hold readable numbers."""


@dataclass(frozen=True)
class Answers:
    """What a network predicts for images.

    Attributes:
        probabilities: float (N, classes); NaN where training diverged.
        labels: int64 (N,).
        images: uint8 or float32 (N, C, H, W).
        classes: the classes' names.
    """

    probabilities: Tensor
    labels: Tensor
    images: Tensor | DatasetImages | Subset[Tensor]
    classes: tuple[str, ...]

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each image, int64 (N,)."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """The probability of that class, (N,)."""
        return self.probabilities.amax(1)

    @property
    def mistakes(self) -> Tensor:
        """Positions of the misclassified images, highest confidence first: int64 (M,)."""
        wrong = (self.predicted != self.labels).nonzero().flatten()
        sure = self.confidence[wrong].nan_to_num(0)
        return wrong[sure.argsort(descending=True, stable=True)]

    def confusion(self) -> Tensor:
        """Number of images by label (row) and predicted class (column): int64 (classes, classes)."""
        k = len(self.classes)
        return torch.bincount(self.labels * k + self.predicted, minlength=k * k).reshape(k, k)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names as figures show them: shortened, and with every $ escaped, which would begin a formula."""
        return tuple(name.replace("$", r"\$") for name in shortened(self.classes, 20))

    def at(self, positions: Tensor) -> Tensor:
        """The images at some positions, on the CPU: uint8 or float32 (n, C, H, W)."""
        return torch.stack([self.images[int(n)].cpu() for n in positions])

    def shown(self, positions: Tensor) -> Tensor:
        """The same as they are drawn: 0 to 255."""
        return drawable(self.at(positions))


def precision_recall(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall of each class.

    Args:
        confusion: int64 (classes, classes), one row per label.

    Returns:
        float64 (classes,) each; precision is NaN for a class that was never predicted, recall for one without images.
    """
    correct = confusion.diagonal().double()
    return correct / confusion.sum(0), correct / confusion.sum(1)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of the proportion `correct` / `n` (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Bin:
    """Images of about equal confidence.

    Attributes:
        n: number of images.
        correct: how many of them were classified correctly.
        confidence: their mean probability of the predicted class.
    """

    n: int
    correct: int
    confidence: float


def calibration_bins(answers: Answers) -> list[Bin]:
    """The test images by confidence, in BINS bins of equal width in [0, 1]. Empty bins and NaN are left out."""
    known = answers.confidence.isfinite()
    confidence, right = answers.confidence[known].double(), (answers.predicted == answers.labels)[known]
    number = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
    found = []
    for k in number.unique().tolist():
        inside = number == k
        found.append(Bin(int(inside.sum()), int(right[inside].sum()), float(confidence[inside].mean())))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error (Guo et al. 2017, eq. 3): the bins' mean |accuracy − confidence|, by images."""
    return sum(abs(b.correct - b.n * b.confidence) for b in bins) / sum(b.n for b in bins)


@dataclass(frozen=True)
class Layer:
    """One call of a layer, in the order in which an image passes through the network.

    Attributes:
        kind: the name of its class.
        gives: the shape of its output for one image.
        parameters: number of parameters; 0 if an earlier entry has counted them.
    """

    kind: str
    gives: tuple[int, ...]
    parameters: int


def layers_of(net: nn.Module, image: Tensor) -> tuple[list[Layer], nn.Module | None]:
    """The layers that an image passes through.

    Args:
        net: in evaluation mode.
        image: float32 (1, C, H, W), on the network's device.

    Returns:
        The layers, and the first module among them that has a weight matrix; None if there is none.
    """
    found: list[Layer] = []
    modules: list[nn.Module] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple | list) else output
        count = 0 if module in modules else sum(p.numel() for p in module.parameters())
        found.append(Layer(type(module).__name__, tuple(getattr(output, "shape", (0,)))[1:], count))
        modules.append(module)

    hooks = [leaf.register_forward_hook(record) for leaf in net.modules() if not any(True for _ in leaf.children())]
    with torch.no_grad():
        net(image)
    for hook in hooks:
        hook.remove()
    first = next((m for m in modules if isinstance(getattr(m, "weight", None), Tensor) and m.weight.dim() > 1), None)  # type: ignore[operator]
    return found, first


def predictions(answers: Answers) -> Figure:
    """The first nine test images, three per row, each with its predicted class and its label."""
    chosen = torch.arange(min(9, len(answers.labels)))
    pairs = [(answers.names[int(answers.predicted[n])], answers.names[int(answers.labels[n])]) for n in chosen]
    between = " " if max(len(name) for pair in pairs for name in pair) <= 3 else "\n"
    texts = [f"Predicted: {predicted}{between}Label: {label}" for predicted, label in pairs]
    wrong = (answers.predicted != answers.labels)[chosen].tolist()
    return titled(answers.shown(chosen), 3, 4.9, texts, wrong)


def worst(answers: Answers) -> Figure:
    """The mistakes with the highest confidence, five per row, with both probabilities."""
    chosen = answers.mistakes[:MISTAKES]
    texts = []
    for n in chosen:
        of, label = answers.probabilities[n], int(answers.labels[n])
        named = ((int(answers.predicted[n]), "Predicted"), (label, "Label"))
        texts.append("\n".join(f"{word}: {answers.names[k]}, {percent(float(of[k]))}" for k, word in named))
    return titled(answers.shown(chosen), 5, 9.0, texts)


def least_probable(answers: Answers, count: int) -> Figure:
    """The mistakes whose label got the lowest probability, in a square grid, each with both classes.

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
    """Counts by label and prediction: correct ones in blue and mistakes in orange, by their share of the label."""
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
    """Precision and recall of each class."""
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
    """Accuracy against confidence, with 95 % intervals, above the number of images in each bin."""
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


def drawing(layers: Sequence[Layer], shape: Sequence[int]) -> Figure:
    """The network from left to right: the output of each stage, feature maps as stacked squares and vectors as bars.

    Layers without weights and normalisations that keep the shape are listed with the layer before them.

    Args:
        layers: the network's layers.
        shape: (C, H, W) of an image.
    """
    from matplotlib.patches import FancyBboxPatch, Rectangle

    stages: list[tuple[tuple[int, ...], list[Layer]]] = [(tuple(shape), [])]
    for layer in layers:
        if layer.gives == stages[-1][0] and (layer.parameters == 0 or "Norm" in layer.kind):
            stages[-1][1].append(layer)
        else:
            stages.append((layer.gives, [layer]))
    columns = min(6, len(stages))
    lines = -(-len(stages) // columns)
    figure, ax = canvas(1.5 * columns, 2.7 * lines)
    ax.set_xlim(-0.75, 1.5 * columns - 0.75)
    ax.set_ylim(2.7 * lines - 1.15, -1.15)
    largest = max((math.sqrt(math.prod(gives[1:])) for gives, _ in stages if len(gives) == 3), default=1.0)
    for n, (gives, inside) in enumerate(stages):
        x, y = 1.5 * (n % columns), 2.7 * (n // columns)
        if len(gives) == 3:
            side = max(0.3, 0.85 * math.sqrt(math.sqrt(math.prod(gives[1:])) / largest))
            cards = min(5, gives[0])
            shift = 0.07 * (cards - 1)
            for card in range(cards):
                corner = x - side / 2 + shift / 2 - 0.07 * card, y - side / 2 - shift / 2 + 0.07 * card
                ax.add_patch(Rectangle(corner, side, side, facecolor="#d6e6f2", edgecolor=BLUE, linewidth=0.9))
            half = side / 2 + shift / 2
        else:
            units = math.prod(gives)
            tall = min(1.7, 0.25 + 0.48 * math.log10(max(units, 1)))
            box = FancyBboxPatch(
                (x - 0.09, y - tall / 2), 0.18, tall, boxstyle="round,pad=0,rounding_size=0.05",
                facecolor="#d6e6f2", edgecolor=BLUE, linewidth=0.9,
            )  # fmt: skip
            ax.add_patch(box)
            half = 0.09
        if n % columns < columns - 1 and n < len(stages) - 1:
            ax.annotate(
                "", (x + 1.5 - 0.5, y), (x + max(half + 0.08, 0.5), y),
                arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 1},
            )  # fmt: skip
        ax.text(x, y - 1.0, "×".join(map(str, gives)), ha="center", va="center", fontsize=9, fontweight="bold")
        kinds = [layer.kind for layer in inside] or (["image"] if n == 0 else [])
        names = kinds if len(kinds) <= 3 else [*kinds[:2], f"+ {len(kinds) - 2} more"]
        count = sum(layer.parameters for layer in inside)
        ax.text(
            x, y + 0.93, "\n".join(names + ([f"{count:,} parameters"] if count else [])),
            ha="center", va="top", fontsize=7.5, color="#333333", linespacing=1.25,
        )  # fmt: skip
    return figure


def first_weights(layer: nn.Module | None, shape: Sequence[int]) -> tuple[Figure, str] | None:
    """What the first layer looks for: its filters, or its units' weights as images.

    Args:
        layer: the network's first layer with weights.
        shape: (C, H, W) of an image.

    Returns:
        The figure and its caption; None if the layer's weights can't be shown as images.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return None
    weight = weight.detach().float().cpu()
    if weight.dim() == 2 and weight.shape[1] == math.prod(shape):
        images, what = weight.reshape(-1, *shape), "units"
    elif weight.dim() == 4 and weight.shape[1] == shape[0] and min(weight.shape[2:]) > 1:
        images, what = weight, "filters"
    else:
        return None
    total = len(images)
    if not bool(images.isfinite().all()):
        return None
    chosen = images.flatten(1).norm(dim=1).topk(min(UNITS, total)).indices.sort().values
    images = images[chosen]
    if total == 1:
        text = "The neuron's weights"
    elif total <= UNITS:
        text = f"The weights of all {total} {what}"
    else:
        text = f"The weights of {UNITS} of {total:,} {what}, those with the largest"
    limit = float(images.abs().max()) or 1.0
    columns = min(10, total)
    colour = images.shape[1] == 3
    gap = max(1, images.shape[3] // 12)
    picture = tiled((127.5 + 127.5 * images / limit).byte() if colour else images, columns, (gap, gap))
    width = 8.0 if columns > 4 else 1.0 + 1.5 * columns
    height = width * picture.shape[0] / picture.shape[1]
    if colour:
        figure, ax = canvas(width, height)
        draw(ax, picture)
        return figure, f"{text}, in colours: grey is 0, the brightest and darkest ±{limit:.2g}."
    figure, (ax,) = subplots(width=width + 1, height=height)
    drawn = ax.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
    ax.set_axis_off()
    figure.colorbar(drawn, ax=ax, label="weight", shrink=0.9, pad=0.01, aspect=20)
    return figure, f"{text}: where a pixel's ink speaks for it (red) and against it (blue)."


def percent(share: float) -> str:
    """A fraction as text, such as `97.82 %`; `< 0.01 %` if it would be rounded to 0."""
    if math.isnan(share):
        return "not a number"
    return "< 0.01 %" if 0 < share < 0.00005 else f"{100 * share:.2f} %"
