"""The work of each contender of the benchmark, and how it reports. Imports only what all contenders import anyway."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZES = {"A3": 128, "B": 128, "C": 500, "D": 64}
EVALUATIONS = 5
OURS = {"A3": "mlp", "B": "cnn", "C": "mlp_784_32", "D": "mlp_512"}


def overrides(network: str) -> list[str]:
    """Return the overrides with which our command does the same work."""
    return [f"model={OURS[network]}", "data.val=test", "data.fallback=null", "name=bench"]


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """MNIST from the folder in BENCH_DATA.

    Returns:
        Training images, float32 (N, 28, 28, 1) in [0, 1], and labels, int64 (N,); and the same of the test set.
    """
    folder = Path(os.environ["BENCH_DATA"]) / "MNIST" / "raw"
    found = []
    for part in ("train", "t10k"):
        pixels = np.frombuffer((folder / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        labels = np.frombuffer((folder / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        found += [pixels.reshape(-1, 28, 28, 1).astype(np.float32) / 255, labels.astype(np.int64)]
    return found[0], found[1], found[2], found[3]


class Clock:
    """Record when epochs begin and when the last one ends."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def tick(self, *_: Any) -> None:
        """Record the start of an epoch, or the end of the last."""
        self.moments.append(time.perf_counter())

    def report(self, evaluate: Callable[[], float]) -> None:
        """Print the measurements as JSON: seconds of each epoch with validation, and of evaluations of the test set.

        Args:
            evaluate: returns the accuracy on the test set, in [0, 1].
        """
        evaluations = []
        for _ in range(EVALUATIONS):
            start = time.perf_counter()
            accuracy = evaluate()
            evaluations.append(time.perf_counter() - start)
        print(json.dumps({"epochs": np.diff(self.moments).tolist(), "evaluations": evaluations, "acc": accuracy}))
