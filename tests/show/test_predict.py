"""`predict`: files of any kind in, classes out; photographed digits are read nearly as well as the data set's own."""

import gc
import json
import os
import re
import struct
import warnings
import zlib
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, needs_mnist
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage
from some import some
from torchvision.datasets import MNIST

from mnist_lab.data import mnist_5k
from mnist_lab.errors import UserError
from mnist_lab.pictures import read_image
from mnist_lab.show.predict import Prediction, _print, predictions, preparation
from mnist_lab.show.prepare import Preparation, prepare
from mnist_lab.trained import TrainedRun, load_run

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def trained(cnn_run: Path) -> TrainedRun:
    return load_run(cnn_run, device="cpu")


@pytest.fixture(scope="module")
def digits() -> tuple[Pixels, list[int]]:
    """The 1,000 digits that the network has not seen: uint8 (1000, 28, 28), and what they are."""
    found = mnist_5k(Path(), False)
    assert isinstance(found.test_images, torch.Tensor)
    return found.test_images[:, 0].numpy(), found.test_labels.tolist()


def photographed(digit: Pixels, rng: np.random.Generator) -> Image.Image:
    """A digit drawn with a coloured pen on coloured paper, turned, blurred, off-centre, in uneven light, with noise."""
    size = int(rng.integers(100, 500))
    side = int(size * rng.uniform(0.45, 1.0))
    big = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    drawn = np.asarray(big.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC), np.float32) / 255
    ys, xs = np.nonzero(drawn > 0.2)
    drawn = drawn[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    top, left = (int(rng.integers(2, size - n - 2)) for n in drawn.shape)
    ink = np.zeros((size, size, 1), np.float32)
    ink[top : top + drawn.shape[0], left : left + drawn.shape[1], 0] = drawn
    ink = ndimage.gaussian_filter(ink, (*[rng.uniform(0.3, 1) + rng.uniform(0, 0.01) * side] * 2, 0))
    paper, pen = rng.uniform(170, 255) * rng.uniform(0.85, 1, 3), rng.uniform(0, 90, 3)
    if rng.random() < 0.25:
        paper, pen = pen, paper
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    across = x * np.cos(turn) + y * np.sin(turn)
    light = 0.85 - 0.12 * across - rng.uniform(0, 0.35) / (1 + np.exp((rng.uniform(-0.6, 0.6) - across) / 0.08))
    picture = (paper * (1 - ink) + pen * ink) * light[..., None]
    picture += rng.normal(0, rng.uniform(2, 18), picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


@pytest.mark.slow
def test_photographed_digits_are_read_nearly_as_well_as_the_data_sets_own(
    trained: TrainedRun, digits: tuple[Pixels, list[int]], tmp_path: Path
) -> None:
    images, labels = digits[0][:120], digits[1][:120]
    rng = np.random.default_rng(1)
    files = [tmp_path / f"{n}.{'jpg' if n % 2 else 'png'}" for n in range(len(images))]
    for file, image in zip(files, images, strict=True):
        photographed(image, rng).save(file)
    clean = (trained.predict(images).argmax(1) == torch.tensor(labels)).float().mean().item()
    found = list(predictions(trained, files))
    right = [isinstance(f, Prediction) and f.name == str(label) for f, label in zip(found, labels, strict=True)]
    assert clean > 0.93
    assert np.mean(right) > clean - 0.03


@pytest.mark.parametrize("kind", some(["png", "gif", "bmp", "tiff", "webp"], 2))
@pytest.mark.parametrize("inverted", [False, True])
def test_an_image_of_the_data_set_is_taken_as_it_is(
    kind: str, inverted: bool, trained: TrainedRun, digits: tuple[Pixels, list[int]], tmp_path: Path
) -> None:
    images = digits[0][:100]
    files = [tmp_path / f"{n}.{kind}" for n in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(255 - image if inverted else image).save(file, lossless=True)
    found = list(predictions(trained, files))
    expected = trained.predict(images).max(1).values.tolist()
    for image, prediction, probability in zip(images, found, expected, strict=True):
        assert isinstance(prediction, Prediction)
        assert prediction.inverted == inverted
        assert np.array_equal(prediction.pixels[0], image)
        assert prediction.probability == pytest.approx(probability, abs=1e-6)


def same_digit(image: Image.Image, original: Pixels, inverted: bool) -> None:
    """The image is prepared to nearly the pixels of the digit that it shows."""
    pixels, found = prepare(image, Preparation("digit", (1, 28, 28)))
    assert found == inverted
    near = ndimage.maximum_filter(original, 5).astype(int)
    assert (pixels[0] > 100).sum() > 0.5 * (original > 100).sum()
    assert ((pixels[0] > 100) & (near < 50)).sum() == 0


def test_every_mode_size_and_orientation_of_a_picture_is_understood(digits: tuple[Pixels, list[int]]) -> None:
    for n, original in enumerate(digits[0][:8]):
        big = Image.fromarray(255 - original).resize((420, 420), Image.Resampling.BICUBIC)
        empty = Image.new("L", big.size)
        wide = Image.new("L", (1500, 700), 250)
        wide.paste(big, (1000, 50))
        turned = big.rotate(90)
        turned.getexif()[0x0112] = 6  # the camera was held upright: to be turned by 270°
        cut = Image.fromarray(original)
        cut = cut.crop(cut.getbbox()).resize((200, 200 * original.any(1).sum() // original.any(0).sum()))
        pictures = {
            "L": big,
            "RGB": big.convert("RGB"),
            "CMYK": big.convert("CMYK"),
            "P": big.convert("P"),
            "1": big.convert("1"),
            "I;16": Image.fromarray(np.asarray(big, np.uint16) * 40),
            "F": Image.fromarray(np.asarray(big, np.float32) / 255),
            "dark ink on nothing": Image.merge("LA", (empty, Image.eval(big, lambda v: 255 - v))),
            "light ink on nothing": Image.merge(
                "LA", (Image.eval(empty, lambda v: 255), Image.eval(big, lambda v: 255 - v))
            ),
            "wide": wide,
            "turned": turned,
            "cut to the ink": cut,
            "red on green": Image.merge("RGB", (Image.eval(big, lambda v: 200 - v * 3 // 4), big, empty)),
        }
        for name, picture in pictures.items():
            if name == "red on green":  # of which is the ink nobody can tell by lightness alone
                prepare(picture, Preparation("digit", (1, 28, 28)))
            else:
                same_digit(picture, original, name not in ("light ink on nothing", "cut to the ink"))
        assert n < 8


def test_a_thin_pen_is_read(trained: TrainedRun) -> None:
    picture = Image.new("L", (600, 600), 240)
    for y in range(100, 500):
        picture.paste(30, (298 + y // 50, y, 302 + y // 50, y + 1))
    pixels, inverted = prepare(picture, preparation(trained))
    assert inverted and pixels.max() > 200
    assert int(trained.predict(pixels[None]).argmax()) == 1


def test_arrays_of_any_layout_are_predicted(trained: TrainedRun) -> None:
    pixels = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8).numpy()
    kept = np.frombuffer(pixels.tobytes(), np.uint8).reshape(2, 28, 28)  # read-only, as Pillow's arrays are
    with warnings.catch_warnings(action="error"):
        same, backwards = trained.predict(kept), trained.predict(pixels[::-1])
    assert torch.equal(same, trained.predict(pixels)) and torch.equal(backwards.flip(0), same)
    with pytest.raises(UserError, match=re.escape("of the shape (N, 1, 28, 28), not uint8 of the shape (28, 28)")):
        trained.predict(Image.new("L", (28, 28)))  # type: ignore[arg-type]


def test_other_sizes_are_prepared_in_proportion() -> None:
    picture = Image.new("L", (300, 300), 255)
    picture.paste(0, (100, 50, 130, 250))
    small, _ = prepare(picture, Preparation("digit", (1, 28, 28)))
    large, _ = prepare(picture, Preparation("digit", (3, 56, 56)))
    assert small.shape == (1, 28, 28) and large.shape == (3, 56, 56)
    assert (small > 50).any(2).sum() == 20 and (large[0] > 50).any(1).sum() == 40


def test_photographs_of_other_things_are_only_resized() -> None:
    picture = Image.new("RGB", (200, 100), "white")
    picture.paste((255, 0, 0), (50, 0, 150, 100))
    colour, inverted = prepare(picture, Preparation("resize", (3, 32, 32)))
    assert not inverted and (colour[0] == 255).all() and (colour[1:] < 40).all()  # the middle, cut out
    grey, _ = prepare(picture, Preparation("resize", (1, 28, 28)))
    assert grey.min() < 80 and (grey[0, :7] == 255).all()  # all of it, with a margin
    squeezed, _ = prepare(picture, Preparation("resize", (3, 32, 32), squeeze=True))
    assert squeezed[1, 0, 0] == 255 and squeezed[1, 16, 16] == 0


def test_clothes_photographed_on_white_become_light_on_black_as_fashion_mnist_has_them(
    trained: TrainedRun, digits: tuple[Pixels, list[int]]
) -> None:
    for name, expected in (("mnist_lab.data.fashion_mnist", True), ("mnist_lab.data.image_folder", False)):
        cfg = trained.cfg.copy()
        cfg.data.source._target_ = name
        how = preparation(replace(trained, cfg=cfg))
        for size in ((28, 28), (280, 280), (280, 420)):
            on_black = Image.fromarray(digits[0][0]).resize(size)
            pixels, inverted = prepare(ImageOps.invert(on_black), how)
            assert inverted == expected
            original, kept = prepare(on_black, how)
            assert not kept
            assert np.allclose(pixels, original if expected else 255.0 - original, atol=1)


@pytest.mark.slow
def test_the_table_and_the_lines_of_json_say_what_was_seen(
    cnn_run: Path, digits: tuple[Pixels, list[int]], lab: Command, tmp_path: Path
) -> None:
    images, labels = digits
    (tmp_path / "in/more").mkdir(parents=True)
    for n in (10, 9, 2):
        Image.fromarray(images[n]).save(tmp_path / f"in/{n}.png")
    Image.fromarray(255 - images[3]).resize((300, 300)).save(tmp_path / "in/more/3.jpg")
    Image.fromarray(images[4]).save(tmp_path / "a,b.png")
    (tmp_path / "in/notes.txt").write_text("no image")
    words = ["predict", f"run={cnn_run}", "images=in,in/2.png", "save=seen"]
    table = lab(*words)
    assert table.returncode == 0, table.stderr
    rows = [line.split() for line in table.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["in/2.png", "in/9.png", "in/10.png", "in/more/3.jpg"]
    assert [row[-1] for row in rows] == ["no", "no", "no", "yes"]
    assert sorted(str(p.relative_to(tmp_path / "seen")) for p in (tmp_path / "seen").rglob("*.png")) == [
        "10.png",
        "2.png",
        "9.png",
        "more/3.png",
    ]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "seen/9.png")), images[9])

    done = lab("predict", f"run={cnn_run}", "images=in", "--json", "checkpoint=last", "prepare=digit")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [row[0] for row in rows]
    assert [line["class"] for line in lines] == [row[1] for row in rows]
    assert sum(line["class"] == str(labels[n]) for line, n in zip(lines, (2, 9, 10, 3), strict=True)) >= 3
    for line in lines:
        assert line["probability"] >= line["runner_up_probability"] >= 0
        assert line["class"] != line["runner_up"]
    assert lines[-1]["inverted"] is True
    again = lab(*words)
    assert again.returncode == 2 and "a new or an empty folder" in again.stderr
    assert "a,b.png" in lab("predict", f"run={cnn_run}", "images=a,b.png").stdout
    assert "a,b.png" in lab("predict", str(cnn_run), "images=a*.p?g").stdout, "no shell resolves the pattern there"


def test_the_table_stays_in_line_whatever_the_classes_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    classes = ("eins", "eine Klasse mit langem Namen", 40 * "x")
    found = (Prediction(a, 1.0, b, 0.0, False, np.zeros((1, 2, 2), np.uint8)) for a, b in permutations(classes, 2))
    _print({Path(f"{n}.png"): Path() for n in range(6)}, found, None, classes, as_json=False)
    head, *rows = capsys.readouterr().out.splitlines()
    assert all(
        row[head.index("runner-up") - 2 :].startswith(("  eins ", "  eine Klasse mit langem Namen ", "  xxx"))
        for row in rows
    )
    assert max(map(len, rows)) <= len(head)


def test_a_line_of_json_gives_the_terminal_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x9b2J\x1b[2J ü.png"
    found = iter([Prediction("1", 1.0, "2", 0.0, False, np.zeros((1, 2, 2), np.uint8))])
    _print({Path(name): Path()}, found, None, ("1", "2"), as_json=True)
    line = capsys.readouterr().out
    assert line.rstrip("\n").isprintable() and json.loads(line)["file"] == name


def test_the_list_of_pictures_may_be_long(
    cnn_run: Path, digits: tuple[Pixels, list[int]], lab: Command, tmp_path: Path
) -> None:
    Image.fromarray(digits[0][0]).save(tmp_path / "good.png")
    long = "x" * 300
    done = lab("predict", f"run={cnn_run}", "images=" + ",".join([*["./good.png"] * 500, long]), "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["file"] == "good.png"
    assert done.stderr == f"error: {long}: there is no such file or folder\n"


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 30,000 pixels wide and high."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with path.open("ab") as file:
        for kind, content in ((b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)), (b"IDAT", b"x")):
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))


def test_a_file_that_is_no_picture_costs_one_line_and_the_others_are_read(
    cnn_run: Path, digits: tuple[Pixels, list[int]], lab: Command, tmp_path: Path
) -> None:
    Image.fromarray(digits[0][0]).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "none.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:150])
    Image.new("RGB", (300, 200), (240, 235, 220)).save(tmp_path / "blank.png")
    bomb(tmp_path / "bomb.png")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ["text.png", "none.png", "half.png", "blank.png", "bomb.png", "empty", "pipe.png", "gone.png"]
    done = lab("predict", f"run={cnn_run}", "images=" + ",".join([*names, "good.png"]), "--json")
    assert done.returncode == 1
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == ["good.png"]
    told = done.stderr.splitlines()
    assert len(told) == len(names) and "Traceback" not in done.stderr
    for name, part in {
        "text.png": "no image",
        "none.png": "no image",
        "half.png": "can't be read",
        "blank.png": "nothing is drawn",
        "bomb.png": "larger than",
        "empty": "no image in this folder",
        "pipe.png": "no file",
        "gone.png": "no such file",
    }.items():
        assert any(line.startswith(f"error: {name}: ") and part in line for line in told), (name, told)
    nothing = lab("predict", f"run={cnn_run}", "images=blank.png,text.png")
    assert nothing.returncode == 2 and len(nothing.stderr.splitlines()) == 2


@pytest.mark.parametrize("kind", ["paper", "noise", "shadow"])
def test_an_empty_picture_has_no_prediction(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = np.full((200, 300), 230.0)
    if kind != "paper":
        values += rng.normal(0, 12, values.shape)
    if kind == "shadow":
        values *= np.linspace(1, 0.5, 300)
    with pytest.raises(UserError, match="nothing is drawn"):
        prepare(Image.fromarray(values.clip(0, 255).astype(np.uint8)), Preparation("digit", (1, 28, 28)))


def test_predict_stops_reading_before_a_picture_fills_the_memory(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="larger than"):
        read_image(tmp_path / "bomb.png")


MISTAKES = {
    "": "which run?",
    "run=RUN": "which images?",
    "run=nowhere images=x": "there is no such folder",
    "run=RUN images=nowhere.png": "no such file or folder",
    "run=RUN images=RUN/checkpoints": "no image in this folder",
    "run=RUN images=x checkpoint=first": "one of last, best",
    "run=RUN images=x checkpoint=best": "Those of this run: last",
    "run=RUN images=x prepare=cut": "one of auto, digit, resize",
    "run=RUN images=x imges=y": "Did you mean images?",
    "run=RUN images=x save=RUN": "a new or an empty folder",
    "run=RUN images=x save=RUN/config.yaml": "config.yaml is a file",
    "run=RUN images=x save=RUN/config.yaml/x": "config.yaml is a file",
    "run=RUN images=x.png --jsn": "not understood",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_in_the_words_is_one_clear_answer(words: str, cnn_run: Path, lab: Command, tmp_path: Path) -> None:
    done = lab("predict", *words.replace("RUN", str(cnn_run)).split())
    assert done.returncode == 2 and MISTAKES[words] in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2 and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@needs_mnist
@pytest.mark.parametrize("size", [56, 200])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("noise", [0, 4])
def test_a_digit_with_a_stroke_at_the_edge_is_read_whole(size: int, dark: bool, noise: int) -> None:
    digit = np.asarray(MNIST(os.environ["MNIST_LAB_DATA"], train=False).data[1911])
    picture = Image.fromarray(255 - digit if dark else digit).resize((size, size), Image.Resampling.BICUBIC)
    values = np.asarray(picture, np.float32) + np.random.default_rng(0).normal(0, noise, (size, size))
    found, inverted = prepare(Image.fromarray(values.clip(0, 255).astype(np.uint8)), Preparation("digit", (1, 28, 28)))
    assert inverted == dark
    assert np.corrcoef(found.ravel(), digit.ravel())[0, 1] > 0.85


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("dark", [False, True])
def test_an_enlarged_image_of_the_data_set_is_that_image(
    digits: tuple[Pixels, list[int]], dark: bool, resample: Image.Resampling
) -> None:
    for digit in digits[0][:50]:
        picture = Image.fromarray(255 - digit if dark else digit).resize((200, 200), resample)
        found, inverted = prepare(picture, Preparation("digit", (1, 28, 28)))
        assert inverted == dark
        assert np.abs(found[0].astype(int) - digit).mean() < 6


def test_a_command_that_loads_many_runs_frees_each(cnn_run: Path) -> None:
    gc.disable()  # as every command does while it imports
    load_run(cnn_run)
    assert gc.isenabled()
