"""Two recipes for the same accuracy in turn: ours, by its command, and the public record."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean, median, stdev
from subprocess import PIPE

from mnist_lab.bench.contenders import MEASURED, RECORD, running
from mnist_lab.environment import cores, package_versions, processor
from mnist_lab.errors import UserError
from mnist_lab.files import write_whole
from mnist_lab.result import Result

RUNNERS = {"ours": "experiment=fast99", "record": f"{RECORD}, channels last"}


@dataclass
class Run:
    """Time and accuracy of one training."""

    round: int
    """The round, which is also the seed."""
    network: str
    contender: str
    train_s: float
    """Seconds of training alone, with images in memory; for ours, from the call of the Trainer's fit to its return."""
    acc: float
    """Accuracy on the 10,000 test images, in [0, 1]."""


def race(rounds: int, folder: Path, root: Path) -> None:
    """Train each recipe once per round, with the round as the seed; print a table and write it to a folder.

    Args:
        rounds: number of rounds; the seeds are 0 to rounds - 1.
        folder: where to write race.md and race.csv.
        root: the folder of the data sets, as data.root.

    Raises:
        UserError: a training failed.
    """
    runs: list[Run] = []
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(rounds):
        for runner in RUNNERS:
            run = _train(runner, seed, root)
            runs.append(run)
            print(f"seed {seed:2}  {runner:6}  {run.train_s:5.2f} s  {run.acc:.2%}", flush=True)
        with (folder / MEASURED[1]).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(runs[0])))
            writer.writeheader()
            writer.writerows(map(asdict, runs))
        write_whole(folder / "race.md", table(runs))
    print((folder / "race.md").read_text())
    print(f"{folder}/race.md  {folder}/race.csv")


def _train(runner: str, seed: int, root: Path) -> Run:
    with tempfile.TemporaryDirectory() as scratch:
        words = ["mnist_lab.bench.record_recipe", str(seed)]
        if runner == "ours":
            words = [
                "mnist_lab",
                "experiment=fast99",
                f"seed={seed}",
                f"hydra.run.dir={scratch}/run",
                "report=false",
            ]
        environment = {**os.environ, "BENCH_DATA": str(root), "MNIST_LAB_DATA": str(root)}
        with running(words, env=environment, stdout=PIPE, stderr=PIPE, text=True) as process:
            shown, errors = process.communicate()
        if process.returncode != 0:
            raise UserError(f"{runner} failed with seed {seed}:\n{(shown + errors)[-2000:]}")
        if runner == "ours":
            result = Result.load(Path(scratch) / "run")
            return Run(seed, "fast99", runner, result.seconds["train"], result.test["acc"])
        found = json.loads(shown.splitlines()[-1])
        return Run(seed, "fast99", runner, found["seconds"], found["acc"])


def table(runs: list[Run]) -> str:
    """Return the race as Markdown, with the ratio of the seconds in each round."""
    times_of: dict[str, list[float]] = {}
    lines = ["| | test accuracy, mean ± std | seconds to train, median (range) | n |", "|---|---|---|---|"]
    for runner, what in RUNNERS.items():
        mine = [run for run in runs if run.contender == runner]
        times_of[runner] = times = [run.train_s for run in mine]
        accs = [run.acc for run in mine]
        spread = f" ± {100 * stdev(accs):.2f}" if len(accs) > 1 else ""
        lines.append(
            f"| {what} | {100 * fmean(accs):.2f}{spread} % | {median(times):.2f} ({min(times):.2f}–{max(times):.2f}) "
            f"| {len(mine)} |"
        )
    ratios = [ours / record for ours, record in zip(times_of["ours"], times_of["record"], strict=True)]
    lines += [f"| ours ÷ record | | **{median(ratios):.2f}** ({min(ratios):.2f}–{max(ratios):.2f}) | {len(ratios)} |"]
    where = f"{processor()}, {cores()} cores, torch {package_versions()['torch']}, {datetime.now():%Y-%m-%d}"
    return "\n".join([*lines, "", where, ""])
