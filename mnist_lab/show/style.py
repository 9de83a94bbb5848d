"""The look of pages and figures: one palette, one style sheet, one way to save and embed figures."""

from __future__ import annotations

import base64
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

BLUE, VERMILION, ORANGE, GREY = "#0072b2", "#d55e00", "#e69f00", "#777777"
"""From the palette of Okabe and Ito (2008), which colour-blind readers can tell apart."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0.2em } h2 { font-size: 1.15em; margin-top: 2.2em }
h2.section { font-size: 1.3em; margin-top: 3em; padding-top: 0.8em; border-top: 2px solid #ccc }
h3 { font-size: 1em; margin-top: 1.8em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92em }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere }
table.facts td:first-child { color: #555; padding-left: 0; white-space: nowrap; vertical-align: top }
tr.best { font-weight: 600 } .note { color: #555; font-size: 0.88em } img { max-width: 100%; height: auto }
.wide { overflow-x: auto }
.warning { border-left: 5px solid #d55e00; background: #fdf1e7; padding: 0.6em 1em; margin: 1em 0 }
.warning p { margin: 0.2em 0 }
.figures { display: flex; flex-wrap: wrap; gap: 0 3em; align-items: flex-start }
.figures section { max-width: 32em }
section { break-inside: avoid }
.numbers { display: flex; flex-wrap: wrap; gap: 0.6em 2.6em; margin: 1.4em 0 }
.numbers div { display: flex; flex-direction: column } .numbers span { color: #555; font-size: 0.88em }
.numbers b { font-size: 1.5em; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums }
pre { background: #f4f4f4; padding: 0.7em 1em; overflow-x: auto; font-size: 0.88em }
pre.command { user-select: all; white-space: pre-wrap; overflow-wrap: anywhere }
figure { margin: 0.5em 0; break-inside: avoid } summary { cursor: pointer; margin: 0.6em 0 }
tr { break-inside: avoid }
@media print {
  body { font-size: 10pt; margin: 0; max-width: none; padding: 0 } @page { margin: 15mm }
  .warning, pre { print-color-adjust: exact; -webkit-print-color-adjust: exact } .wide, pre { overflow: visible }
  .figures { flex-wrap: nowrap; gap: 1.5em } .figures > * { min-width: 0 } .figures > div { flex: none }
  h2 { margin-top: 1.4em }
}
"""


def document(title: str, parts: Sequence[str]) -> str:
    """Return a self-contained HTML page.

    Args:
        title: the window's title, as plain text.
        parts: parts of the body, as HTML.
    """
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>" + "\n".join(parts) + "</html>\n"
    )


def image(drawing: str, what: str = "") -> str:
    """Return an SVG drawing as an HTML element.

    Args:
        drawing: the SVG.
        what: text for readers who can't see it.
    """
    content = base64.b64encode(drawing.encode()).decode()
    return f'<img alt="{escape(what)}" src="data:image/svg+xml;base64,{content}">'


def subplots(
    columns: int = 1, lines: int = 1, width: float = 9.0, height: float = 3.6, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row.

    Args:
        columns: columns of axes.
        lines: rows of axes.
        width: the figure's, in inches.
        height: each row's, in inches.
        options: passed to matplotlib's `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * lines), layout="constrained")
    found = figure.subplots(lines, columns, squeeze=False, **options)
    for ax in found.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, list(found.flat)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure and invisible axes that fill it to its edges, for pictures.

    Args:
        width: the figure's, in inches.
        height: the figure's, in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    return figure, ax


def svg(figure: Figure) -> str:
    """Return a figure as SVG: the same figure gives the same file, and its text stays text."""
    import matplotlib

    content = io.StringIO()
    settings: Any = {"svg.hashsalt": "mnist_lab", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings), warnings.catch_warnings(action="ignore"):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, with 160 pixels per inch."""
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        figure.savefig(content, format="png", dpi=160, metadata={"Software": None})
    return content.getvalue()


def tiled(images: Tensor, columns: int, gap: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return images side by side in one picture, row by row.

    Args:
        images: uint8 or float (N, C, H, W), 0 to 255. Three channels are colours; of others the mean is drawn.
        columns: images per row.
        gap: pixels between rows, and between columns.

    Returns:
        float (height, width) if the images are grey, else uint8 (height, width, 3). Gaps and empty places are white:
        NaN or 255.
    """
    count, channels, height, width = images.shape
    down, right = height + gap[0], width + gap[1]
    size = (-(-count // columns) * down - gap[0], min(count, columns) * right - gap[1])
    colour = channels == 3
    found = np.full((*size, 3), 255, np.uint8) if colour else np.full(size, np.nan)
    shown = images.permute(0, 2, 3, 1).numpy() if colour else images.float().mean(1).numpy()
    for n in range(count):
        top, left = n // columns * down, n % columns * right
        found[top : top + height, left : left + width] = shown[n]
    return found


def draw(ax: Axes, picture: np.ndarray[Any, Any]) -> None:
    """Draw a picture that `tiled` made, without axes: grey as dark on white, each pixel a sharp square."""
    ax.imshow(picture, cmap="Greys", vmin=0, vmax=255, interpolation="none")
    ax.set_axis_off()


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Return names with an ellipsis for their ends, or for their middles where they would be equal without the ends.

    Args:
        names: any names.
        most: characters that one may have.
    """
    cut = [name if len(name) <= most else name[: most - 1] + "…" for name in names]
    often, half = Counter(cut), (most - 1) // 2
    return [
        f"{name[: most - 1 - half]}…{name[-half:]}" if often[short] > 1 and short != name else short
        for name, short in zip(names, cut, strict=True)
    ]


def titled(images: Tensor, columns: int, width: float, texts: Sequence[str], wrong: Sequence[bool] = ()) -> Figure:
    """Return a figure of images in a grid, each under its text, which is coloured for marked images.

    Args:
        images: (n, C, H, W), 0 to 255.
        columns: images per row.
        width: the figure's, in inches.
        texts: one per image, all with the same number of lines.
        wrong: which images to mark; none by default.
    """
    high, wide = images.shape[2:]
    inches = width / (1.25 * columns)  # of an image
    longest = max(cell_len(line) for text in texts for line in text.splitlines())  # Chinese characters are two wide
    size = min(9.0, 1.25 * inches * 72 / (0.58 * longest))
    title = 0.08 + size / 72 * 1.35 * (texts[0].count("\n") + 1)  # inches over each image
    scale = wide / inches  # pixels an inch
    down, right = high + round(title * scale), wide + round(0.25 * wide)
    picture = tiled(images, columns, (down - high, right - wide))
    lines = -(-len(images) // columns)
    figure, ax = canvas(width, lines * down / scale + 0.05)
    draw(ax, picture)
    ax.set_xlim(-0.125 * wide - 0.5, (1.25 * columns - 0.125) * wide - 0.5)  # room for texts wider than images
    ax.set_ylim(picture.shape[0] + 0.05 * scale - 0.5, -0.5 - title * scale)
    for n, text in enumerate(texts):
        marked = n < len(wrong) and wrong[n]
        style: dict[str, Any] = {"color": VERMILION, "fontweight": "bold"} if marked else {"color": "#222222"}
        where = n % columns * right + wide / 2 - 0.5, n // columns * down - 0.5 - 0.03 * scale
        ax.text(*where, text, ha="center", va="bottom", fontsize=size, **style)
    return figure


def drawable(images: Tensor) -> Tensor:
    """Return images ready to be drawn: uint8 unchanged, floats stretched to 0 to 255, each by its own range.

    Args:
        images: uint8 or float (N, C, H, W).
    """
    if not images.is_floating_point():
        return images
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return ((images - low) / (high - low).clamp(min=1e-12) * 255).byte()
