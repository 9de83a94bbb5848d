"""The verb `report`, which also ends a training: a run on one page that opens offline, and its figures."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from mnist_lab.errors import UserError, printable
from mnist_lab.files import write_whole
from mnist_lab.result import Result
from mnist_lab.run_folder import load_config
from mnist_lab.words import divide, is_there, path_of

if TYPE_CHECKING:
    from lightning import LightningDataModule
    from matplotlib.figure import Figure

    from mnist_lab.data import ImageDataModule
    from mnist_lab.show.answers import Answers
    from mnist_lab.show.page import Predicted
    from mnist_lab.trained import TrainedRun

log = logging.getLogger(__name__)

USAGE = "use: python -m mnist_lab report run=DIR[,DIR ...] [key=value of the run's config, such as data.root=DIR ...]"


def report(words: list[str]) -> None:
    """Make the reports of finished runs, again or for the first time.

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

    for folder in folders:
        print(printable(f"report       {write_report(folder, overrides=overrides)}"))


def leave_report(run_dir: Path, data: LightningDataModule) -> Path | None:
    """Write the report of a run that has just ended. If that fails, run.log says why, and the run still counts.

    Args:
        run_dir: the run's folder.
        data: what it was trained and tested on.

    Returns:
        The page; None if it could not be made.
    """
    from mnist_lab.terminal import relative, to_log_file

    try:
        return write_report(run_dir, data)
    except Exception as error:
        again = f"python -m mnist_lab report {quote(f'run={relative(run_dir)}')}"
        log.warning(f"no report: {type(error).__name__}: {error}\nrun.log has more; to try again: {again}")
        to_log_file(traceback.format_exc())
        return None


def write_report(run_dir: Path, data: LightningDataModule | None = None, overrides: Sequence[str] = ()) -> Path:
    """Write RUN/report.html, and its figures to RUN/figures.

    What is shown of the network's predictions needs class probabilities; the page of another run says why it has none.

    Args:
        run_dir: the folder of a finished run.
        data: the run's, set up; None: it is read again.
        overrides: `key=value`, replacing values of the run's config.

    Returns:
        The page.

    Raises:
        UserError: the run isn't finished, or its data can't be loaded.
    """
    from mnist_lab.build import build_tested
    from mnist_lab.data import ImageDataModule
    from mnist_lab.show.curves import curves, logged_names
    from mnist_lab.show.page import page
    from mnist_lab.show.style import image, svg
    from mnist_lab.trained import load_run, no_probabilities
    from mnist_lab.user_code import errors_in_one_line

    result = Result.load(run_dir)
    figures: dict[str, tuple[Figure, str]] = {}
    if logged_names(result):
        figures["curves"] = curves(result), "metrics by epoch"
    notes, predicted = list(result.notes), None
    cfg = load_config(run_dir, list(overrides))
    with errors_in_one_line(cfg):
        why = no_probabilities(cfg)
    if why is None:
        run = load_run(run_dir, result.test["checkpoint"], overrides, _device(result))
        data = build_tested(run.cfg, run_dir) if data is None else data
        assert isinstance(data, ImageDataModule) and data.images is not None
        predicted, drawn = _predicted(run, result, data)
        figures |= drawn
        if data.images.digest != result.data["digest"]:
            notes.append("The pictures are of other files than the run recorded: their digest differs.")
    images = {}
    (run_dir / "figures").mkdir(exist_ok=True)
    for name, (figure, what) in figures.items():
        content = svg(figure)
        write_whole(run_dir / "figures" / f"{name}.svg", content)
        images[name] = f"<figure>{image(content, what)}</figure>"
    write_whole(run_dir / "report.html", page(result, images, notes, predicted, why))
    return run_dir / "report.html"


def _predicted(
    run: TrainedRun, result: Result, data: ImageDataModule
) -> tuple[Predicted, dict[str, tuple[Figure, str]]]:
    """Return what a network predicts for the test images, and the figures of it, each with what it shows."""
    import torch

    from mnist_lab.show import figures
    from mnist_lab.show.answers import calibration_bins
    from mnist_lab.show.layers import drawing, first_weights, layers_of
    from mnist_lab.show.page import Predicted

    answers = answers_of(run, result, data)
    layers, first = layers_of(run.net, torch.zeros(1, *run.shape, device=run.device))
    bins = calibration_bins(answers)
    weights = first_weights(first, run.shape)
    drawn = {
        "predictions": (figures.predictions(answers), "test images with prediction and label"),
        "confusion": (figures.confusion_matrix(answers), "confusion matrix"),
        "classes": (figures.class_scores(answers), "precision and recall by class"),
        "network": (drawing(layers, run.shape), "the network's layers"),
    }
    if len(answers.mistakes) and bins:
        drawn["mistakes"] = figures.worst(answers), "the surest mistakes"
    if bins:
        drawn["calibration"] = figures.reliability(bins), "reliability diagram"
    if weights is not None:
        drawn["weights"] = weights[0], "weights of the first layer"
    return Predicted(answers, layers, "" if weights is None else weights[1]), drawn


def answers_of(run: TrainedRun, result: Result, data: ImageDataModule) -> Answers:
    """Return the network's predictions for the images that the run was tested on.

    Args:
        run: the run's network.
        result: what the run recorded, for the number of those images.
        data: a data module that has been set up.
    """
    import torch

    from mnist_lab.show.answers import Answers

    found, labels, n = [], [], 0
    with torch.inference_mode():
        for images, truth in data.test_dataloader(whole=True):
            found.append(run.net(images.to(run.device)).cpu().double().softmax(1))
            labels.append(truth.cpu())
            n += len(truth)
            if n >= result.test["n"]:  # trainer.limit_test_batches
                break
    n = result.test["n"]
    assert data.images is not None
    return Answers(torch.cat(found)[:n], torch.cat(labels)[:n], data.images.test_images, run.class_names)


def _device(result: Result) -> str | None:
    """Return the device to predict on: the CPU for a run on a CPU, to get the same digits; None: the default one."""
    return "cpu" if result.machine["accelerator"] == "cpu" else None
