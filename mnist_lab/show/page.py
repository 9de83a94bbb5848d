"""The text and tables of a run's report, around its figures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

import yaml

from mnist_lab.metrics import is_accuracy, shown
from mnist_lab.result import Result
from mnist_lab.show.answers import BINS, Answers, calibration_bins, calibration_error, wilson_interval
from mnist_lab.show.figures import MISTAKES, READABLE, percent
from mnist_lab.show.layers import Layer
from mnist_lab.show.style import document
from mnist_lab.training.metrics import precision_recall


@dataclass(frozen=True)
class Predicted:
    """The parts of a report on a network that classifies.

    Attributes:
        answers: the network's predictions for the test images.
        layers: the network's layers.
        weights: caption of the figure of the first layer's weights; empty if there is none.
    """

    answers: Answers
    layers: Sequence[Layer]
    weights: str


def page(result: Result, images: dict[str, str], notes: list[str], predicted: Predicted | None, why: str | None) -> str:
    """Return the page's HTML.

    Args:
        result: what the run recorded.
        images: the figures by name, as HTML elements.
        notes: warnings to show at the top.
        predicted: what the network predicts; None if it gives no class probabilities.
        why: the reason why it gives none.
    """
    parts = _head(result, notes)
    if "curves" in images:
        names = [{"acc": "accuracy"}.get(name, name) for name in result.test_metrics]
        parts.append(
            _section(
                "Loss and accuracy by epoch" if names == ["loss", "accuracy"] else "Metrics by epoch",
                images["curves"],
                "<p class=note>Training's values are taken while the weights change, with dropout on if there is any; "
                "validation's and the test's afterwards, with dropout off.</p>",
            )
        )
    if predicted is None:
        parts.append(f"<p class=note>Nothing is shown of single images: {escape(why or 'the run has no network')}.</p>")
    else:
        parts += _predictions(result, images, predicted)
    config = yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True)
    parts += [
        _section("Time, memory, and what it ran on", _facts(result)),
        f"<details><summary>Every value of the config</summary><pre>{escape(config)}</pre></details>",
    ]
    return document(f"{result.name}: {_title(result)}", parts)


def _predictions(result: Result, images: dict[str, str], predicted: Predicted) -> list[str]:
    answers = predicted.answers
    parts = [
        "<div class=figures>",
        _section(f"The first {min(9, result.test['n'])} test images", images["predictions"]),
        _section("Calibration", *_calibration(answers, images)),
        "</div>",
        _section("The worst mistakes", *_mistakes(result, answers, images)),
        _section(
            "Which class is taken for which",
            f"<div class=figures>{images['confusion']}<div>{_most_confused(answers)}</div></div>",
        ),
        _section(
            "Precision and recall",
            f"<div class=figures>{images['classes']}<div>{_class_table(answers)}</div></div>",
        ),
        _section("The network", images["network"], _layer_table(predicted.layers, result.model)),
    ]
    if predicted.weights:
        note = f"<p class=note>{predicted.weights}</p>"
        parts.append(_section("What the first layer looks for", images["weights"], note))
    return parts


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(content)}</section>"


def _number(metric: str, value: float | None) -> str:
    return percent(value) if value is not None and is_accuracy(metric) else shown(metric, value)


def _title(result: Result) -> str:
    """Return the test's accuracy; of a run without one all that the test measured."""
    found = {"acc": result.test["acc"]} if result.test["acc"] is not None else result.test_metrics
    return ", ".join(_number(name, value) for name, value in found.items()) or "not tested"


def _numbers(result: Result) -> dict[str, str]:
    """Return the main numbers as text, by what they are."""
    test, found = result.test, {}
    if test["acc"] is not None:
        found["test accuracy"] = percent(test["acc"])
    if test["correct"] is not None:
        low, high = wilson_interval(test["correct"], test["n"])
        what = f"its 95 % interval: {test['correct']:,} of {test['n']:,} images"
        found[what] = f"{100 * low:.2f} – {100 * high:.2f} %"
    found |= {f"test {name}": _number(name, value) for name, value in result.test_metrics.items() if name != "acc"}
    if (gap := result.gap) is not None:
        at = "" if result.tested is result.history[-1] else f", epoch {result.tested['epoch']}"
        found[f"gap, train − test accuracy{at}"] = f"{100 * gap:+.2f} points".replace("-", "−")
    return found | {"to train": f"{result.train_seconds:.1f} s"}


def _head(result: Result, notes: list[str]) -> list[str]:
    """Return what was run, its warnings, the main numbers and the command."""
    data, target = result.data, result.model["target"].rpartition(".")[2]
    numbers = _numbers(result)
    tiles = "".join(f"<div><b>{value}</b><span>{what}</span></div>" for what, value in numbers.items())
    # The run's folder is no longer empty and would be refused.
    command = shlex.join(word for word in shlex.split(result.command) if not word.startswith("hydra.run.dir="))
    return [
        f"<h1>{escape(result.name)}</h1>",
        f"<p class=note>{escape(target)}, {result.model['parameters']:,} parameters, on {escape(data['name'])}, "
        f"seed {escape(str(result.seed))}, {escape(result.started_at[:16].replace('T', ' '))}</p>",
        "<div class=warning>" + "".join(f"<p>{escape(note)}</p>" for note in notes) + "</div>" if notes else "",
        f"<div class=numbers>{tiles}</div>",
        f"<p class=note>The command that repeats it</p><pre class=command>{escape(command)}</pre>",
    ]


def _calibration(answers: Answers, images: dict[str, str]) -> list[str]:
    bins = calibration_bins(answers)
    if not bins:
        return ["<p>The network gives no finite probability.</p>"]
    return [
        images["calibration"],
        f"<p>Expected calibration error: <b>{percent(calibration_error(bins))}</b></p>",
        f"<p class=note>The mean distance of confidence from accuracy, in {BINS} bins (Guo et al. 2017). "
        "Error bars: 95 % intervals (Wilson).</p>",
    ]


def _mistakes(result: Result, answers: Answers, images: dict[str, str]) -> list[str]:
    wrong, counted = len(answers.mistakes), result.test["n"] - result.test["correct"]
    parts = []
    if "mistakes" in images:
        of = f"{MISTAKES} of {wrong:,} mistakes" if wrong > MISTAKES else "All mistakes"
        parts = [f"<p class=note>{of}, the surest first, with the network's probabilities.</p>", images["mistakes"]]
    elif wrong:
        parts = ["<p>The network gives no finite probability.</p>"]
    else:
        parts = ["<p>None.</p>"]
    if wrong != counted:
        precision = result.machine.get("precision") or result.config.get("trainer", {}).get(
            "precision", "its precision"
        )
        how = f"{precision} on {result.machine['accelerator']}"
        parts.append(
            f"<p class=note>The test counted {counted:,} mistakes, in {escape(how)}; predicted again for this page, in "
            f"float32, there are {wrong:,}.</p>"
        )
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<div class=wide><table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table></div>"
    )


def _most_confused(answers: Answers) -> str:
    """Return the eight most frequent confusions of a class with another."""
    counts = answers.confusion()
    of = counts.sum(1)
    pairs = [(int(counts[a, b]), a, b) for a, b in counts.nonzero().tolist() if a != b]
    rows = [
        [answers.classes[label], answers.classes[taken], f"{times:,}", percent(times / int(of[label]))]
        for times, label, taken in sorted(pairs, key=lambda pair: -pair[0])[:8]
    ]
    if not rows:
        return "<p>No mistake.</p>"
    return "<p class=note>The most frequent mistakes</p>" + _table(
        ("label", "taken for", "times", "of its images"), rows
    )


def _class_table(answers: Answers) -> str:
    counts = answers.confusion()
    precision, recall = precision_recall(counts)
    rows = []
    for k, name in enumerate(answers.classes):
        p, r = float(precision[k]), float(recall[k])
        values = ["–" if value != value else f"{100 * value:.2f} %" for value in (p, r)]
        rows.append([name, f"{int(counts[k].sum()):,}", *values])
    found = _table(("class", "test images", "precision", "recall"), rows)
    opened = " open" if len(rows) <= READABLE else ""
    return f"<details{opened}><summary>In numbers</summary>{found}</details>"


def _layer_table(layers: Sequence[Layer], model: dict[str, Any]) -> str:
    parameters, trainable = model["parameters"], model["trainable_parameters"]
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


def _commit(code: dict[str, Any]) -> str:
    return code["commit"][:12] + (", with changes" if code["changed"] else "") if code["commit"] else "no checkout"


def _facts(result: Result) -> str:
    """Return how, when and where the numbers were measured."""
    machine, data, code = result.machine, result.data, result.code
    counts = {"train": "train", "val": f"validation ({data.get('val_from')})", "test": "test"}
    parts = [f"{data[part]:,} {name}" for part, name in counts.items() if data.get(part)]
    sizes = f": {', '.join(parts)} images" if parts else ""
    digest = f"SHA-256 {data['digest']}" if data.get("digest") else ""
    tested = f", on {result.test['n']:,} images" if result.test["n"] else ""
    epoch = median(row["seconds"] for row in result.history)
    checkouts = [f"mnist_lab {code['version']}, {_commit(code)}"]
    checkouts += [f"{name}, {_commit(found)}" for name, found in code.get("own_repositories", {}).items()]
    processes = f", {machine['processes']} processes" if machine["processes"] > 1 else ""
    memory = [f"{machine['memory_gb']:.2f} GB of the process"] if machine.get("memory_gb") else []
    if machine.get("accelerator_memory_gb"):
        memory.append(f"{machine['accelerator_memory_gb']:.2f} GB on the {machine['accelerator']}")
    facts = {
        "time": "{start:.1f} s to start, {train:.1f} s to train, {test:.1f} s to test".format(**result.seconds),
        "epochs": f"{len(result.history)}, of {epoch:.2f} s, the median",
        "most memory": ", ".join(memory) or "not recorded",
        "data": "; ".join(filter(None, (data["name"] + sizes, digest))),
        "tested": f"the {result.test['checkpoint']} checkpoint{tested}",
        "device": f"{machine['accelerator_name'] or machine['accelerator']}{processes}",
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads",
        "system": machine["system"],
        "code": "; ".join(checkouts),
        "packages": ", ".join(f"{name} {version}" for name, version in result.packages.items()),
        "started": result.started_at,
    }
    rows = "".join(f"<tr><td>{name}</td><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table class=facts>{rows}</table>"
