"""Prepares any picture for a run's network: a photographed digit becomes one like those of MNIST."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_lab.errors import UserError
from mnist_lab.pictures import flat

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]

WORKING_SIZE = 128
"""Longer side, in pixels, of the reduced picture in which ink is separated from paper."""
DRAFT = 8 * WORKING_SIZE
"""Pixels that both sides of a large JPEG keep when it is read, so that small ink can be enlarged."""
WIDEST_STROKE = 0.3
"""As a fraction of WORKING_SIZE: anything dark and wider is a shadow."""
FAINTEST_INK = 0.06
"""Smallest share of the light that ink absorbs."""
ENLARGED_INK, SOLID_INK = 50, 220
"""Values, of 255, that the ink of an enlarged image of the data set exceeds when it is reduced again: at its blurred
edges, and within strokes that are as wide as the data set's."""
THINNEST_STROKE = 1.4 / 20
"""As a fraction of the longer side of the ink: hardly any in MNIST are thinner."""


@dataclass(frozen=True)
class Preparation:
    """Settings for turning pictures into images like those of a run's data set.

    Attributes:
        kind: "digit": ink is found, cut out and placed as in the data set; "resize": the whole picture is scaled.
        shape: (C, H, W) of the images, C being 1 or 3.
        box: for "digit", the longer side of the ink as a fraction of H and W.
        by_mass: for "digit", whether the ink's centre of mass is put in the middle, or else the middle of its box.
        squeeze: for "resize", whether pictures of another aspect ratio are squeezed to fit, as those of an image folder
            are; otherwise colour pictures are cropped and grey ones padded.
        on_black: for "resize", whether the data set's images are on black: then pictures on light paper are inverted.
    """

    kind: str
    shape: tuple[int, int, int]
    box: float = 20 / 28
    by_mass: bool = True
    squeeze: bool = False
    on_black: bool = False


def prepare(image: Image.Image, preparation: Preparation) -> tuple[NDArray[np.uint8], bool]:
    """Prepare a picture for the network.

    Args:
        image: the picture, of any size and mode.
        preparation: how to prepare it.

    Returns:
        uint8 (C, H, W), 0 to 255, and whether the picture was inverted because it was dark on light.

    Raises:
        UserError: the picture's mode or values are refused, see `mnist_lab.pictures.flat`; or, for the kind "digit",
            nothing is drawn in it.
    """
    channels, height, width = preparation.shape
    image = flat(image, white_paper=preparation.kind == "resize")
    if preparation.kind == "resize":
        grey_or_colour = image.convert("L" if channels == 1 else "RGB")
        inverted = preparation.on_black and _margin(np.asarray(grey_or_colour)) > 127
        if inverted:
            grey_or_colour = ImageOps.invert(grey_or_colour)
        pixels = np.asarray(_resized(grey_or_colour, preparation), np.uint8).reshape(height, width, channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), inverted
    if image.width * height == image.height * width and image.width >= width:
        # One of the data set's own, or an enlarged one.
        pixels = np.asarray(image.convert("L").resize((width, height), Image.Resampling.BOX))
        faintest = 0 if image.width == width else ENLARGED_INK
        for inverted, candidate in ((False, pixels), (True, 255 - pixels)):
            if _is_of_the_data_set(candidate, preparation, faintest):
                return np.repeat(candidate[None], channels, 0), inverted
    ink, inverted = _ink(image)
    return np.repeat(_placed(ink, preparation)[None], channels, 0), inverted


def _resized(image: Image.Image, preparation: Preparation) -> Image.Image:
    _, height, width = preparation.shape
    if preparation.squeeze or image.size == (width, height):
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if image.mode == "RGB":
        return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, color=int(_margin(np.asarray(image))))


def _margin(values: NDArray[np.uint8]) -> float:
    """Return the median of the values at the edges of (H, W) or (H, W, C)."""
    return float(np.median(np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])))


def _is_of_the_data_set(pixels: NDArray[np.uint8], preparation: Preparation, faintest: int) -> bool:
    """Return whether (H, W) pixels are already like the data set's: light on black, ink of its size and position.

    Args:
        pixels: the picture.
        preparation: how the data set's images are.
        faintest: pixels above it are ink. Above 0 the picture was larger; strokes must be as wide as the data set's.
    """
    if _margin(pixels) > 0 or pixels.max() < (SOLID_INK if faintest else 128):
        return False
    if not preparation.by_mass:
        return faintest == 0
    ys, xs = np.nonzero(pixels > faintest)
    longer = max(np.ptp(ys) + 1 - preparation.box * len(pixels), np.ptp(xs) + 1 - preparation.box * pixels.shape[1])
    off = [c + 0.5 - n / 2 for c, n in zip(ndimage.center_of_mass(pixels), pixels.shape, strict=True)]
    return -1.5 < longer < 0.5 and all(-0.1 < o < 1.1 for o in off)


def _ink(image: Image.Image, nearer: bool = True) -> tuple[Grey, bool]:
    """Return the amount of ink at each pixel, 0 to 1, cropped to the ink; and whether the ink is darker than the paper.

    A morphological closing estimates the paper: it fills everything that is dark and narrower than WIDEST_STROKE, and
    keeps the slopes and edges of shadows. Otsu's threshold (1979) separates ink from what else is darker than that.

    Args:
        image: "L" or "RGB".
        nearer: whether ink that is small in a large picture is enlarged first.

    Raises:
        UserError: there is no ink.
    """
    scale = WORKING_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resample = Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.BICUBIC
    small = np.asarray(image.resize(size, resample, reducing_gap=2.0), np.float32)
    grey = ndimage.gaussian_filter(small if small.ndim == 2 else _along_ink(small), 0.6)
    paper, dark = _paper(grey)
    if not dark:
        paper, grey = 255 - paper, 255 - grey
    # Light falls on ink and paper alike, so ink absorbs a share of it.
    ink = (paper - grey) / np.maximum(paper, 32)
    mask = _strokes(ink > _otsu(ink))
    outside = ndimage.distance_transform_edt(~mask)
    far = outside > 3
    if not mask.any() or not far.any():
        raise UserError("nothing is drawn in it")
    rows, columns = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(mask))
    longer = max(rows.stop - rows.start, columns.stop - columns.start)
    if nearer and longer < 0.45 * WORKING_SIZE and scale < 1:
        margin = longer / 2
        box = (columns.start - margin, rows.start - margin, columns.stop + margin, rows.stop + margin)
        left, top, right, bottom = (round(n / scale) for n in box)
        near = image.crop((max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)))
        return _ink(near, nearer=False)
    none, full = np.median(ink[far]), np.median(ink[mask])
    if full - none < max(FAINTEST_INK, 1.8 * (np.percentile(ink[far], 99) - none)):
        raise UserError("nothing is drawn in it")
    ink = np.clip((ink - none - 0.05 * (full - none)) / (full - none), 0, 1) * ~far
    # Strokes thinner than MNIST's are widened. Across a line the mean distance to its edge is a quarter of its width;
    # the transform measures it to the middle of the first pixel outside.
    width = 4 * (ndimage.distance_transform_edt(mask)[mask].mean() - 0.5)
    if (missing := THINNEST_STROKE * longer - width) > 0:
        ink = np.maximum(ink, np.clip(missing / 2 + 0.5 - outside, 0, 1))
    rows, columns = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(ink > 0.3))
    return ink[rows, columns], dark


def _paper(grey: Grey) -> tuple[Grey, bool]:
    """Return the lightness of the paper at each pixel, (H, W), and whether the ink is darker. Strokes are filled.

    Two signs tell ink from paper: ink is rare, and ink is narrow. Each is a log ratio of dark to light. Neither
    suffices: thin strokes are rare, but leave narrow paper between them; thick strokes in a tightly cropped picture are
    not rare. The weight was fitted to such pictures of MNIST's training digits.
    """
    coarse = np.asarray(Image.fromarray(grey).reduce(2))
    window = round(WIDEST_STROKE * WORKING_SIZE / 2)
    # Shadows continue beyond the picture's edge.
    beyond = np.pad(coarse, window, mode="edge")
    inner = (slice(window, -window), slice(window, -window))
    darkest = ndimage.grey_opening(beyond, (window, window))[inner]
    lightest = ndimage.grey_closing(beyond, (window, window))[inner]
    terms, fit = _quadratic(*coarse.shape)
    level = coarse - (terms @ (fit @ coarse.ravel())).reshape(coarse.shape)
    rare = np.log((np.maximum(-level, 0) ** 3).sum() + 1) - np.log((np.maximum(level, 0) ** 3).sum() + 1)
    narrow = np.log(((lightest - coarse) ** 2).sum() + 1) - np.log(((coarse - darkest) ** 2).sum() + 1)
    dark = bool(narrow + 0.56 * rare >= 0)
    paper = Image.fromarray(ndimage.gaussian_filter(lightest if dark else darkest, 0.75))
    return np.asarray(paper.resize(grey.shape[::-1], Image.Resampling.BILINEAR)), dark


def _along_ink(colours: Grey) -> Grey:
    """(H, W, 3) → (H, W): the mixture of channels in which ink differs most from the paper around it."""
    coarse = colours[::2, ::2]
    values = (coarse - ndimage.uniform_filter(coarse, (WORKING_SIZE // 8, WORKING_SIZE // 8, 1))).reshape(-1, 3)
    weights = np.linalg.eigh(values.T @ values)[1][:, -1]
    weights = weights if weights.sum() > 0 else -weights
    return np.asarray(colours @ (weights / np.abs(weights).sum()), np.float32)


@cache
def _quadratic(height: int, width: int) -> tuple[Grey, Grey]:
    """(H·W, 6): 1, x, y, xy, x² and y² at each pixel, x and y being from -1 to 1; and its pseudoinverse (6, H·W)."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1).reshape(-1, 6)
    return terms, np.linalg.pinv(terms)


def _otsu(values: Grey) -> float:
    """Return the threshold that maximises the variance between the two sides."""
    low, high = float(values.min()), float(values.max())
    bins = ((values - low) * (255.999 / max(high - low, 1e-9))).astype(np.uint8)
    counts = np.bincount(bins.ravel(), minlength=256)
    middles = low + (np.arange(256) + 0.5) * (high - low) / 256
    below = counts.cumsum() / counts.sum()
    mean = (counts * middles).cumsum() / counts.sum()
    between = (mean[-1] * below - mean) ** 2 / np.maximum(below * (1 - below), 1e-9)
    return float(middles[between.argmax()])


def _strokes(mask: Mask) -> Mask:
    """Return the mask without specks, and without what touches the picture's edge with more than a stroke's width.

    What is most of the mask is kept.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    inside = areas.copy()
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    inside[np.bincount(edges, minlength=count + 1) > WORKING_SIZE // 16] = 0
    if inside.max() > 0.3 * areas.max():
        areas = inside
    return np.asarray((areas > 0.04 * areas.max())[labels], bool)


def _placed(ink: Grey, preparation: Preparation) -> NDArray[np.uint8]:
    """(H, W): the ink, scaled to the data set's size and put at its position."""
    _, height, width = preparation.shape
    scale = preparation.box * min(height / ink.shape[0], width / ink.shape[1])
    size = [max(1, round(n * scale)) for n in ink.shape]
    small = np.asarray(Image.fromarray(ink * np.float32(255)).resize((size[1], size[0]), Image.Resampling.BOX))
    middle = np.add(ndimage.center_of_mass(small), 0.5) if preparation.by_mass else np.divide(size, 2)
    # In MNIST the centre of mass is never left of or above the middle, and less than a pixel from it.
    top, left = np.ceil(np.divide((height, width), 2) - middle).astype(int)
    placed = np.zeros((height, width), np.float32)
    rows, columns = np.indices(small.shape)
    rows, columns = rows + top, columns + left
    seen = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    placed[rows[seen], columns[seen]] = small[seen]
    return placed.round().clip(0, 255).astype(np.uint8)
