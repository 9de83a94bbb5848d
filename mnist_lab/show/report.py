"""The verb `report`, and what a training leaves at its end: a run on one page that opens offline, and its figures."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from html import escape
from pathlib import Path
from shlex import quote
from statistics import median
from typing import TYPE_CHECKING

from mnist_lab.errors import UserError
from mnist_lab.evaluate import load_config
from mnist_lab.files import write_whole
from mnist_lab.result import Result
from mnist_lab.words import divide

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnist_lab.data import ImageDataModule
    from mnist_lab.show.figures import Answers, Layer
    from mnist_lab.trained import TrainedRun

log = logging.getLogger(__name__)

USAGE = "use: python -m mnist_lab report run=DIR[,DIR ...] [key=value of the run's config, such as data.root=DIR ...]"


def report(words: list[str]) -> None:
    """Makes the reports of finished runs, again or for the first time.

    Args:
        words: `run=DIR`, several with commas, and values of the runs' own configs to replace, such as `data.root=DIR`.

    Raises:
        UserError: there is no such run, it isn't finished, its data can't be had, or a word is not understood.
    """
    options, overrides = divide(words, {"run": ""}, USAGE)
    folders = [Path(name).expanduser() for name in options["run"].split(",") if name]
    if not folders:
        raise UserError(f"which run? {USAGE}")
    for folder in folders:
        load_config(folder, overrides)
        Result.load(folder)

    from mnist_lab.run import data_of
    from mnist_lab.trained import load_run

    for folder in folders:
        result = Result.load(folder)
        run = load_run(folder, result.test["checkpoint"], overrides, _device(result))
        print(f"report       {write_report(run, result, data_of(run.cfg, result))}")


def leave_report(run_dir: Path, data: ImageDataModule) -> Path | None:
    """The report of a run that has just ended. Where it can't be made run.log says why, and the run is as good.

    Args:
        run_dir: the run's folder.
        data: what it was trained and tested on.

    Returns:
        The page; None where there is none.
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
        run: the network.
        result: what the run recorded.
        data: set up; its test images are predicted.

    Returns:
        The page.
    """
    import torch

    from mnist_lab.run import data_facts
    from mnist_lab.show import figures
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
    if len(answers.mistakes):
        drawn["mistakes"] = figures.worst(answers), "the surest mistakes"
    if bins:
        drawn["calibration"] = figures.reliability(bins), "reliability diagram"
    if weights is not None:
        drawn["weights"] = weights[0], "weights of the first layer"
    images = {}
    for name, (figure, what) in drawn.items():
        content = svg(figure)
        write_whole(run.run_dir / "figures" / f"{name}.svg", content)
        images[name] = f"<figure>{image(content, what)}</figure>"
    notes = list(result.notes)
    if data_facts(run.cfg, data)["digest"] != result.data["digest"]:
        notes.append("The pictures are of other files than the run recorded: their digest differs.")
    path = run.run_dir / "report.html"
    write_whole(path, _page(result, answers, layers, images, notes, weights[1] if weights else ""))
    return path


def answers_of(run: TrainedRun, result: Result, data: ImageDataModule) -> Answers:
    """What the network says about the images that the run was tested on.

    Args:
        run: the network.
        result: says how many images that were.
        data: set up.
    """
    import torch

    from mnist_lab.show.figures import Answers

    data.trainer = None  # batches of the whole test set, not of one process's share of it
    found, labels, n = [], [], 0
    with torch.inference_mode():
        for batch in data.test_dataloader():
            for images, truth in batch.mini_batches():
                found.append(run.net(images.to(run.device)).float().softmax(1).cpu())
                labels.append(truth)
            n += len(batch.labels)
            if n >= result.test["n"]:  # trainer.limit_test_batches
                break
    n = result.test["n"]
    assert data.images is not None
    return Answers(torch.cat(found)[:n], torch.cat(labels)[:n], data.images.test_images, run.class_names)


def _device(result: Result) -> str | None:
    """Where to predict: a run of a CPU is repeated there, to the last digit."""
    return "cpu" if result.machine["accelerator"] == "cpu" else None


def _page(
    result: Result, answers: Answers, layers: Sequence[Layer], images: dict[str, str], notes: list[str], weights: str
) -> str:
    """The page's HTML.

    Args:
        result: what the run recorded.
        answers: what its network says about the test images.
        layers: of the network.
        images: the figures, as elements of the page.
        notes: what nobody may miss.
        weights: what the figure of the weights shows.
    """
    from omegaconf import OmegaConf

    from mnist_lab.show.figures import interval, percent
    from mnist_lab.show.style import document

    test, data = result.test, result.data
    target = result.model["target"].rpartition(".")[2]
    parts = [
        f"<h1>{escape(result.name)}</h1>",
        f"<p class=note>{escape(target)}, {result.model['parameters']:,} parameters, on {escape(data['name'])}, "
        f"seed {result.seed}, {escape(result.started_at[:16].replace('T', ' '))}</p>",
    ]
    if notes:
        parts.append("<div class=warning>" + "".join(f"<p>{escape(note)}</p>" for note in notes) + "</div>")
    low, high = interval(test["correct"], test["n"])
    last = result.history[-1]
    gap = 100 * (last["train/acc"] - test["acc"])
    numbers = [
        (percent(test["acc"]), "test accuracy"),
        (f"{100 * low:.2f} – {100 * high:.2f} %", f"its 95 % interval: {test['correct']:,} of {test['n']:,} images"),
        (_loss(test["loss"]), "test loss"),
        (f"{gap:+.2f} points".replace("-", "−"), "gap, train − test accuracy"),
        (f"{result.seconds['train']:.1f} s", "to train"),
    ]
    parts.append(
        "<div class=numbers>"
        + "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in numbers)
        + "</div>"
    )
    parts += [
        "<p class=note>The command that repeats it:</p>",
        f"<pre class=command>{escape(result.command)}</pre>",
        "<h2>Loss and accuracy by epoch</h2>",
        images["curves"],
        "<p class=note>Training's values are taken while the weights change, with dropout on; validation's and the "
        "test's afterwards, with dropout off.</p>",
        f"<div class=figures><section><h2>The first {min(9, test['n'])} test images</h2>{images['predictions']}"
        f"</section><section><h2>Calibration</h2>{_calibration(answers, images)}</section></div>",
    ]
    wrong = len(answers.mistakes)
    parts.append("<h2>The worst mistakes</h2>")
    if "mistakes" in images:
        shown = min(15, wrong)
        of = f"The {shown} of {wrong:,} mistakes" if wrong > shown else "All mistakes"
        parts += [
            f"<p class=note>{of} of which the network was surest, with its probabilities.</p>",
            images["mistakes"],
        ]
    else:
        parts.append("<p>None.</p>")
    if wrong != test["n"] - test["correct"]:
        parts.append(
            f"<p class=note>The test counted {test['n'] - test['correct']:,} mistakes, in "
            f"{escape(result.config['trainer']['precision'])} on {escape(result.machine['accelerator'])}; predicted "
            f"again for this page, in float32, there are {wrong:,}.</p>"
        )
    parts += [
        "<h2>Which class is taken for which</h2>",
        f"<div class=figures>{images['confusion']}<div>{_most_confused(answers)}</div></div>",
        "<h2>Precision and recall</h2>",
        f"<div class=figures>{images['classes']}<div>{_class_table(answers)}</div></div>",
    ]
    parts += [
        "<h2>The network</h2>",
        images["network"],
        _layer_table(layers, result.model["parameters"], result.model["trainable_parameters"]),
    ]
    if weights:
        parts += ["<h2>What the first layer looks for</h2>", images["weights"], f"<p class=note>{escape(weights)}</p>"]
    config = OmegaConf.to_yaml(OmegaConf.create(result.config))
    parts += [
        "<h2>Time, memory, and what it ran on</h2>",
        _facts(result),
        f"<details><summary>Every value of the config</summary><pre>{escape(config)}</pre></details>",
    ]
    return document(f"{result.name}: {percent(test['acc'])}", parts)


def _calibration(answers: Answers, images: dict[str, str]) -> str:
    from mnist_lab.show.figures import BINS, calibration_bins, calibration_error, percent

    bins = calibration_bins(answers)
    if not bins:
        return "<p>The network gives no finite probability.</p>"
    return (
        images["calibration"] + f"<p>Expected calibration error: <b>{percent(calibration_error(bins))}</b></p>"
        f"<p class=note>The mean distance of confidence from accuracy, in {BINS} bins (Guo et al. 2017). "
        "Error bars: 95 % intervals (Wilson).</p>"
    )


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<div class=wide><table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table></div>"
    )


def _most_confused(answers: Answers, count: int = 8) -> str:
    """The pairs of classes that are mistaken most often."""
    counts = answers.confusion()
    of = counts.sum(1)
    pairs = [(int(counts[a, b]), a, b) for a, b in counts.nonzero().tolist() if a != b]
    rows = [
        [answers.classes[label], answers.classes[taken], f"{times:,}", f"{100 * times / int(of[label]):.1f} %"]
        for times, label, taken in sorted(pairs, key=lambda pair: -pair[0])[:count]
    ]
    if not rows:
        return "<p>No mistake.</p>"
    return "<p class=note>The most frequent mistakes</p>" + _table(
        ("label", "taken for", "times", "of its images"), rows
    )


def _class_table(answers: Answers) -> str:
    from mnist_lab.show.figures import READABLE, precision_recall

    counts = answers.confusion()
    precision, recall = precision_recall(counts)
    rows = []
    for k, name in enumerate(answers.classes):
        p, r = float(precision[k]), float(recall[k])
        values = ["–" if value != value else f"{100 * value:.2f} %" for value in (p, r)]
        rows.append([name, f"{int(counts[k].sum()):,}", *values])
    found = _table(("class", "test images", "precision", "recall"), rows)
    shown = " open" if len(rows) <= READABLE else ""
    return f"<details{shown}><summary>In numbers</summary>{found}</details>"


def _layer_table(layers: Sequence[Layer], parameters: int, trainable: int) -> str:
    rows = [
        [layer.kind, "×".join(map(str, layer.gives)), f"{layer.parameters:,}" if layer.parameters else ""]
        for layer in layers
    ]
    if left := parameters - sum(layer.parameters for layer in layers):
        rows.append(["in other parts", "", f"{left:,}"])
    rows.append(["all", "", f"{parameters:,}"])
    if trainable != parameters:
        rows.append(["of these trained", "", f"{trainable:,}"])
    return _table(("layer", "gives", "parameters"), rows)


def _facts(result: Result) -> str:
    """What is worth knowing about how the numbers came about."""
    machine, data, code = result.machine, result.data, result.code
    validation = f"{data['val']:,} validation ({data['val_from']}), " if data["val"] else ""
    epoch = median(row["seconds"] for row in result.history)
    commit = code["commit"][:12] + (", with changes" if code["changed"] else "") if code["commit"] else "no checkout"
    processes = f", {machine['processes']} processes" if machine["processes"] > 1 else ""
    memory = [f"{machine['memory_gb']:.2f} GB of the process"] if machine.get("memory_gb") else []
    if machine.get("accelerator_memory_gb"):
        memory.append(f"{machine['accelerator_memory_gb']:.2f} GB on the {machine['accelerator']}")
    facts = {
        "time": "{start:.1f} s to start, {train:.1f} s to train, {test:.1f} s to test".format(**result.seconds),
        "epochs": f"{len(result.history)}, of {epoch:.2f} s, the median",
        "most memory": ", ".join(memory) or "not recorded",
        "data": f"{data['name']}: {data['train']:,} train, {validation}{data['test']:,} test images; "
        f"SHA-256 {data['digest']}",
        "tested": f"the {result.test['checkpoint']} checkpoint, on {result.test['n']:,} images",
        "device": f"{machine['accelerator_name'] or machine['accelerator']}{processes}",
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads",
        "system": machine["system"],
        "code": f"mnist_lab {code['version']}, {commit}",
        "packages": ", ".join(f"{name} {version}" for name, version in result.packages.items()),
        "started": result.started_at,
    }
    rows = "".join(f"<tr><td>{name}</td><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table class=facts>{rows}</table>"
