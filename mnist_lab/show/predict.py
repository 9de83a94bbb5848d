"""The verb `predict`: what a run's network sees in image files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_lab.errors import UserError, printable
from mnist_lab.folders import check_folder
from mnist_lab.rules import one_of
from mnist_lab.run_folder import checkpoint_of, load_config
from mnist_lab.words import is_there, parse_options, path_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mnist_lab.show.prepare import Preparation
    from mnist_lab.trained import TrainedRun

USAGE = (
    "use: python -m mnist_lab predict run=DIR images=FILE,FOLDER,... [checkpoint=last|best] "
    "[prepare=auto|digit|resize] [save=FOLDER] [--json]"
)
BOXES = {
    "mnist": (20 / 28, True),
    "mnist_5k": (20 / 28, True),
    "qmnist": (20 / 28, True),
    "emnist": (24 / 28, False),
    "kmnist": (1.0, False),
}
"""For the data sets of handwriting: the longer side of the ink as a fraction of the image, and what is in the middle of
the image: the ink's centre of mass (True) or the middle of its bounding box (LeCun et al. 1998; Yadav, Bottou 2019;
Cohen et al. 2017; Clanuwat et al. 2018)."""
AT_ONCE = 500
"""Files per batch of the network: many, for speed, but not all, to bound the memory."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of a network for a picture.

    Attributes:
        name: name of the most probable class.
        probability: its probability, in [0, 1].
        runner_up: name of the second most probable class.
        runner_up_probability: its probability, in [0, 1].
        inverted: whether the picture was dark on light and has been inverted.
        pixels: what the network saw, uint8 (C, H, W).
    """

    name: str
    probability: float
    runner_up: str
    runner_up_probability: float
    inverted: bool
    pixels: NDArray[np.uint8]


def predict(words: list[str]) -> None:
    """Print the class, its probability and the runner-up for each image file, as a table or as JSON lines.

    Args:
        words: `run=DIR`, `images=FILE,FOLDER,...`, and optionally `checkpoint=`, `prepare=`, `save=FOLDER` for PNG
            files of what the network saw, and `--json`.

    Raises:
        UserError: there is no such run, a word is not understood, or no file can be read.
        SystemExit: with status 1 if some files could not be read, with 2 if none could.
    """
    options = parse_options(
        [word for word in words if word != "--json"],
        {"run": "", "images": "", "checkpoint": "", "prepare": "auto", "save": ""},
        USAGE,
        needed=("run", "images"),
    )
    one_of("auto", "digit", "resize").check("prepare", options["prepare"])
    run_dir = path_of(options["run"])
    cfg = load_config(run_dir, [])
    checkpoint_of(run_dir, options["checkpoint"] or cfg.test_checkpoint)
    target = path_of(options["save"]) if options["save"] else None
    if target is not None:
        check_folder("save", str(target), fresh=False)
        if target.exists() and any(target.iterdir()):
            raise UserError(f"save={target} is not allowed: the pictures need a new or an empty folder")
    files, mistakes = _files(options["images"])
    if not files:
        raise UserError("\nerror: ".join(mistakes))

    from mnist_lab.trained import load_classifier

    trained = load_classifier(run_dir, options["checkpoint"] or None)
    how = preparation(trained, options["prepare"])
    for mistake in mistakes:
        _complain(mistake)
    answers = predictions(trained, list(files), how)
    seen = _print(files, answers, target, trained.class_names, as_json="--json" in words)
    sys.stdout.flush()
    if seen < len(files) or mistakes:
        sys.exit(1 if seen else 2)


def preparation(trained: TrainedRun, kind: str = "auto") -> Preparation:
    """Return how pictures are prepared for a run's network.

    Args:
        trained: the run.
        kind: "digit", "resize", or "auto": "digit" for data sets of handwriting.

    Raises:
        UserError: the network takes neither grey images (1 channel) nor colour images (3), or finished float32.
    """
    from mnist_lab.show.prepare import Preparation

    if trained.finished:
        raise UserError(
            f"{trained.run_dir} has learned from float32 images that its own dataset finished: how, only that dataset "
            "knows. From Python: load_run(RUN).predict(images)"
        )
    if trained.shape[0] not in (1, 3):
        raise UserError(
            f"{trained.run_dir} takes images of {trained.shape[0]} channels: pictures have 1 (grey) or 3 (colour)"
        )
    source = str(trained.cfg.data.get("source", {}).get("_target_", ""))
    module, _, name = source.rpartition(".")
    ours = module.startswith("mnist_lab.data")
    handwriting = ours and name in BOXES
    if kind == "resize" or (kind == "auto" and not handwriting):
        # Clothes are photographed on white as a rule, and those of Fashion-MNIST are light on black.
        on_black = ours and name == "fashion_mnist"
        return Preparation("resize", trained.shape, squeeze=name == "image_folder", on_black=on_black)
    box, by_mass = BOXES[name if handwriting else "mnist"]
    return Preparation("digit", trained.shape, box, by_mass)


def predictions(
    trained: TrainedRun, files: Sequence[Path], how: Preparation | None = None
) -> Iterator[Prediction | UserError]:
    """Yield a network's predictions for image files, one per file, in their order.

    Args:
        trained: the run, from `load_classifier`.
        files: in any format that Pillow reads.
        how: the preparation to apply; None: `preparation(trained)`.

    Yields:
        The prediction; or, if a file can't be used, the reason.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from mnist_lab.environment import cores
    from mnist_lab.pictures import read_image
    from mnist_lab.show.prepare import DRAFT, prepare

    how = how or preparation(trained)

    def prepared(file: Path) -> tuple[NDArray[np.uint8], bool] | UserError:
        try:
            # A picture that is resized as a whole is read as those of class folders are: at its full size.
            return prepare(read_image(file, DRAFT if how.kind == "digit" else None), how)
        except UserError as error:
            return UserError(f"{file}: {error}")

    with ThreadPoolExecutor(cores()) as pool:
        ahead = pool.map(prepared, files[:AT_ONCE])
        for start in range(AT_ONCE, len(files) + AT_ONCE, AT_ONCE):
            found = list(ahead)
            ahead = pool.map(prepared, files[start : start + AT_ONCE])
            images = [each[0] for each in found if not isinstance(each, UserError)]
            best = trained.predict(np.stack(images)).topk(2) if images else None
            answers = iter(zip(best.values.tolist(), best.indices.tolist(), strict=True) if best is not None else ())
            for each in found:
                if isinstance(each, UserError):
                    yield each
                    continue
                probabilities, classes = next(answers)
                first, second = (trained.class_names[number] for number in classes)
                yield Prediction(first, probabilities[0], second, probabilities[1], each[1], each[0])


def _files(words: str) -> tuple[dict[Path, Path], list[str]]:
    """Return the image files that `images=` names, each with its name for `save=`, and error messages for the rest."""
    from mnist_lab.pictures import image_files

    files: dict[Path, Path] = {}
    mistakes = []
    named = [words] if is_there(words) else filter(None, words.split(","))
    for word in (found for pattern in named for found in _matching(pattern)):
        path = path_of(word)
        if not is_there(word):
            mistakes.append(f"{path}: there is no such file or folder")
        elif path.is_dir():
            within = image_files(path)
            if not within:
                mistakes.append(f"{path}: there is no image in this folder")
            files |= {p: p.relative_to(path) for p in sorted(within, key=lambda p: _natural(p.relative_to(path)))}
        else:
            files[path] = Path(path.name)
    return files, mistakes


def _matching(word: str) -> list[str]:
    """Return the paths that match a pattern such as scans/*.png; the word itself where it is a path or matches none."""
    found = [] if is_there(word) else glob(str(path_of(word)), recursive=True)  # noqa: PTH207 (pathlib's raises for a**b)
    return sorted(found, key=lambda path: _natural(Path(path))) or [word]


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """Return a sort key that puts 2.png before 10.png."""
    return [
        [(int(part), "") if n % 2 else (0, part) for n, part in enumerate(re.split("([0-9]+)", name))]
        for name in path.parts
    ]


def _complain(mistake: object) -> None:
    sys.stdout.flush()
    print(printable(f"error: {mistake}"), file=sys.stderr, flush=True)


def _print(
    files: dict[Path, Path],
    answers: Iterator[Prediction | UserError],
    target: Path | None,
    classes: Sequence[str],
    as_json: bool,
) -> int:
    """Print the answers as they come and save the pictures. Return the number of files that were classified."""
    from mnist_lab.show.style import shortened

    wide = max(len("file"), *(len(str(file)) for file in files))
    names = dict(zip(classes, shortened(classes, 30), strict=True))
    of_name = max(11, *map(len, names.values()))
    if not as_json:
        print(f"{'file':{wide}}  {'class':{of_name}}  probability  {'runner-up':{of_name}}  probability  inverted")
    seen, taken = 0, set[Path]()
    for (file, name), answer in zip(files.items(), answers, strict=True):
        if isinstance(answer, UserError):
            _complain(answer)
            continue
        seen += 1
        saved = None
        if target is not None:
            saved = _save(answer.pixels, target / name, taken)
        if as_json:
            row = {
                "file": str(file),
                "class": answer.name,
                "probability": round(answer.probability, 6),
                "runner_up": answer.runner_up,
                "runner_up_probability": round(answer.runner_up_probability, 6),
                "inverted": answer.inverted,
            }
            print(json.dumps(row | ({"saved": str(saved)} if saved else {})))
        else:
            print(
                f"{printable(str(file)):{wide}}  {names[answer.name]:{of_name}}  {answer.probability:11.2%}  "
                f"{names[answer.runner_up]:{of_name}}  {answer.runner_up_probability:11.2%}  "
                f"{'yes' if answer.inverted else 'no'}"
            )
    return seen


def _save(pixels: NDArray[np.uint8], path: Path, taken: set[Path]) -> Path:
    """Write the network's input as PNG, under another name if one of the same name was written before."""
    from PIL import Image

    path, number = path.with_suffix(".png"), 1
    while path in taken:
        number += 1
        path = path.with_stem(path.stem.removesuffix(f"-{number - 1}") + f"-{number}")
    taken.add(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(path)
    return path
