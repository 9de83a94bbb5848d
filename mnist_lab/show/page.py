"""The text and tables of a run's report, around its figures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Any

from omegaconf import OmegaConf

from mnist_lab.result import Result
from mnist_lab.show.figures import (
    BINS,
    MISTAKES,
    READABLE,
    Answers,
    Layer,
    calibration_bins,
    calibration_error,
    percent,
    precision_recall,
    wilson_interval,
)
from mnist_lab.show.style import document


def page(
    result: Result, answers: Answers, layers: Sequence[Layer], images: dict[str, str], notes: list[str], weights: str
) -> str:
    """The page's HTML.

    Args:
        result: what the run recorded.
        answers: its network's predictions for the test images.
        layers: the network's layers.
        images: the figures by name, as HTML elements.
        notes: warnings to show at the top.
        weights: caption of the weights' figure; empty if there is none.
    """
    parts = [
        *_head(result, notes),
        _section(
            "Loss and accuracy by epoch",
            images["curves"],
            "<p class=note>Training's values are taken while the weights change, with dropout on if there is any; "
            "validation's and the test's afterwards, with dropout off.</p>",
        ),
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
        _section("The network", images["network"], _layer_table(layers, result.model)),
    ]
    if weights:
        parts.append(_section("What the first layer looks for", images["weights"], f"<p class=note>{weights}</p>"))
    config = OmegaConf.to_yaml(OmegaConf.create(result.config))
    parts += [
        _section("Time, memory, and what it ran on", _facts(result)),
        f"<details><summary>Every value of the config</summary><pre>{escape(config)}</pre></details>",
    ]
    return document(f"{result.name}: {percent(result.test['acc'])}", parts)


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(content)}</section>"


def _head(result: Result, notes: list[str]) -> list[str]:
    """What was run, its warnings, the main numbers and the command."""
    test, data, target = result.test, result.data, result.model["target"].rpartition(".")[2]
    low, high = wilson_interval(test["correct"], test["n"])
    gap = 100 * (result.tested["train/acc"] - test["acc"])
    at = "" if result.tested is result.history[-1] else f", epoch {result.tested['epoch']}"
    gap_of = f"gap, train − test accuracy{at}"
    numbers = {
        "test accuracy": percent(test["acc"]),
        f"its 95 % interval: {test['correct']:,} of {test['n']:,} images": f"{100 * low:.2f} – {100 * high:.2f} %",
        "test loss": "not finite" if test["loss"] is None else f"{test['loss']:.4f}",
        gap_of: f"{gap:+.2f} points".replace("-", "−"),
        "to train": f"{result.train_seconds:.1f} s",
    }
    shown = "".join(f"<div><b>{value}</b><span>{what}</span></div>" for what, value in numbers.items())
    # The run's folder is no longer empty and would be refused.
    command = shlex.join(word for word in shlex.split(result.command) if not word.startswith("hydra.run.dir="))
    return [
        f"<h1>{escape(result.name)}</h1>",
        f"<p class=note>{escape(target)}, {result.model['parameters']:,} parameters, on {escape(data['name'])}, "
        f"seed {escape(str(result.seed))}, {escape(result.started_at[:16].replace('T', ' '))}</p>",
        "<div class=warning>" + "".join(f"<p>{escape(note)}</p>" for note in notes) + "</div>" if notes else "",
        f"<div class=numbers>{shown}</div>",
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
        precision = result.machine.get("precision", result.config["trainer"]["precision"])
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
    """The eight most frequent confusions of a class with another."""
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
    shown = " open" if len(rows) <= READABLE else ""
    return f"<details{shown}><summary>In numbers</summary>{found}</details>"


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
    """How, when and where the numbers were measured."""
    machine, data, code = result.machine, result.data, result.code
    validation = f"{data['val']:,} validation ({data['val_from']}), " if data["val"] else ""
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
        "data": f"{data['name']}: {data['train']:,} train, {validation}{data['test']:,} test images; "
        f"SHA-256 {data['digest']}",
        "tested": f"the {result.test['checkpoint']} checkpoint, on {result.test['n']:,} images",
        "device": f"{machine['accelerator_name'] or machine['accelerator']}{processes}",
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads",
        "system": machine["system"],
        "code": "; ".join(checkouts),
        "packages": ", ".join(f"{name} {version}" for name, version in result.packages.items()),
        "started": result.started_at,
    }
    rows = "".join(f"<tr><td>{name}</td><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table class=facts>{rows}</table>"
