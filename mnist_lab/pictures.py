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
BITS_PER_SAMPLE, PHOTOMETRIC_INTERPRETATION, WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF files, and the value of the second for grey that goes from white to black."""
_large = threading.Lock()


def read_image(file: Path | IO[bytes], draft: int | None = None, largest: float = math.inf) -> Image.Image:
    """Read a picture in any format that Pillow knows; of several frames the first.

    Args:
        file: the file, or an open one.
        draft: pixels that both sides of a JPEG must keep when it is decoded smaller, which is faster; None: full size.
        largest: most pixels that it may have, beside `Image.MAX_IMAGE_PIXELS`.

    Returns:
        The picture in the file's own mode, but grey of more than 8 bits as `eight_bits` gives it; if a side is longer
        than LONGEST, reduced by an integer factor, in a mode that allows that.

    Raises:
        UserError: there is no such file, it is no image, it has more pixels than are read, or
            values that `eight_bits` refuses.
    """
    if isinstance(file, Path) and not file.is_file():
        raise UserError("that is no file" if file.exists() else "there is no such file")
    largest = min(largest, Image.MAX_IMAGE_PIXELS or math.inf)
    try:
        with Image.open(file, formats=_formats()) as image:
            # Up to twice its limit Pillow only warns, and a file of a few kB becomes a GB in memory.
            if image.width * image.height > largest:
                raise Image.DecompressionBombError
            if draft is not None:
                image.draft("RGB", (draft, draft))
            factor = -(-max(image.size) // LONGEST)
            with _large if factor > 1 else nullcontext():  # reading many at once in threads would fill the memory
                image.load()
                grey = eight_bits(image)
                return grey if factor == 1 else _reduced(grey, factor)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"larger than the {largest:,} pixels that are read") from None
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
    return image.reduce(factor)


def eight_bits(image: Image.Image) -> Image.Image:
    """Convert a grey picture of 12, 16 or 32 bits a pixel to 8 bits; return any other picture unchanged.

    A value of n bits is divided by (2ⁿ - 1) / 255, which is 257 for 16 bits, and rounded. See `flat` for all modes.

    Args:
        image: a picture of any mode. A TIFF file's tags say how many bits a value has, and whether 0 is white.

    Returns:
        A picture of 8 bits a channel with the same EXIF data: "L", or "LA" where one grey value means transparent.

    Raises:
        UserError: a value of mode "I" is not from 0 to 65535, or one of mode "F" not from 0 to 1.
    """
    if image.mode[0] not in "IF":
        return image
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0] if image.mode.startswith("I;") else 16
    full = 1 if image.mode == "F" else 2**bits - 1
    if image.mode in ("I", "F") and not (values.min() >= 0 and values.max() <= full):
        raise UserError(
            f"its grey values are from {values.min():g} to {values.max():g}, and in its mode, {image.mode}, they must "
            f"be from 0 to {full}"
        )
    pixels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # in parts, which take less memory
        pixels[top : top + 256] = np.rint(values[top : top + 256] * (255 / full))
    grey = Image.fromarray(255 - pixels if tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO else pixels)
    if (nothing := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == nothing, 0, 255).astype(np.uint8)))
    grey.getexif().update(image.getexif())
    return grey


def flat(image: Image.Image, white_paper: bool = True) -> Image.Image:
    """Convert a picture to "L" or "RGB", upright as its EXIF data says, on paper where it is transparent.

    Each mode has a rule that gives a value the same meaning in every picture:

    | mode               | values, from black to white | read as                                                  |
    |--------------------|-----------------------------|----------------------------------------------------------|
    | 1                  | 0, 1                        | 0, 255                                                   |
    | L                  | 0 to 255                    | as they are                                              |
    | I;16, I;16B        | 0 to 65535                  | value / 257; of 12 bits in a TIFF file: value * 255/4095 |
    | I                  | 0 to 65535                  | value / 257; a picture with other values is refused      |
    | F                  | 0 to 1                      | value * 255; a picture with other values is refused      |
    | RGB, P             | 0 to 255 a channel          | as they are; P numbers colours of a palette              |
    | CMYK, YCbCr, HSV   | 0 to 255 a channel          | RGB by Pillow's formula                                  |
    | LAB                | CIE L*a*b*                  | sRGB                                                     |
    | LA, PA, RGBA       | and opacity, 0 to 255       | laid on white paper                                      |

    Pillow reduces colours of 16 bits to their high byte when it opens the file. Other modes are refused.

    Args:
        image: the picture.
        white_paper: False: paper is black or white, whichever differs more from what is drawn. This depends on the
            picture, and is only for a drawing whose ink is looked for afterwards.

    Raises:
        UserError: the mode is refused, or values are; or nothing is left of a picture on white paper.
    """
    image = ImageOps.exif_transpose(eight_bits(image))
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB") else _converted(image, "RGB")
    image = _converted(image, "RGBA")
    alpha = image.getchannel("A")
    paper = "white"
    if not white_paper:
        opacity = np.asarray(alpha, np.float32)
        grey = np.asarray(image.convert("RGB").convert("L"), np.float32)
        paper = "black" if (grey * opacity).sum() > 128 * opacity.sum() else "white"
    laid = Image.alpha_composite(Image.new("RGBA", image.size, paper), image).convert("RGB")
    low, high = alpha.getextrema()
    if low != high and all(ends == (255, 255) for ends in laid.getextrema()):
        raise UserError("it is white on nothing: no picture is left on the white paper behind transparent parts")
    return laid


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Convert to "RGB" or "RGBA".

    Raises:
        UserError: Pillow has no formula for that.
    """
    try:
        return image.convert("RGB").convert(mode) if image.mode == "LAB" else image.convert(mode)
    except (ValueError, OSError) as error:
        raise UserError(f"its mode, {image.mode}, is not read: save it as RGB") from error


def image_files(folder: Path) -> list[Path]:
    """Return the files in a folder, and below it, whose names end as images that Pillow reads.

    Hidden files are left out: systems keep copies and notes in them.
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
