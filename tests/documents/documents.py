"""The documents of this repository, and the blocks of code in them."""

import re
import shlex
from pathlib import Path

from conftest import ROOT

FOLDERS = ("conf", "mnist_lab", "tests")
DOCUMENTS = [ROOT / "README.md", *(path for name in FOLDERS for path in sorted((ROOT / name).rglob("README.md")))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
README, CONF = TEXTS["README.md"], TEXTS["conf/README.md"]
LAB = "python -m mnist_lab"


def blocks(kind: str, *texts: str) -> list[str]:
    """The fenced blocks of a language, in all documents or in these texts."""
    return [
        block
        for text in texts or TEXTS.values()
        for block in re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    ]


LINES = list(
    dict.fromkeys(
        line for block in blocks("bash") for line in block.splitlines() if line.strip() and not line.startswith("#")
    )
)
"""Each command once, as a line."""


def words_of(line: str) -> list[str]:
    """The words after `python -m mnist_lab`, without what is installed before them."""
    return shlex.split(line.rpartition("&& ")[2].partition(LAB)[2])


def write_examples(folder: Path) -> None:
    """Write what the documents have their reader make before the commands that need it."""
    import numpy as np
    from PIL import Image, ImageDraw

    (python,) = (code for code in blocks("python", CONF) if "class Net" in code)
    photos = "class Photos(torch.utils.data.Dataset):\n    pass\n"  # left to the reader of mnist_lab/data
    (folder / "own.py").write_text(f"{python}\n\n{photos}")
    for config in blocks("yaml"):
        if (named := re.search(r"^# (my_conf/.*)$", config, flags=re.MULTILINE)) is not None:
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(config)
    images, labels = np.random.default_rng(0).integers(0, 256, (300, 1, 28, 28), np.uint8), np.arange(300) % 3
    np.savez(folder / "letters", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (50, 40), (n, 0, 0)).save(folder / "photos" / name / f"{n}.jpg")
    digit = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(digit).line([(60, 40), (140, 40), (90, 170)], fill=0, width=16)  # a seven
    digit.save(folder / "digit.png")
    (folder / "scans").mkdir()
    digit.save(folder / "scans/first.png")
