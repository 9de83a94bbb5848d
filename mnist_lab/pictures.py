"""Reads pictures from anywhere, in any format that Pillow knows, without trusting what their headers say."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_lab.errors import UserError

LONGEST = 4096
"""Largest longer side in pixels: more than any network here or any search for ink can use."""
KNOWN_BUT_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow recognises only, or reads with another program, as EPS with Ghostscript, which would run it."""
_large = threading.Lock()


def read_image(file: Path | IO[bytes], draft: int | None = None) -> Image.Image:
    """Reads a picture in any format that Pillow knows; if it has several frames, the first.

    Args:
        file: the file, or an open one.
        draft: pixels that both sides of a JPEG must keep when it is decoded smaller, which is faster; None: full size.

    Returns:
        The picture in the file's own mode; if a side is longer than LONGEST, reduced by an integer factor, in a mode
        that allows that.

    Raises:
        UserError: there is no such file, it is no image, or it has more pixels than `Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(file, Path) and not file.is_file():
        raise UserError("that is no file" if file.exists() else "there is no such file")
    try:
        with Image.open(file, formats=_formats()) as image:
            # Up to twice its limit Pillow only warns, and a file of a few kB becomes a GB in memory.
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError
            if draft is not None:
                image.draft("RGB", (draft, draft))
            factor = -(-max(image.size) // LONGEST)
            with _large if factor > 1 else nullcontext():  # reading many at once in threads would fill the memory
                image.load()
                return image if factor == 1 else _reduced(image, factor)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"larger than the {Image.MAX_IMAGE_PIXELS:,} pixels that are read") from None
    except UnidentifiedImageError:
        raise UserError("no image in a format that Pillow reads") from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise UserError(f"can't be read as an image: {' '.join(str(error).split()) or type(error).__name__}") from error


def _formats() -> list[str]:
    Image.init()
    return [kind for kind in Image.ID if kind not in KNOWN_BUT_NOT_READ]


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode.startswith("I;"):
        image = image.convert("I")
    return image.reduce(factor)


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits per pixel as grey from 0, its darkest, to 255, its lightest; any other unchanged.

    Pillow's own conversion would clip values above 255.
    """
    if image.mode[0] not in "IF":
        return image
    values = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    return Image.fromarray(np.uint8((values - low) * (255 / (high - low if high > low else 1))))


def flat(image: Image.Image) -> Image.Image:
    """The picture in "L" or "RGB", upright as its EXIF data says, with paper behind transparent parts."""
    image = eight_bits(ImageOps.exif_transpose(image))
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    image = image.convert("RGBA")
    opacity = np.asarray(image.getchannel("A"), np.float32)
    grey = np.asarray(image.convert("RGB").convert("L"), np.float32)
    light = (grey * opacity).sum() > 128 * opacity.sum()
    paper = Image.new("RGBA", image.size, "black" if light else "white")
    return Image.alpha_composite(paper, image).convert("RGB")


def image_files(folder: Path) -> list[Path]:
    """Files in a folder and those below it that are called as images are which Pillow reads; but none that are hidden,
    as copies and what systems keep beside a file are.
    """
    read = _formats()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in read}
    return [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    ]
