"""The states of all random number generators that a training may draw from, as tensors for a checkpoint."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def collect(device: torch.device) -> dict[str, Tensor]:
    """Return the states of PyTorch's, Python's and NumPy's generators, and of the GPU's where `device` is one.

    Returns:
        "cpu" and "cuda": uint8 (n,); "python" and "numpy": float64 (626,) and (627,), whole numbers below 2³² and, at
        the end, the second of a pair of normal numbers where one waits, else NaN.
    """
    _, words, waiting = random.getstate()
    _, keys, place, has_one, one = np.random.get_state()
    nan = float("nan")
    states = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor([*words, nan if waiting is None else waiting], dtype=torch.float64),
        "numpy": torch.tensor([*keys, place, has_one, one if has_one else nan], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the generators to the states that `collect` returned; leave those alone that have none."""
    torch.set_rng_state(states["cpu"].clone())  # of a part of a tensor PyTorch would read the first bytes of the whole
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].clone(), device)
    if "python" in states:
        *words, waiting = states["python"].tolist()
        random.setstate((3, tuple(map(int, words)), None if waiting != waiting else waiting))
    if "numpy" in states:
        *keys, place, has_one, one = states["numpy"].tolist()
        np.random.set_state(
            ("MT19937", np.array(keys, dtype=np.uint32), int(place), int(has_one), one if has_one else 0.0)
        )
