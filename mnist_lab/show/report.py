"""The verb `report`, which also ends a training: a run on one page that opens offline, and its figures."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from mnist_lab.errors import UserError
from mnist_lab.files import write_whole
from mnist_lab.result import Result
from mnist_lab.run_folder import load_config
from mnist_lab.words import divide, is_there, path_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnist_lab.data import ImageDataModule
    from mnist_lab.show.figures import Answers
    from mnist_lab.trained import TrainedRun

log = logging.getLogger(__name__)

USAGE = "use: python -m mnist_lab report run=DIR[,DIR ...] [key=value of the run's config, such as data.root=DIR ...]"


def report(words: list[str]) -> None:
    """Makes the reports of finished runs, again or for the first time.

    Args:
        words: `run=DIR`, or several with commas, and `key=value` to replace in the runs' configs, such as
            `data.root=DIR`.

    Raises:
        UserError: there is no such run, it isn't finished, its data can't be loaded, or a word is not understood.
    """
    options, overrides = divide(words, {"run": ""}, USAGE, needed=("run",))
    names = [options["run"]] if is_there(options["run"]) else options["run"].split(",")
    folders = [path_of(name) for name in names if name]
    if not folders:
        raise UserError(f"which run? {USAGE}")
    for folder in folders:
        load_config(folder, overrides)
        Result.load(folder)

    from mnist_lab.build import build_tested
    from mnist_lab.trained import load_run

    for folder in folders:
        result = Result.load(folder)
        run = load_run(folder, result.test["checkpoint"], overrides, _device(result))
        print(f"report       {write_report(run, result, build_tested(run.cfg, run.run_dir))}")


def leave_report(run_dir: Path, data: ImageDataModule) -> Path | None:
    """Writes the report of a run that has just ended. If that fails, run.log says why, and the run still counts.

    Args:
        run_dir: the run's folder.
        data: what it was trained and tested on.

    Returns:
        The page; None if it could not be made.
    """
    from mnist_lab.terminal import relative, to_log_file
    from mnist_lab.trained import load_run

    try:
        result = Result.load(run_dir)
        return write_report(load_run(run_dir, result.test["checkpoint"], device=_device(result)), result, data)
    except Exception as error:
        again = f"python -m mnist_lab report {quote(f'run={relative(run_dir)}')}"
        log.warning(f"no report: {type(error).__name__}: {error}\nrun.log has more; to try again: {again}")
        to_log_file(traceback.format_exc())
        return None


def write_report(run: TrainedRun, result: Result, data: ImageDataModule) -> Path:
    """Writes RUN/report.html, and its figures to RUN/figures.

    Args:
        run: the run's network.
        result: what the run recorded.
        data: a data module that has been set up; its test images are predicted.

    Returns:
        The page.
    """
    import torch

    from mnist_lab.show import figures
    from mnist_lab.show.page import page
    from mnist_lab.show.style import image, svg

    answers = answers_of(run, result, data)
    layers, first = figures.layers_of(run.net, torch.zeros(1, *run.shape, device=run.device))
    bins = figures.calibration_bins(answers)
    weights = figures.first_weights(first, run.shape)
    drawn: dict[str, tuple[Figure, str]] = {
        "curves": (figures.curves(result), "loss and accuracy by epoch"),
        "predictions": (figures.predictions(answers), "test images with prediction and label"),
        "confusion": (figures.confusion_matrix(answers), "confusion matrix"),
        "classes": (figures.class_scores(answers), "precision and recall by class"),
        "network": (figures.drawing(layers, run.shape), "the network's layers"),
    }
    if len(answers.mistakes) and bins:
        drawn["mistakes"] = figures.worst(answers), "the surest mistakes"
    if bins:
        drawn["calibration"] = figures.reliability(bins), "reliability diagram"
    if weights is not None:
        drawn["weights"] = weights[0], "weights of the first layer"
    images = {}
    (run.run_dir / "figures").mkdir(exist_ok=True)
    for name, (figure, what) in drawn.items():
        content = svg(figure)
        write_whole(run.run_dir / "figures" / f"{name}.svg", content)
        images[name] = f"<figure>{image(content, what)}</figure>"
    notes = list(result.notes)
    assert data.images is not None
    if data.images.digest != result.data["digest"]:
        notes.append("The pictures are of other files than the run recorded: their digest differs.")
    path = run.run_dir / "report.html"
    write_whole(path, page(result, answers, layers, images, notes, weights[1] if weights else ""))
    return path


def answers_of(run: TrainedRun, result: Result, data: ImageDataModule) -> Answers:
    """The network's predictions for the images that the run was tested on.

    Args:
        run: the run's network.
        result: what the run recorded, for the number of those images.
        data: a data module that has been set up.
    """
    import torch

    from mnist_lab.show.figures import Answers

    found, labels, n = [], [], 0
    with torch.inference_mode():
        for batch in data.test_dataloader(whole=True):
            for images, truth in batch.mini_batches():
                found.append(run.net(images.to(run.device)).cpu().double().softmax(1))
                labels.append(truth.cpu())
            n += len(batch.labels)
            if n >= result.test["n"]:  # trainer.limit_test_batches
                break
    n = result.test["n"]
    assert data.images is not None
    return Answers(torch.cat(found)[:n], torch.cat(labels)[:n], data.images.test_images, run.class_names)


def _device(result: Result) -> str | None:
    """The device to predict on: the CPU for a run on a CPU, to get the same digits; None: the default one."""
    return "cpu" if result.machine["accelerator"] == "cpu" else None
