"""The verb `ensemble`: what several runs' networks see together, by the mean of their probabilities."""

from __future__ import annotations

from statistics import fmean, stdev

from mnist_lab.errors import UserError
from mnist_lab.evaluate import load_config
from mnist_lab.result import Result
from mnist_lab.words import is_there, path_of

USAGE = "use: python -m mnist_lab ensemble DIR [DIR ...] [key=value of the runs' config, such as data.root=DIR ...]"


def ensemble(words: list[str]) -> None:
    """Tests the runs below some folders together: each image gets the class of the highest mean probability.

    Shows each run's test result, their mean, and the ensemble's. Losses are the mean of -ln of the probability that the
    right class gets, whatever a run was trained with.

    Args:
        words: folders of runs, of sweeps, or above them; and values of the runs' own configs to replace.

    Raises:
        UserError: there are not two finished runs of the same test set there, or a word is not understood.
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
    for member, result in zip(members, results, strict=True):
        load_config(member, overrides)
        for fact, what in (("digest", "files"), ("classes", "classes")):
            if result.data[fact] != results[0].data[fact]:
                raise UserError(f"{member} and {members[0]} were tested on different {what}: they can't be averaged")
        if result.test["n"] != results[0].test["n"]:
            raise UserError(f"{member} and {members[0]} were tested on different numbers of images")

    from torch import Tensor, zeros

    from mnist_lab.build import build_tested
    from mnist_lab.show.report import answers_of
    from mnist_lab.terminal import metrics_table, relative, show, warn
    from mnist_lab.trained import load_run

    def loss_of(probabilities: Tensor) -> float:
        return float(-probabilities[range(len(probabilities)), answers.labels].log().mean())

    mean, losses = zeros(0), []
    rows: list[tuple[str, float | None, float]] = []
    for member, result in zip(members, results, strict=True):
        run = load_run(member, result.test["checkpoint"], overrides)
        answers = answers_of(run, result, build_tested(run.cfg, member))
        mean = answers.probabilities.double() / len(members) + (mean if len(mean) else 0)
        losses.append(loss_of(answers.probabilities.double()))
        rows.append((str(relative(member)), losses[-1], result.test["acc"]))
    correct = int((mean.argmax(1) == answers.labels).sum())
    n = len(answers.labels)
    title = f"{len(members)} runs, test, {n:,} images of {results[0].data['name']}"
    table = metrics_table(title, rows)
    table.add_section()
    accuracies = [row[2] for row in rows]
    table.add_row("mean of one", f"{fmean(losses):.4f}", f"{fmean(accuracies):.2%}")
    table.add_row("standard deviation", "", f"{100 * stdev(accuracies):.2f} points")
    table.add_row("all together", f"{loss_of(mean):.4f}", f"{correct / n:.2%}", style="bold")
    table.add_row("wrong, of all images", "", f"{n - correct:,}")
    show(table)
    warn(sorted({note for result in results for note in result.notes}))
