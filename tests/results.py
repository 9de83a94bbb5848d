"""Results as `compare` finds them, without a training."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import Command

from mnist_lab.result import Result
from mnist_lab.sweep.sections import COUNTS

MNIST, FIVE_THOUSAND, FASHION = COUNTS
DIGITS = [str(n) for n in range(10)]
PARTS = {"train": 2000, "val": 5000, "test": 10_000, "val_from": "random"}
ROW = {"epoch": 1, "train/loss": 0.2, "train/acc": 0.9, "val/loss": None, "val/acc": None, "lr": 0.1, "seconds": 0.9}
CODE: dict[str, Any] = {"version": "0", "commit": None, "changed": None}
MACHINE: dict[str, Any] = dict.fromkeys(("system", "processor", "accelerator", "accelerator_name", "precision"), "")
MACHINE |= dict.fromkeys(("cores", "threads", "processes"), 1)
DATA: dict[str, Any] = {"requested": "mnist", "name": "mnist", "files": {}, "classes": []}
DATA |= dict.fromkeys(("fallback", "val_from"))
DATA |= dict.fromkeys(("train", "val", "test"), 0)


def result(seed: int, lr: float, accuracy: float) -> Result:
    config = {"seed": seed, "optimizer": {"lr": lr}, "data": {"order_seed": seed}}
    data = {**DATA, "digest": "0" * 64}
    test = {"acc": accuracy, "loss": 0.1, "correct": None, "n": 100, "checkpoint": "last"}
    return Result(
        1, "n", "", [f"optimizer.lr={lr}", f"seed={seed}"], config, seed, "", CODE, {}, MACHINE,
        data, {"target": "t", "parameters": 7, "trainable_parameters": 7}, [ROW],
        test, {"start": 0.0, "train": 1.0, "test": 0.0}, [], {},
    )  # fmt: skip


def run(accuracy: float, seed: int = 0, data: dict[str, Any] | None = None, n: int = 10_000, **options: Any) -> Result:
    """A result of MNIST's ten classes; `options` are of the config: `trainer__limit_train_batches=10`."""
    found = result(seed, 0.1, accuracy)
    for key, value in options.items():
        group, _, name = key.partition("__")
        found.config.setdefault(group, {})[name] = value
    facts = {**DATA, "digest": MNIST, "classes": DIGITS, **PARTS, **(data or {})}
    return replace(found, data=facts, test={**found.test, "n": n})


def compared(lab: Command, folder: Path, runs: dict[str, Result], *words: str) -> tuple[list[dict[str, str]], str]:
    """Leaves these results, and compares: the rows of the table, best first, and what was shown."""
    for name, found in runs.items():
        (folder / name).mkdir(parents=True)
        found.save(folder / name)
    done = lab("compare", *words, "dir=.")
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader((folder / "compare.csv").open())), done.stdout
