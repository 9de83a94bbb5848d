"""The verb `compare`: runs grouped by everything but the seed, best first, with tests of the differences."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mnist_lab.bench.contenders import MEASURED, PEERS
from mnist_lab.errors import UserError, closest, no_such
from mnist_lab.files import write_whole
from mnist_lab.folders import check_folder
from mnist_lab.metrics import ALL
from mnist_lab.result import Result
from mnist_lab.sweep.groups import Peer, grouped
from mnist_lab.sweep.sections import sections
from mnist_lab.sweep.tables import markdown, show, table
from mnist_lab.terminal import relative
from mnist_lab.words import is_there, path_of

USAGE = "use: python -m mnist_lab compare DIR [DIR ...] [metric=test/acc] [dir=FOLDER for the files]"


def compare(words: list[str]) -> None:
    """Prints the comparison of all runs below some folders, and writes it where `dir=` says.

    Args:
        words: folders, `metric=NAME` (test/acc) and `dir=FOLDER`, where compare.html, .md and .csv are written;
            default: a single folder itself, and nowhere for several. Measurements of `bench` below the folders are
            drawn beside the runs.

    Raises:
        UserError: a word is not understood, a folder is missing, or there is no finished run.
    """
    metric, target, folders = "test/acc", None, []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key == "metric":
            metric = value
        elif equals and key == "dir":
            target = path_of(value)
        elif equals and not is_there(word):
            raise UserError(f"{word}: not understood.{closest(key, ['metric', 'dir'])}\n{USAGE}")
        else:
            folders.append(path_of(word))
    if metric not in ALL:
        raise no_such("metric", metric, "metric", ALL)
    if not folders:
        raise UserError(USAGE)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")
    if target is not None:
        check_folder("dir", str(target), fresh=False)
    runs = [path.parent for path in _below(folders, "result.json")]
    results = [Result.load(run) for run in runs]
    if not results:
        raise UserError(f"no finished run in {', '.join(map(str, folders))}: none has a result.json")
    ranked = [(section, grouped(section.results, metric)) for section in sections(results, metric)]
    peers = peers_below(folders)
    show(ranked, metric)
    folder_of = {id(result): run for run, result in zip(runs, results, strict=True)}
    for section, (best, *_) in ranked:
        places = [str(relative(folder_of[id(result)])) for result in best.results]
        where = f"  ({section.headline})" if len(ranked) > 1 else ""
        print(f"best     {'  '.join(places[:3])}{'  ...' if len(places) > 3 else ''}{where}")
    if target is None and len(folders) == 1:
        target = folders[0]
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        from mnist_lab.sweep.report import page

        write_whole(target / "compare.md", markdown(ranked, metric))
        write_whole(target / "compare.csv", table(ranked, metric))
        write_whole(
            target / "compare.html",
            page(ranked, metric, " ".join(folder.name or str(folder.resolve().name) for folder in folders), peers),
        )
        print("files    " + "  ".join(str(target / f"compare.{kind}") for kind in ("html", "md", "csv")))


def _below(folders: Sequence[Path], name: str) -> list[Path]:
    """All files of this name, each once even if one folder is below another."""
    return list(dict.fromkeys(path.resolve() for folder in folders for path in sorted(folder.rglob(name))))


def peers_below(folders: Sequence[Path]) -> list[Peer]:
    """The peers whose measurements by the verb `bench` are in these folders or below them.

    Raises:
        UserError: a file of measurements is damaged.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for path in (path for name in MEASURED for path in _below(folders, name)):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("contender") not in PEERS or "acc" not in row:  # ours, or a file of another kind
                    continue
                try:
                    key, round_ = (PEERS[row["contender"]], row["network"]), (float(row["train_s"]), float(row["acc"]))
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(f"{path} is not as the benchmark leaves it: {row}") from error
                found.setdefault(key, []).append(round_)
    return [Peer(*key, *zip(*rounds, strict=True)) for key, rounds in found.items()]
