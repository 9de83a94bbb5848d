"""The verb `explore`: a data set in numbers and pictures, as a run would use it."""

from __future__ import annotations

import math
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from mnist_lab.composing import compose_with, run_config
from mnist_lab.errors import UserError, printable
from mnist_lab.files import write_whole
from mnist_lab.folders import check_folder
from mnist_lab.hydra_adapter import hydra_with
from mnist_lab.rules import one_of, whole_number
from mnist_lab.words import divide, path_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from mnist_lab.data import ImageDataModule

USAGE = (
    "use: python -m mnist_lab explore [data=mnist] [data.KEY=VALUE ...] [index=0] [show=terminal] "
    "[dir=outputs/explore/NAME]"
)
NUMBERS = 64 * 64
"""Most pixel values that can be printed over an image and still be read."""
GRID = 10
"""Rows and columns of the grid of random images, and columns of the images by class."""
SHADES = " .:-=+*#%@"
"""From white to black, for terminals without colours."""


def explore(words: list[str]) -> None:
    """Print what a data set contains, and write pictures of it.

    Args:
        words: `data=NAME` and values of its config, `seed=N`, and `--config-dir DIR`, as for training; `index=N`
            chooses the training image that is shown, `show=terminal` also shows it in the terminal, and `dir=FOLDER`
            says where to write the pictures.

    Raises:
        UserError: a word is not understood, the data can't be loaded, or it has no image of that index.
    """
    parser = ArgumentParser()
    for flag in ("--config-dir", "--config-path", "--config-name"):
        parser.add_argument(flag)
    args, others = parser.parse_known_args(words)
    options, overrides = divide(others, {"index": "0", "show": "files", "dir": ""}, USAGE)
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] not in ("data", "seed"):
            raise UserError(f"{word}: not understood, explore is about data alone\n{USAGE}")
        if key == "data.train_size":
            raise UserError(f"{word} is not allowed: explore shows the whole set")
    index = whole_number("index", options["index"], 0)
    one_of("files", "terminal").check("show", options["show"])
    if options["dir"]:
        check_folder("dir", str(path_of(options["dir"])), fresh=False)
    with hydra_with(args.config_path, args.config_dir) as hydra:
        cfg = run_config(compose_with(hydra, overrides, args.config_name or "config"), overrides)

    from mnist_lab.build import build
    from mnist_lab.show.style import png
    from mnist_lab.terminal import relative, warn

    data: ImageDataModule = build(cfg, "data")
    data.prepare_data()
    data.setup()
    parts = Parts(data)
    total = len(parts.train_labels)
    if index >= total:
        raise UserError(f"index={index} is not allowed: {parts.name} has the training images 0 to {total - 1:,}")
    warn([data.stand_in] if data.stand_in else [])
    _tell(parts, index)
    if options["show"] == "terminal":
        _show_in_terminal(parts, index)
    folder = path_of(options["dir"] or f"outputs/explore/{parts.name}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in _figures(parts, index, cfg.seed).items():
        write_whole(folder / f"{name}.png", png(figure))
        print(f"picture  {relative(folder.absolute() / f'{name}.png')}")


class Parts:
    """The four arrays of a data set, and how they are scaled for a network.

    Args:
        data: a data module that has been set up.
    """

    def __init__(self, data: ImageDataModule) -> None:
        import torch

        found = data.images
        assert found is not None

        def whole(images: Any) -> Tensor:
            return images if isinstance(images, torch.Tensor) else torch.stack([images[n] for n in range(len(images))])

        def asked(labels: Tensor) -> Tensor:
            return labels if data.one_vs_rest is None else (labels == data.one_vs_rest).long()

        self.name = found.name
        self.classes = data.class_names
        self.scale = data.scale
        self.shift, self.divisor = data.shift, data.divisor
        self.train_images, self.test_images = whole(found.train_images), whole(found.test_images)
        """uint8 (N, C, H, W), or finished float32."""
        self.train_labels, self.test_labels = asked(found.train_labels), asked(found.test_labels)
        """int64 (N,)."""

    def scaled_range(self, images: Tensor) -> tuple[float, float]:
        """Return the smallest and largest value of some images, (N, C, H, W), after scaling."""
        if images.is_floating_point():
            return float(images.min()), float(images.max())
        # Per channel, whose order of values scaling keeps: converting all to float32 would take four times the memory.
        ends = [images.amin((0, 2, 3)), images.amax((0, 2, 3))]
        low, high = ((end.float() - self.shift.flatten()) / self.divisor.flatten() for end in ends)
        return float(low.min()), float(high.max())


def _tell(parts: Parts, index: int) -> None:
    """Print the arrays before and after they are prepared for a network, the images per class, and a one-hot label."""
    import torch
    from rich import get_console
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    from mnist_lab.terminal import literal

    right: Any = {"justify": "right"}
    arrays = {
        "training images": parts.train_images,
        "training labels": parts.train_labels,
        "test images": parts.test_images,
        "test labels": parts.test_labels,
    }

    def table(title: str) -> Table:
        return Table(title, "shape", "dtype", Column("min", **right), Column("max", **right), box=SIMPLE_HEAD)

    def row(name: str, shape: tuple[int, ...], dtype: str, low: float, high: float) -> list[str]:
        return [name, str(shape), dtype, f"{low:.4g}", f"{high:.4g}"]

    before, after = table("as they are"), table(f"scaled ({parts.scale}), flattened, one-hot")
    classes = len(parts.classes)
    for name, array in arrays.items():
        kind = str(array.dtype).removeprefix("torch.")
        before.add_row(*row(name, tuple(array.shape), kind, float(array.min()), float(array.max())))
        if array.dim() == 1:
            after.add_row(*row(name, (len(array), classes), "float32", 0, 1))
        else:
            size = len(array), math.prod(array.shape[1:])
            after.add_row(*row(name, size, "float32", *parts.scaled_range(array)))
    counts = Table("label", "class", Column("training", **right), Column("test", **right), box=SIMPLE_HEAD)
    train, test = (torch.bincount(labels, minlength=classes) for labels in (parts.train_labels, parts.test_labels))
    for label, name in enumerate(parts.classes):
        counts.add_row(str(label), literal(name), f"{train[label]:,}", f"{test[label]:,}")
    counts.add_section()
    counts.add_row("", "all", f"{len(parts.train_labels):,}", f"{len(parts.test_labels):,}")
    own = parts.train_labels[index]
    one_hot = torch.nn.functional.one_hot(own, classes).tolist()
    console = get_console()
    console.print(parts.name, style="bold", highlight=False, markup=False)
    for shown in (before, after, counts):
        console.print(shown)
    print(f"training image {index}: label {own}, one-hot: [{' '.join(map(str, one_hot))}]\n")


def _title(parts: Parts, index: int) -> str:
    return f"Training data, index: {index}, Label: {parts.classes[int(parts.train_labels[index])]}"


def _show_in_terminal(parts: Parts, index: int) -> None:
    """Show an image in the terminal: in colour two pixels per character, else two characters per pixel."""
    import numpy as np
    from PIL import Image
    from rich import get_console
    from rich.style import Style
    from rich.text import Text

    from mnist_lab.show.style import drawable, tiled

    console = get_console()
    picture = tiled(drawable(parts.train_images[index : index + 1]), 1, (0, 0))
    grey = picture.ndim == 2
    made = Image.fromarray((255 - picture if grey else picture).astype("uint8"))  # grey is drawn dark on white
    coloured = console.color_system is not None and not console.no_color and not console.options.ascii_only
    width = min(made.width, console.width if coloured else console.width // 2)
    made = made.resize((width, round(made.height * width / made.width))) if width < made.width else made
    print(printable(_title(parts, index)))
    if not coloured:
        shades = np.asarray(made.convert("L"))
        for y in range(made.height):
            marks = [SHADES[(255 - int(shade)) * (len(SHADES) - 1) // 255] for shade in shades[y]]
            print("".join(2 * mark for mark in marks).rstrip())
        print()
        return
    colours = np.asarray(made.convert("RGB"))

    def colour(x: int, y: int) -> str:
        red, green, blue = colours[y, x] if y < len(colours) else (255, 255, 255)
        return f"#{red:02x}{green:02x}{blue:02x}"

    for y in range(0, len(colours), 2):
        line = Text()
        for x in range(width):
            line.append("▀", Style(color=colour(x, y), bgcolor=colour(x, y + 1)))
        console.print(line, no_wrap=True, crop=False)
    print()


def _figures(parts: Parts, index: int, seed: int) -> dict[str, Figure]:
    """Return the figures by file name."""
    import torch

    from mnist_lab.show.style import canvas, draw, drawable, shortened, tiled, titled

    images, labels = parts.train_images, parts.train_labels
    height, width = images.shape[2:]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: GRID**2]
    picture = tiled(drawable(images[chosen]), GRID, (max(2, height // 10), max(2, width // 10)))
    grid, ax = canvas(8, 8 * picture.shape[0] / picture.shape[1])
    draw(ax, picture)

    names = [name.replace("$", r"\$") for name in shortened(parts.classes, 20)]
    means = torch.stack([images[labels == k].float().mean(0) for k in range(len(names))]).nan_to_num(0)
    means = drawable(means) if images.is_floating_point() else means
    columns = 5 if len(names) <= 20 else 10
    figures = {
        f"image-{index}": _one(parts, index),
        "grid": grid,
        "classes": _by_class(parts, names),
        "means": titled(means, columns, 8.0, names),
    }
    if images[index].numel() <= NUMBERS:
        figures[f"image-{index}-values"] = _one(parts, index, values=True)
    return figures


def _one(parts: Parts, index: int, values: bool = False) -> Figure:
    """Return a figure of a training image; with `values`, pixels have theirs printed on them, a line a channel."""
    from mnist_lab.show.style import draw, drawable, subplots, tiled

    image = parts.train_images[index]
    channels, height, width = image.shape
    inches = (0.4 if channels > 1 else 0.33) * width if values else 4.4
    figure, (ax,) = subplots(width=inches, height=inches * height / width + 0.4)
    picture = tiled(drawable(image.unsqueeze(0)), 1, (0, 0))
    draw(ax, picture)
    ax.set_title(_title(parts, index).replace("$", r"\$"), fontsize=14 if values else 11)
    if not values:
        return figure
    light = picture.mean(2) if picture.ndim == 3 else 255 - picture
    for y in range(height):
        for x in range(width):
            text = "\n".join(f"{value:.3g}" for value in image[:, y, x].tolist())
            colour = "black" if light[y, x] > 105 else "white"
            ax.text(x, y, text, ha="center", va="center", fontsize=6.5, color=colour, linespacing=1.0)
    return figure


def _by_class(parts: Parts, names: list[str]) -> Figure:
    """Return a figure of the first training images of each class, one row per class."""
    import torch

    from mnist_lab.show.style import canvas, draw, drawable, tiled

    images = parts.train_images
    height, width = images.shape[2:]
    gap = max(2, height // 10)
    blank = torch.full((1, *images.shape[1:]), 255 if images.shape[1] == 3 else 0, dtype=torch.uint8)
    rows = []
    for k in range(len(names)):
        found = drawable(images[(parts.train_labels == k).nonzero().flatten()[:GRID]])
        rows += [found, *[blank] * (GRID - len(found))]
    picture = tiled(torch.cat(rows), GRID, (gap, max(2, width // 10)))
    scale = picture.shape[1] / 8  # pixels an inch
    words = 0.3 + 0.1 * max(map(len, names))  # inches
    figure, ax = canvas(8 + words, picture.shape[0] / scale)
    draw(ax, picture)
    ax.set_xlim(-words * scale - 0.5, picture.shape[1] - 0.5)
    for k, name in enumerate(names):
        ax.text(-0.2 * scale, k * (height + gap) + height / 2 - 0.5, name, ha="right", va="center", fontsize=10)
    return figure
