"""The figures of a network: its layers, and the weights of the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mnist_lab.show.style import BLUE, GREY, canvas, draw, subplots, tiled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = 30
"""Most units of a first layer whose weights are drawn."""


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
    """Return the layers that an image passes through.

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


def drawing(layers: Sequence[Layer], shape: Sequence[int]) -> Figure:
    """Draw the network from left to right: each stage's output, feature maps as stacked squares and vectors as bars.

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
    """Draw what the first layer looks for: its filters, or its units' weights as images.

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
