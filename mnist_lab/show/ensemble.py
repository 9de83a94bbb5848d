"""The verb `ensemble`: several runs' networks tested together, by the mean of their probabilities."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

from mnist_lab.errors import UserError
from mnist_lab.result import Result
from mnist_lab.run_folder import load_config
from mnist_lab.words import is_there, path_of

USAGE = "use: python -m mnist_lab ensemble DIR [DIR ...] [key=value of the runs' config, such as data.root=DIR ...]"


def ensemble(words: list[str]) -> None:
    """Tests the runs below some folders together: each image gets the class with the highest mean probability.

    Shows each run's result on the test set as it is now, their mean, and the ensemble's. Losses are the mean of -ln of
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
    seen: dict[str, Path] = {}
    for member, result in zip(members, results, strict=True):
        load_config(member, overrides)
        if (first := seen.setdefault(repr((result.started_at, result.seed, result.history)), member)) != member:
            raise UserError(f"{member} is a copy of {first}: an ensemble has different runs")
        for fact, what in (("digest", "files"), ("classes", "classes")):
            if result.data[fact] != results[0].data[fact]:
                raise UserError(f"{member} and {members[0]} were tested on different {what}: they can't be averaged")
        if result.test["n"] != results[0].test["n"]:
            raise UserError(f"{member} and {members[0]} were tested on different numbers of images")

    import torch

    from mnist_lab.build import build_tested
    from mnist_lab.show.report import answers_of
    from mnist_lab.terminal import metrics_table, relative, show, warn
    from mnist_lab.trained import load_run

    def loss_of(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
        return float(-probabilities[range(len(probabilities)), labels].log().mean())

    found: list[torch.Tensor] = []
    doubts = {note for result in results for note in result.notes}
    rows: list[tuple[str, float | None, float]] = []
    for member, result in zip(members, results, strict=True):
        run = load_run(member, result.test["checkpoint"], overrides)
        data = build_tested(run.cfg, member)
        assert data.images is not None
        if data.images.digest != result.data["digest"]:
            doubts.add("These are not the files that the runs recorded: their digest differs.")
        answers = answers_of(run, result, data)
        found.append(answers.probabilities)
        accuracy = float((answers.probabilities.argmax(1) == answers.labels).double().mean())
        rows.append((str(relative(member)), loss_of(found[-1], answers.labels), accuracy))
    mean, labels = torch.stack(found).mean(0), answers.labels
    correct, n = int((mean.argmax(1) == labels).sum()), len(labels)
    title = f"{len(members)} runs, test, {n:,} images of {results[0].data['name']}"
    table = metrics_table(title, rows)
    table.add_section()
    accuracies = [row[2] for row in rows]
    table.add_row(
        "mean of one", f"{fmean(row[1] for row in rows if row[1] is not None):.4f}", f"{fmean(accuracies):.2%}"
    )
    table.add_row("standard deviation", "", f"{100 * stdev(accuracies):.2f} points")
    table.add_row("all together", f"{loss_of(mean, labels):.4f}", f"{correct / n:.2%}", style="bold")
    table.add_row("wrong, of all images", "", f"{n - correct:,}")
    show(table)
    warn(sorted(doubts))
