"""The verb `ensemble`: several runs' networks tested together, by the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from mnist_lab.errors import UserError
from mnist_lab.result import Result
from mnist_lab.run_folder import load_config
from mnist_lab.words import is_there, path_of

if TYPE_CHECKING:
    from torch import Tensor

USAGE = "use: python -m mnist_lab ensemble DIR [DIR ...] [key=value of the runs' config, such as data.root=DIR ...]"


def ensemble(words: list[str]) -> None:
    """Test the runs below some folders together: each image gets the class with the highest mean probability.

    Show each run's result on the test set as it is now, their mean, and the ensemble's. Losses are the mean of -ln of
    the true class's probability, whatever loss a run was trained with.

    Args:
        words: folders of runs or sweeps, or folders above them; and `key=value` to replace in the runs' configs.

    Raises:
        UserError: there are fewer than two finished runs, two are the same or have different test sets, or a word is
            not understood.
    """
    overrides = [word for word in words if "=" in word and not is_there(word)]
    folders = [path_of(word) for word in words if word not in overrides]
    if not folders:
        raise UserError(USAGE)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")
    members = sorted({path.parent.resolve() for folder in folders for path in folder.rglob("result.json")})
    if len(members) < 2:
        raise UserError(
            f"{len(members) or 'no'} finished run in {', '.join(map(str, folders))}: an ensemble has two or more"
        )
    results = [Result.load(member) for member in members]
    for member in members:
        load_config(member, overrides)
    check_alike(members, results)
    _test(members, results, overrides)


def check_alike(members: Sequence[Path], results: Sequence[Result]) -> None:
    """Check that runs can be tested together.

    Raises:
        UserError: two runs are the same, or were tested on different images.
    """
    seen: dict[str, Path] = {}
    for member, result in zip(members, results, strict=True):
        if (first := seen.setdefault(repr((result.started_at, result.seed, result.history)), member)) != member:
            raise UserError(f"{member} is a copy of {first}: an ensemble has different runs")
        for fact, what in (("digest", "files"), ("classes", "classes")):
            if result.data[fact] != results[0].data[fact]:
                raise UserError(f"{member} and {members[0]} were tested on different {what}: they can't be averaged")
        if result.test["n"] != results[0].test["n"]:
            raise UserError(f"{member} and {members[0]} were tested on different numbers of images")


def _test(members: Sequence[Path], results: Sequence[Result], overrides: list[str]) -> None:
    import torch

    from mnist_lab.build import build_tested
    from mnist_lab.show.report import answers_of
    from mnist_lab.terminal import relative, warn
    from mnist_lab.trained import load_classifier

    total: Tensor | float = 0.0
    doubts = {note for result in results for note in result.notes}
    rows: list[tuple[str, dict[str, float]]] = []
    for member, result in zip(members, results, strict=True):
        run = load_classifier(member, result.test["checkpoint"], overrides)
        data = build_tested(run.cfg, member)
        assert data.images is not None
        if data.images.digest != result.data["digest"]:
            doubts.add("These are not the files that the runs recorded: their digest differs.")
        answers = answers_of(run, result, data)
        total = total + answers.probabilities
        accuracy = float((answers.probabilities.argmax(1) == answers.labels).double().mean())
        rows.append((str(relative(member)), {"loss": _loss(answers.probabilities, answers.labels), "acc": accuracy}))
    title = f"{len(members)} runs, test, {len(answers.labels):,} images of {results[0].data['name']}"
    _show(title, rows, torch.as_tensor(total) / len(members), answers.labels)
    warn(sorted(doubts))


def _loss(probabilities: Tensor, labels: Tensor) -> float:
    return float(-probabilities[range(len(probabilities)), labels].log().mean())


def _show(title: str, rows: list[tuple[str, dict[str, float]]], mean: Tensor, labels: Tensor) -> None:
    """Show the table: a row a run, their mean, and the ensemble, whose probabilities are `mean`."""
    from mnist_lab.terminal import metrics_table, show

    correct, n = int((mean.argmax(1) == labels).sum()), len(labels)
    table = metrics_table(title, rows)
    table.add_section()
    losses, accuracies = ([metrics[name] for _, metrics in rows] for name in ("loss", "acc"))
    table.add_row("mean of one", f"{fmean(losses):.4f}", f"{fmean(accuracies):.2%}")
    table.add_row("standard deviation", "", f"{100 * stdev(accuracies):.2f} points")
    table.add_row("all together", f"{_loss(mean, labels):.4f}", f"{correct / n:.2%}", style="bold")
    table.add_row("wrong, of all images", "", f"{n - correct:,}")
    show(table)
