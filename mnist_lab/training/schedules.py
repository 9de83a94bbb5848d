"""Learning rates over a run, one step of the schedule a step of the optimiser.

Each is a function `schedule(optimizer, total_steps, epochs, ...) -> LRScheduler`; a config names one under `schedule`,
and any function of that form can take its place.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR


def step(optimizer: Optimizer, total_steps: int, epochs: float, every: int, gamma: float) -> LRScheduler:
    """The rate falls to `gamma` times itself after every `every` epochs.

    Args:
        optimizer: whose rates are set.
        total_steps: steps of the run, 1 or more.
        epochs: epochs that these are, above 0; not whole where trainer.max_steps ends the last.
        every: epochs between two falls, 1 or more.
        gamma: in (0, 1].
    """
    return StepLR(optimizer, step_size=max(1, round(every * total_steps / epochs)), gamma=gamma)


def cosine(optimizer: Optimizer, total_steps: int, epochs: float, warmup: float, final: float) -> LRScheduler:
    """A linear rise, then half a cosine down (Loshchilov, Hutter 2016, eq. 5, without restarts).

    Args:
        optimizer: whose rates are set.
        total_steps: steps of the run, 1 or more.
        epochs: epochs of the run; not needed here.
        warmup: share of the steps in which the rate rises from near 0, in [0, 1).
        final: the last rate as a share of the first, in [0, 1].
    """
    rising = round(warmup * total_steps)

    def factor(now: int) -> float:
        if now < rising:
            return (now + 1) / (rising + 1)
        return _half_cosine(1.0, final, min(1.0, (now - rising) / max(1, total_steps - 1 - rising)))

    return LambdaLR(optimizer, factor)


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    epochs: float,
    warmup: float,
    initial: float,
    final: float,
) -> LRScheduler:
    """Up to the optimiser's rate and down to almost nothing, along half cosines (Smith, Topin 2017).

    Args:
        optimizer: whose rates are set.
        total_steps: steps of the run, 1 or more.
        epochs: epochs of the run; not needed here.
        warmup: share of the steps on the way up, in [0, 1).
        initial: the first rate as a share of the highest, in (0, 1].
        final: the last rate as a share of the highest, in [0, 1].
    """
    top = warmup * (total_steps - 1)

    def factor(now: int) -> float:
        if now < top:
            return _half_cosine(initial, 1.0, now / top)
        return _half_cosine(1.0, final, min(1.0, (now - top) / max(1.0, total_steps - 1 - top)))

    return LambdaLR(optimizer, factor)


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
