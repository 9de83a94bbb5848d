"""A picture may be anything: a bomb, damaged, no picture at all. It works, or costs one line and little memory."""

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import warm
from conftest import Command, in_memory
from PIL import Image
from some import some

from mnist_lab.data import image_folder
from mnist_lab.errors import UserError


@cache
def zeros(side: int, colour: int, depth: int) -> bytes:
    """A square PNG file of zeros, made without the memory that it takes to read it."""
    row = bytes(1 + side * {0: 1, 2: 3, 6: 4}[colour] * depth // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    file = b"".join(
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + file


def black(path: Path, side: int, colour: int = 0, depth: int = 8) -> None:
    path.write_bytes(zeros(side, colour, depth))


def digit(mode: str = "L") -> Image.Image:
    """A one, white on black, 60×60."""
    image = Image.new("L", (60, 60))
    image.paste(255, (27, 10, 33, 50))
    return image.convert(mode)


def half(path: Path) -> None:
    Image.effect_noise((60, 60), 90).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def program(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 60\n%%EndComments\nshowpage\n%%EOF\n")


def loop(path: Path) -> None:
    path.symlink_to(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "huge bomb": (lambda path: black(path, 30_000), "larger than the 89,478,485 pixels"),
    "bomb of which Pillow only warns": (lambda path: black(path, 12_000, 2), "larger than the 89,478,485 pixels"),
    "cut": (half, "can't be read as an image"),
    "empty": (lambda path: path.write_bytes(b""), "no image"),
    "svg": (lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), "no image"),
    "program": (program, "no image in a format that Pillow reads"),
    "loop": (loop, "no such file"),
    "pipe": (os.mkfifo, "no file"),
}
GOOD: dict[str, Callable[[Path], object]] = {
    "grey": lambda path: digit().save(path, "PNG"),
    "16 bits": lambda path: Image.fromarray(np.asarray(digit(), np.uint16) * 257).save(path, "PNG"),
    "32 bits": lambda path: Image.fromarray(np.asarray(digit(), np.float32) / 255).save(path, "TIFF"),
    "CMYK": lambda path: digit("CMYK").save(path, "JPEG"),
    "animated": lambda path: digit().save(path, "GIF", save_all=True, append_images=[Image.new("L", (60, 60), 255)]),
    "palette": lambda path: digit("P").save(path, "PNG"),
    "large": lambda path: digit("P").resize((5000, 5000)).save(path, "PNG"),
    "large, 16 bits": lambda path: Image.fromarray(
        np.asarray(digit().resize((5000, 5000), Image.Resampling.NEAREST), np.uint16) * 257
    ).save(path, "PNG"),
}


@pytest.mark.parametrize("kind", some(BAD, lambda kind: "bomb" not in kind))
def test_a_hostile_picture_in_a_class_folder_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    make, reason = BAD[kind]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digit().save(tmp_path / name / "good.png")
    make(tmp_path / "b/x.png")
    with pytest.raises(UserError) as raised:
        image_folder(tmp_path, False, (1, 28, 28), 0.5)
    assert f"{tmp_path}/b/x.png: " in str(raised.value) and reason in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_pictures_of_every_kind_are_read_alike(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number, make in enumerate(GOOD.values()):
            (tmp_path / f"{name}/folder.png").mkdir(parents=True, exist_ok=True)
            make(tmp_path / f"{name}/folder.png/{number}.png")
    found = in_memory(image_folder(tmp_path, False, (1, 30, 30), 0.25).train_images).float()
    assert len(found) == 2 * len(GOOD) - 4
    assert (found - found[0]).abs().mean(dim=(1, 2, 3)).max() < 3


READ = """
import resource, sys
from pathlib import Path
from mnist_lab.errors import UserError
from mnist_lab.pictures import read_image
from mnist_lab.show.prepare import Preparation, prepare

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    prepare(read_image(Path(sys.argv[1])), Preparation("digit", (1, 28, 28)))
except UserError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
@pytest.mark.parametrize(
    ("side", "colour", "depth", "most"),
    [(30_000, 0, 8, 10e6), (12_000, 2, 8, 10e6), (9_000, 6, 8, 900e6), (9_000, 0, 16, 700e6)],
)
def test_a_picture_of_kilobytes_never_takes_gigabytes(
    side: int, colour: int, depth: int, most: float, tmp_path: Path
) -> None:
    """One that is refused takes nothing; the largest that is read, at most what two copies of it do."""
    black(tmp_path / "x.png", side, colour, depth)
    assert (tmp_path / "x.png").stat().st_size < 1_000_000
    (tmp_path / "reading.py").write_text(READ)
    done = warm.lab([str(tmp_path / "x.png")], tmp_path, module="reading")
    said, taken = done.stdout.splitlines()
    assert said.startswith("larger than" if side > 10_000 else "nothing is drawn")
    assert float(taken) < most


@pytest.mark.slow
def test_predict_names_each_hostile_picture_and_reads_the_others(cnn_run: Path, lab: Command, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "bin/gs").chmod(0o755)
    names = [f"bad{n}.png" for n in range(len(BAD))] + [f"good{n}.png" for n in range(len(GOOD))]
    for name, make in zip(names, [*(make for make, _ in BAD.values()), *GOOD.values()], strict=True):
        make(tmp_path / name)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    done = lab("predict", f"run={cnn_run}", f"images={','.join(names)}", "--json", PATH=path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    told = done.stderr.splitlines()
    for name, (_, reason) in zip(names, BAD.values(), strict=False):
        assert [reason in line for line in told if line.startswith(f"error: {name}: ")] == [True], (name, told)
    assert len(told) == len(BAD)
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["file"], row["class"]) for row in seen] == [(name, "1") for name in names[len(BAD) :]]
    assert not (tmp_path / "ran").exists(), "a picture ran a program"


@pytest.mark.slow
def test_a_decompression_bomb_in_the_training_data_ends_the_command_in_one_line(lab: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        digit().save(tmp_path / "data" / name / "good.png")
    black(tmp_path / "data/b/x.png", 12_000, 2)
    done = lab("data=image_folder", "data.root=data")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: data/b/x.png: larger than the 89,478,485 pixels that are read"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]
