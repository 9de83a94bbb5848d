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

WORKING_SIZE = 256
"""Longer side, in pixels, of the reduced picture in which ink is separated from paper."""
DRAFT = 4 * WORKING_SIZE
"""Pixels that both sides of a large JPEG keep when it is read, so that small ink can be enlarged."""
WIDEST_STROKE = 0.3
"""As a fraction of WORKING_SIZE: anything dark and wider is a shadow."""
FAINTEST_INK = 0.06
"""Smallest share of the light that ink absorbs."""
ENLARGED_INK, SOLID_INK = 50, 220
"""Values, of 255, that the ink of an enlarged image of the data set exceeds when it is reduced again: at its blurred
edges, and within strokes that are as wide as the data set's."""
THINNEST_STROKE = 1.6 / 20
"""As a fraction of the longer side of the ink: hardly any in MNIST are thinner."""


@dataclass(frozen=True)
class Preparation:
    """How pictures become images of a run's data set.

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
    """Prepares a picture for the network.

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
    """The median of the values at the edges of (H, W) or (H, W, C)."""
    return float(np.median(np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])))


def _is_of_the_data_set(pixels: NDArray[np.uint8], preparation: Preparation, faintest: int) -> bool:
    """Whether (H, W) pixels are already like the data set's: light on black, with ink of its size and position.

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
    """The amount of ink at each pixel, 0 to 1, cropped to the ink; and whether the ink is darker than the paper.

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
    grey = small if small.ndim == 2 else _along_ink(small)
    grey = ndimage.gaussian_filter(_median_of_3(_median_of_3(grey, 0), 1), 1.5)
    dark = not _is_light_on_dark(grey)
    if not dark:
        grey = 255 - grey
    paper = _paper(grey)
    # Light falls on ink and paper alike, so ink absorbs a share of it.
    ink = (paper - grey) / np.maximum(paper, 32)
    mask = _strokes(ink > _otsu(ink))
    around, part = np.zeros_like(mask), _with_margin(mask, 6)
    around[part] = ndimage.binary_dilation(mask[part], iterations=5)
    if not mask.any() or around.all():
        raise UserError("nothing is drawn in it")
    rows, columns = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(mask))
    longer = max(rows.stop - rows.start, columns.stop - columns.start)
    if nearer and longer < WORKING_SIZE / 3 and scale < 1:
        margin = longer
        box = (columns.start - margin, rows.start - margin, columns.stop + margin, rows.stop + margin)
        left, top, right, bottom = (round(n / scale) for n in box)
        near = image.crop((max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)))
        return _ink(near, nearer=False)
    none, full = np.median(ink[~around]), np.median(ink[mask])
    if full - none < max(FAINTEST_INK, 1.8 * (np.percentile(ink[~around], 99) - none)):
        raise UserError("nothing is drawn in it")
    ink = np.clip((ink - none - 0.05 * (full - none)) / (full - none), 0, 1) * around
    ink = np.maximum(ink, _widened(mask, longer))
    rows, columns = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(ink > 0.3))
    return ink[rows, columns], dark


def _median_of_3(values: Grey, axis: int) -> Grey:
    """The median of each value and its two neighbours along an axis; at the ends the value counts twice."""
    padded = np.pad(values, [(int(axis == n), int(axis == n)) for n in (0, 1)], mode="edge")
    before, after = (np.take(padded, range(k, k + values.shape[axis]), axis) for k in (0, 2))
    return np.maximum(np.minimum(before, after), np.minimum(np.maximum(before, after), values))


def _paper(grey: Grey) -> Grey:
    """(H, W): how light the paper is at each pixel, ink and all else that is narrow and dark being filled.

    Paper is smooth: it is estimated at half the size.
    """
    window = round(WIDEST_STROKE * WORKING_SIZE / 2)
    half = np.pad(grey, [(0, n % 2) for n in grey.shape], mode="edge")
    half = (half[::2, ::2] + half[1::2, ::2] + half[::2, 1::2] + half[1::2, 1::2]) / np.float32(4)
    # Shadows continue beyond the picture's edge.
    beyond = np.pad(ndimage.gaussian_filter(half, 1.5), window, mode="edge")
    paper = ndimage.grey_closing(beyond, (window, window))[window:-window, window:-window]
    paper = ndimage.gaussian_filter(paper, 1)
    height, width = grey.shape
    larger = Image.fromarray(paper).resize((2 * paper.shape[1], 2 * paper.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(larger)[:height, :width]


def _along_ink(colours: Grey) -> Grey:
    """(H, W, 3) → (H, W): the mixture of channels in which ink differs most from the paper around it."""
    coarse = colours[::4, ::4]
    values = (coarse - ndimage.uniform_filter(coarse, (WORKING_SIZE // 16, WORKING_SIZE // 16, 1))).reshape(-1, 3)
    weights = np.linalg.eigh(values.T @ values)[1][:, -1]
    weights = weights if weights.sum() > 0 else -weights
    return np.asarray(colours @ (weights / np.abs(weights).sum()), np.float32)


def _is_light_on_dark(grey: Grey) -> bool:
    """Whether ink is lighter than its paper, by two signs: ink is rare, and ink is narrow.

    Each sign is a log ratio of dark to light. Neither suffices: thin strokes are rare, but leave narrow paper between
    them; thick strokes in a tightly cropped picture are not rare. The weight was fitted to such pictures of MNIST's
    training digits.
    """
    grey = grey[::4, ::4]
    terms = _quadratic(*grey.shape)
    light = terms @ np.linalg.solve(terms.T @ terms + 1e-6 * np.eye(6), terms.T @ grey.ravel())
    level = grey - light.reshape(grey.shape)
    rare = np.log((np.maximum(-level, 0) ** 3).sum() + 1) - np.log((np.maximum(level, 0) ** 3).sum() + 1)
    window = round(WIDEST_STROKE * WORKING_SIZE / 4)
    beyond = np.pad(grey, window, mode="edge")
    inner = (slice(window, -window), slice(window, -window))
    dark_gone = ndimage.grey_closing(beyond, (window, window))[inner] - grey
    light_gone = grey - ndimage.grey_opening(beyond, (window, window))[inner]
    narrow = np.log((dark_gone**2).sum() + 1) - np.log((light_gone**2).sum() + 1)
    return bool(narrow + 0.56 * rare < 0)


@cache
def _quadratic(height: int, width: int) -> NDArray[np.float64]:
    """(H·W, 6): 1, x, y, xy, x² and y² at each pixel, x and y being from -1 to 1."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1).reshape(-1, 6)


def _otsu(values: Grey) -> float:
    """The threshold that maximises the variance between the two sides."""
    low, high = float(values.min()), float(values.max())
    bins = ((values - low) * (255.999 / max(high - low, 1e-9))).astype(np.uint8)
    counts = np.bincount(bins.ravel(), minlength=256)
    middles = low + (np.arange(256) + 0.5) * (high - low) / 256
    below = counts.cumsum() / counts.sum()
    mean = (counts * middles).cumsum() / counts.sum()
    between = (mean[-1] * below - mean) ** 2 / np.maximum(below * (1 - below), 1e-9)
    return float(middles[between.argmax()])


def _strokes(mask: Mask) -> Mask:
    """The mask without specks, and without what touches the picture's edge with more than a stroke's width.

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


def _with_margin(mask: Mask, margin: int) -> tuple[slice, ...]:
    """The box around a mask, with so many pixels more on each side as far as the picture goes; all of an empty mask."""
    lines = [np.flatnonzero(mask.any(1 - axis)) for axis in (0, 1)]
    return tuple(slice(max(0, n[0] - margin), n[-1] + 1 + margin) if len(n) else slice(None) for n in lines)


def _widened(mask: Mask, longer: int) -> Grey:
    """Strokes widened to MNIST's width if they are thinner; else all zeros.

    Args:
        mask: where ink is.
        longer: the longer side of the ink's bounding box, in pixels.
    """
    part = _with_margin(mask, 1)
    inside = ndimage.distance_transform_edt(mask[part])
    width = 4 * inside[mask[part]].mean()  # across a line the mean distance is a quarter
    missing = THINNEST_STROKE * longer - width
    if missing <= 0:
        return np.zeros(mask.shape, np.float32)
    return np.asarray(np.clip(missing / 2 + 0.5 - ndimage.distance_transform_edt(~mask), 0, 1), np.float32)


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
