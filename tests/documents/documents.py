"""The documents of this repository, and the blocks of code in them."""

import re
import shlex
from pathlib import Path

from conftest import ROOT, in_memory

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
    from PIL import Image

    from mnist_lab.data import mnist_5k

    (python,) = (code for code in blocks("python", CONF) if "class Net" in code)
    photos = (
        "class Photos(torch.utils.data.Dataset):\n    pass\n"  # which mnist_lab/data/README.md leaves to its reader
    )
    (folder / "own.py").write_text(f"{python}\n\n{photos}")
    for config in blocks("yaml"):
        if (named := re.search(r"^# (my_conf/.*)$", config, flags=re.MULTILINE)) is not None:
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(config)
    found = mnist_5k()
    images, labels = in_memory(found.test_images)[found.test_labels < 3], found.test_labels[found.test_labels < 3]
    parts = {"images": images.numpy(), "labels": labels.numpy()}
    np.savez(folder / "letters.npz", **{f"{part}_{key}": parts[key] for part in ("train", "test") for key in parts})  # type: ignore[arg-type]
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (50, 40), (n, 0, 0)).save(folder / "photos" / name / f"{n}.jpg")
    digit = Image.fromarray(in_memory(found.test_images)[0, 0].numpy()).resize((200, 200))
    digit.save(folder / "digit.png")
    (folder / "scans").mkdir()
    digit.save(folder / "scans/first.png")
