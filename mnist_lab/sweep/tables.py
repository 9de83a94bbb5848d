"""A comparison as text: on the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mnist_lab.metrics import is_accuracy

if TYPE_CHECKING:
    from mnist_lab.sweep.groups import Group
    from mnist_lab.sweep.sections import Section

Ranked = Sequence[tuple["Section", Sequence["Group"]]]
"""Each section with its groups, best first."""
SIGNIFICANT = 0.05
APART = "Runs with another task, other test images or limited batches stand apart: their numbers can't be compared."

HEADER = ("runs", "mean", "± 95 %", "std", "n", "difference to the best", "parameters", "s to train")


def rows(groups: Sequence[Group], metric: str) -> list[list[str]]:
    """Return the table's cells, one row per group, with HEADER's columns."""

    def number(value: float | None) -> str:
        if value is None or math.isnan(value):
            return ""
        return f"{100 * value:.2f} %" if is_accuracy(metric) else f"{value:.4g}"

    found = []
    for group in groups:
        if group is groups[0]:
            difference = "best"
        elif group.p is None:
            difference = "unknown: fewer than two runs"
        else:
            difference = f"p = {group.p:.2g}" + ("" if group.p < SIGNIFICANT else ", not significant")
        found.append(
            [
                group.name,
                number(group.mean),
                number(group.interval),
                number(group.spread),
                str(len(group.values)),
                difference,
                f"{group.results[0].model['parameters']:,}",
                f"{group.seconds:.1f}",
            ]
        )
    return found


FOOT = (
    "± 95 %: half of the confidence interval of the mean, from Student's t. p: Welch's t-test against the best, "
    "two-sided; below 0.05 counts as significant, without a correction for the number of groups."
)


def markdown(ranked: Ranked, metric: str) -> str:
    """Return the comparison as a Markdown table, one for each section."""
    lines = [APART, ""] if len(ranked) > 1 else []
    for section, groups in ranked:
        lines += [f"## {section.headline}", ""] if len(ranked) > 1 else []
        lines += [f"{metric}, best first", "", "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows(groups, metric)]
        lines += ["", *([section.baseline, ""] if section.baseline else [])]
    return "\n".join([*lines, FOOT, *(f"\nNote: {note}" for note in notes_of(ranked))]) + "\n"


def table(ranked: Ranked, metric: str) -> str:
    """Return the comparison as CSV: a row a group, with unrounded numbers; p is of a test within its section."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    apart = ["data.name"] if len({section.data for section, _ in ranked}) > 1 else []
    keys = list(dict.fromkeys([*apart, *(key for _, groups in ranked for key in groups[0].differs)]))
    columns = ["metric", "mean", "ci95", "std", "n", "p", "parameters", "train_seconds", "section", "most_frequent_acc"]
    writer.writerow(map(cell, [*keys, *columns]))
    for section, groups in ranked:
        for group in groups:
            numbers = [group.mean, group.interval, group.spread, len(group.values), group.p]
            cost = [group.results[0].model["parameters"], round(group.seconds, 3)]
            own = [({"data.name": section.data} | group.differs).get(key) for key in keys]
            writer.writerow(map(cell, [*own, metric, *numbers, *cost, section.headline, section.frequent_acc]))
    return text.getvalue()


def cell(value: Any) -> Any:
    """Return a value as a table's cell: a text that a spreadsheet would compute gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and re.match(r"\s*[=+\-@]", value) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def notes_of(ranked: Ranked) -> list[str]:
    """Return the notes that readers of the comparison must see, each once."""
    groups = [group for _, found in ranked for group in found]
    notes = sorted({note for group in groups for result in group.results for note in result.notes})
    if repeated := sum(group.repeated for group in groups):
        notes.append(
            f"{repeated} finished run(s) left out: each repeats one that counts, as rerun found, or is a copy."
        )
    if same := sum(group.same_seeds for group in groups):
        identical = sum(group.identical for group in groups)
        notes.append(
            f"{same} run(s) have the settings and the seeds of another one, {identical} of them its numbers to the "
            "last digit too. Nothing says that they repeat it (rerun would), so n counts each; if they do, n is too "
            "large and the interval too narrow."
        )
    return notes


def show(ranked: Ranked, metric: str) -> None:
    """Print the comparison."""
    from rich import get_console
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    from mnist_lab.terminal import literal

    console = Console(width=max(140, get_console().width))
    right: Any = {"justify": "right"}
    if len(ranked) > 1:
        console.print(APART)
    for section, groups in ranked:
        if len(ranked) > 1:
            console.print(f"\n{literal(section.headline)}", style="bold", highlight=False)
        columns = [Column(HEADER[0], ratio=1), *(Column(name, no_wrap=True, **right) for name in HEADER[1:])]
        found = Table(*columns, box=SIMPLE_HEAD, title=f"{metric}, best first", title_justify="left")
        for row in rows(groups, metric):
            found.add_row(*map(literal, row))
        console.print(found)
        if section.baseline:
            console.print(f"{literal(section.baseline)}\n", highlight=False)
    console.print(FOOT, style="dim")
    for note in notes_of(ranked):
        console.print(f"note: {literal(note)}", highlight=False)
