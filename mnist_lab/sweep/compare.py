"""The verb `compare`: runs grouped by everything but the seed, best first, with tests of the differences."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_lab.bench.contenders import MEASURED, PEERS
from mnist_lab.errors import UserError, closest, no_such, printable
from mnist_lab.files import read_text, write_whole
from mnist_lab.folders import check_folder
from mnist_lab.metrics import ALL, MODES, MONITOR, Mode, known_mode, mode_of, split
from mnist_lab.result import Result
from mnist_lab.rules import one_of
from mnist_lab.sweep.groups import Peer, grouped
from mnist_lab.sweep.sections import sections
from mnist_lab.sweep.tables import markdown, show, table
from mnist_lab.terminal import relative
from mnist_lab.words import is_there, path_of

USAGE = "use: python -m mnist_lab compare DIR [DIR ...] [metric=test/acc] [mode=min|max] [dir=FOLDER for the files]"


def compare(words: list[str]) -> None:
    """Print the comparison of all runs below some folders, and write it where `dir=` says.

    Args:
        words: folders; `metric=NAME`, any metric that the runs have, default test/acc, or the runs' monitor where they
            have no accuracy; `mode=min` or `mode=max`, needed only where neither the metric's name nor the runs' own
            `mode` says; and `dir=FOLDER`, where compare.html, .md and .csv are written, default a single folder itself,
            and nowhere for several. Measurements of `bench` below the folders are drawn beside the runs.

    Raises:
        UserError: a word is not understood, a folder is missing, there is no finished run, or none has the metric.
    """
    options, folders = _parse(words)
    target = path_of(options["dir"]) if options["dir"] else folders[0] if len(folders) == 1 else None
    runs, results = finished_below(folders)
    metric = _metric(results, options["metric"])
    if not results:
        raise UserError(f"no finished run in {', '.join(map(str, folders))}: none has a result.json that can be read")
    mode = _mode(results, metric, options["mode"])
    ranked = [(section, grouped(section.results, metric, mode)) for section in sections(results, metric)]
    peers = peers_below(folders)
    show(ranked, metric)
    folder_of = {id(result): run for run, result in zip(runs, results, strict=True)}
    for section, (best, *_) in ranked:
        places = [str(relative(folder_of[id(result)])) for result in best.results]
        where = f"  ({section.headline})" if len(ranked) > 1 else ""
        print(printable(f"best     {'  '.join(places[:3])}{'  ...' if len(places) > 3 else ''}{where}"))
    if target is not None:
        from mnist_lab.sweep.report import page

        target.mkdir(parents=True, exist_ok=True)
        title = " ".join(folder.name or str(folder.resolve().name) for folder in folders)
        write_whole(target / "compare.md", markdown(ranked, metric))
        write_whole(target / "compare.csv", table(ranked, metric))
        write_whole(target / "compare.html", page(ranked, metric, title, peers, mode))
        print(printable("files    " + "  ".join(str(target / f"compare.{kind}") for kind in ("html", "md", "csv"))))


def finished_below(folders: Sequence[Path]) -> tuple[list[Path], list[Result]]:
    """Return the folders of the finished runs below some folders, and their results. Name each that is damaged."""
    runs, results = [], []
    for path in _below(folders, "result.json"):
        try:
            results.append(Result.load(path.parent))
            runs.append(path.parent)
        except UserError as error:
            print(printable(f"left out: {error}"), file=sys.stderr)
    return runs, results


def _parse(words: Sequence[str]) -> tuple[dict[str, str], list[Path]]:
    """Return the verb's options and folders."""
    options, folders = {"metric": "", "mode": "", "dir": ""}, []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in options:
            options[key] = value
        elif equals and not is_there(word):
            raise UserError(f"{word}: not understood.{closest(key, list(options))}\n{USAGE}")
        else:
            folders.append(path_of(word))
    if not folders:
        raise UserError(USAGE)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")
    if options["mode"]:
        one_of("min", "max").check("mode", options["mode"])
    if options["dir"]:
        check_folder("dir", str(path_of(options["dir"])), fresh=False)
    return options, folders


def _metric(results: Sequence[Result], asked: str) -> str:
    """Return the metric that is compared: the one asked for, else test/acc, or what the runs are judged by."""
    known = list(dict.fromkeys(name for result in results for name in result.metrics)) or ALL
    if asked and asked not in known:
        raise no_such("metric", asked, "metric in these runs", known)
    monitors = [str(result.config.get("monitor", MONITOR)) for result in results]
    wanted = ("test/acc", *(monitor.replace("val/", "test/", 1) for monitor in monitors), *monitors)
    return asked or next((name for name in wanted if name in known), known[0])


def _mode(results: Sequence[Result], metric: str, asked: str) -> Mode:
    """Return whether the metric is to be small or large.

    As asked; for a metric of `MODES`, as its name says, which no run's config may contradict; else as the configs say.
    """
    if asked:
        return mode_of(metric, asked)
    if (named := MODES.get(split(metric)[1])) is not None:
        return named
    configs = [result.config for result in results]
    found = [known_mode(metric, config.get("mode"), config.get("monitor")) for config in configs]
    modes = {mode for mode in found if mode is not None}
    if len(modes) != 1:
        raise UserError(f"metric={metric}: is it to be small or large? Add mode=min or mode=max")
    return modes.pop()


def _below(folders: Sequence[Path], name: str) -> list[Path]:
    """Return all files of this name, each once even if one folder is below another."""
    paths = (path for folder in folders for path in sorted(folder.rglob(name)))
    return list(dict.fromkeys(path.parent.resolve() / name for path in paths))


def peers_below(folders: Sequence[Path]) -> list[Peer]:
    """Return the peers whose measurements by the verb `bench` are in these folders or below them.

    Raises:
        UserError: a file of measurements is damaged.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for path in (path for name in MEASURED for path in _below(folders, name)):
        try:
            for row in csv.DictReader(read_text(path).splitlines()):
                if row.get("contender") not in PEERS or "acc" not in row:  # ours, or a file of another kind
                    continue
                key, round_ = (PEERS[row["contender"]], row["network"]), (float(row["train_s"]), float(row["acc"]))
                found.setdefault(key, []).append(round_)
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not as the benchmark leaves it: {error!r}") from error
    return [Peer(*key, *zip(*rounds, strict=True)) for key, rounds in found.items()]
