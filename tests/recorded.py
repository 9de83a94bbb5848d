"""All that a finished run leaves, to be compared bit by bit."""

import csv
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from mnist_lab import train
from mnist_lab.result import Result


@cache
def found_by_test(*words: str) -> dict[str, Any]:
    """Return what the test of a run finds. Runs of the same words are made once."""
    with TemporaryDirectory() as folder:
        return train(*words, run_dir=Path(folder) / "run").result.test


def timeless(value: Any) -> Any:
    """What a checkpoint holds, but for clocks and for the paths of Lightning's own."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in ("seconds", "elapsed", "time")}
    if isinstance(value, list | tuple):
        return [timeless(item) for item in value]
    return value.tolist() if isinstance(value, Tensor) else value


def found(run: Path) -> dict[str, Any]:
    """All that a finished run leaves, bit by bit, but for times."""
    result = Result.load(run)
    curves = EventAccumulator(str(run / "tensorboard")).Reload()
    points = {
        tag: [(point.step, "second" in tag or point.value) for point in curves.Scalars(tag)]
        for tag in curves.Tags()["scalars"]
    }
    saved = {name: torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "best")}
    with (run / "history.csv").open() as file:
        rows = timeless(list(csv.DictReader(file)))
    parts = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "progress")
    return {
        "test": result.test, "history": timeless(result.history), "rows": rows, "points": points, "data": result.data,
        **{f"{name} {part}": timeless(ckpt.get(part)) for name, ckpt in saved.items() for part in parts},
    }  # fmt: skip


def finds(folder: Path) -> dict[str, dict[str, Any]]:
    return {str(path.parent.relative_to(folder)): found(path.parent) for path in sorted(folder.rglob("result.json"))}


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, parts in first.items():
        for part, value in parts.items():
            assert second[name][part] == value, f"{name}: {part}"
