"""Each mode of a picture has one rule for its values, the same in every picture, for class folders and `predict`."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import in_memory
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mnist_lab.data import from_datasets, image_folder
from mnist_lab.errors import UserError
from mnist_lab.pictures import flat, read_image
from mnist_lab.show.prepare import Preparation, prepare

SIDE = 8
LEVELS = (40, 90, 140)
"""Mean brightness of three classes that differ in nothing else."""


def texture(level: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(SIDE, SIDE) random values around a level."""
    return np.random.default_rng(seed).integers(level - 30, level + 31, (SIDE, SIDE)).astype(np.uint8)


def deep(pixels: np.ndarray[Any, Any], kind: str) -> Image.Image:
    return Image.fromarray((pixels.astype(np.int64) * 257).astype(kind))


WRITERS: dict[str, Callable[[np.ndarray[Any, Any], Path], None]] = {
    "L.png": lambda pixels, path: Image.fromarray(pixels).save(path),
    "I;16.png": lambda pixels, path: deep(pixels, "<u2").save(path),
    "I;16.tif": lambda pixels, path: deep(pixels, "<u2").save(path),
    "I;16B.tif": lambda pixels, path: deep(pixels, ">u2").save(path),
    "I.tif": lambda pixels, path: deep(pixels, "<i4").save(path),
    "I.pgm": lambda pixels, path: deep(pixels, "<i4").save(path),
    "F.tif": lambda pixels, path: Image.fromarray(np.float32(pixels / 255)).save(path),
    "LA.png": lambda pixels, path: Image.fromarray(pixels).convert("LA").save(path),
    "RGB.png": lambda pixels, path: Image.fromarray(pixels).convert("RGB").save(path),
    "RGBA.tif": lambda pixels, path: Image.fromarray(pixels).convert("RGBA").save(path),
    "P.png": lambda pixels, path: Image.fromarray(pixels).convert("P").save(path),
    "PA.tif": lambda pixels, path: Image.fromarray(pixels).convert("P").convert("PA").save(path),
    "CMYK.tif": lambda pixels, path: Image.fromarray(pixels).convert("RGB").convert("CMYK").save(path),
    "white is zero.tif": lambda pixels, path: deep(255 - pixels, "<u2").save(path, tiffinfo={262: 0}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_classes_that_differ_in_brightness_alone_are_read_with_their_brightness(name: str, tmp_path: Path) -> None:
    seen: list[np.ndarray[Any, Any]] = []
    for level in LEVELS:
        folder = tmp_path / str(level)
        folder.mkdir()
        for seed in range(5):
            path = folder / f"{seed}.{name.rpartition('.')[2]}"
            WRITERS[name](texture(level, seed), path)
            pixels, inverted = prepare(read_image(path), Preparation("resize", (1, SIDE, SIDE), squeeze=True))
            assert not inverted
            np.testing.assert_allclose(pixels[0], texture(level, seed), atol=1)
            seen.append(pixels)
    found = image_folder(tmp_path, False, (1, SIDE, SIDE), 0.2)
    learned = in_memory(found.train_images), in_memory(found.test_images)
    assert {image.numpy().tobytes() for part in learned for image in part} == {image.tobytes() for image in seen}
    classes = found.train_labels
    means = {found.classes[k]: float(learned[0][classes == k].float().mean()) for k in range(3)}
    assert means == pytest.approx({str(level): level for level in LEVELS}, abs=5)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 256, 257, 65535]], np.uint16)), [0, 1, 1, 255]),
        (Image.fromarray(np.array([[0, 256, 257, 65535]], ">u2")), [0, 1, 1, 255]),
        (Image.fromarray(np.array([[0, 385, 386, 65535]], np.int32)), [0, 1, 2, 255]),
        (Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), [0, 128, 255]),
        (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), [0, 255]),
        (Image.merge("LA", (Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 51))), [224]),
        (Image.new("HSV", (1, 1), (0, 0, 77)), [77]),
        (Image.new("YCbCr", (1, 1), (77, 128, 128)), [77]),
        (Image.new("LAB", (1, 1), (255, 128, 128)), [255]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_a_grey_value_means_the_same_in_every_picture(image: Image.Image, expected: list[int]) -> None:
    assert np.asarray(flat(image).convert("L")).ravel().tolist() == pytest.approx(expected, abs=0.51)


@pytest.mark.parametrize("beside", [0, 255])
def test_pixels_beside_a_half_transparent_part_do_not_change_it(beside: int) -> None:
    grey, opacity = Image.new("L", (2, 1), 60), Image.new("L", (2, 1), 128)
    grey.putpixel((1, 0), beside)
    assert flat(Image.merge("LA", (grey, opacity))).getpixel((0, 0)) == (157, 157, 157)


def test_twelve_bits_of_a_tiff_file_are_not_sixteen(tmp_path: Path) -> None:
    """A file of one row, 0, 2048, 4095, 0, that Pillow reads and can't write."""
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 6}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 14) + bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00])
    (tmp_path / "x.tif").write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert np.asarray(flat(read_image(tmp_path / "x.tif"))).tolist() == [[0, 128, 255, 0]]


def test_a_transparent_grey_value_of_a_16_bit_png_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[257, 514]], np.uint16)).save(tmp_path / "x.png", transparency=257)
    assert np.asarray(flat(read_image(tmp_path / "x.png")).convert("L")).tolist() == [[255, 2]]


def test_a_16_bit_picture_is_read_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep(np.array([[1, 2]]), "<u2").save(tmp_path / "x.png", exif=exif)
    assert np.asarray(flat(read_image(tmp_path / "x.png"))).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.fromarray(np.array([[0, 65536]], np.int32)), "from 0 to 65536, and in its mode, I, .* from 0 to 65535"),
        (Image.fromarray(np.array([[-1, 9]], np.int32)), "from -1 to 9"),
        (Image.fromarray(np.array([[0, 200]], np.float32)), "in its mode, F, they must be from 0 to 1"),
        (Image.fromarray(np.array([[0, np.nan]], np.float32)), "from nan to nan"),
        (Image.merge("LA", (Image.new("L", (2, 1), 255), Image.linear_gradient("L").resize((2, 1)))), ""),
        (Image.new("La", (1, 1)), "its mode, La, is not read"),
    ],
)
def test_a_picture_mode_without_a_rule_is_refused_by_name(image: Image.Image, said: str, tmp_path: Path) -> None:
    if not said:  # white ink, of which white paper leaves nothing
        grey, opacity = Image.new("L", (2, 1), 255), Image.new("L", (2, 1), 0)
        opacity.putpixel((0, 0), 255)
        image, said = Image.merge("LA", (grey, opacity)), "white on nothing"
    with pytest.raises(UserError, match=said) as raised:
        flat(image)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_refused_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    Image.fromarray(np.full((4, 4), 90.0, np.float32)).save(tmp_path / "b/2.tif")
    with pytest.raises(UserError, match=r"b/2\.tif: its grey values are from 90 to 90, and in its mode, F"):
        image_folder(tmp_path, False, (1, 4, 4), 0.5)


class Pictures(Dataset[Any]):
    """Two pictures of one value each, in a mode."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def __len__(self) -> int:
        return 2

    def __getitem__(self, position: int) -> tuple[Image.Image, int]:
        value = {"I;16": 257 * 90, "I": 257 * 90, "1": 255}.get(self.mode, 90)
        return Image.new(self.mode, (4, 4), value), position


@pytest.mark.parametrize(("mode", "value"), [("1", 255), ("I;16", 90), ("I", 90), ("L", 90)])
def test_a_datasets_pictures_are_read_by_the_same_rule(mode: str, value: int) -> None:
    found = from_datasets(Path(), False, Pictures(mode), Pictures(mode), 2)
    image = found.train_images[0]
    assert isinstance(image, Tensor) and image.unique().tolist() == [value]
