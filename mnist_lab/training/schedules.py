"""Learning rates over a run.

Each is a function `schedule(optimizer, total_steps, epochs, ...) -> LRScheduler`, stepped after each step of the
optimiser; a config names one under `schedule`. One of your own may take `total_steps` and `epochs` or not: one that
doesn't take `total_steps`, as `Plateau` and most of `torch.optim.lr_scheduler`, is stepped after each epoch.

Beside a schedule's own arguments its section may have Lightning's `interval` (step or epoch), `frequency` (so many of
them) and, for PyTorch's `ReduceLROnPlateau`, `monitor`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

from mnist_lab.errors import UserError
from mnist_lab.metrics import mode_of

OF_LIGHTNING = ("interval", "frequency", "monitor")
"""Keys of the section `schedule` that say when it is stepped, unless its class takes them itself."""


def lr_scheduler_config(
    schedule: Callable[..., LRScheduler], optimizer: Optimizer, trainer: L.Trainer, steps_per_epoch: int
) -> dict[str, Any]:
    """Return a schedule as `configure_optimizers` hands it to Lightning.

    Args:
        schedule: see `make_schedule`.
        optimizer: whose rates are set.
        trainer: whose limits say how long the run is.
        steps_per_epoch: of the optimiser, 1 or more.

    Raises:
        UserError: the run has no end.
    """
    limits = [trainer.max_steps] if trainer.max_steps != -1 else []
    if trainer.max_epochs not in (None, -1):
        limits.append(trainer.max_epochs * steps_per_epoch)
    if not limits:
        raise UserError("schedule: it needs to know how many steps there will be: give trainer.max_epochs=N")
    made, by_epoch = make_schedule(schedule, optimizer, min(limits), min(limits) / steps_per_epoch)
    found: dict[str, Any] = {"scheduler": made, "interval": "epoch" if by_epoch else "step"}
    _, options = split_options(schedule)
    if isinstance(made, ReduceLROnPlateau):
        monitor = made.monitor if isinstance(made, Plateau) else options["monitor"]
        every = trainer.check_val_every_n_epoch or 1
        # Between validations Lightning would take the value of the last one for a new one.
        found |= {"monitor": monitor, "strict": False, "frequency": every if monitor[:4] == "val/" else 1}
    return found | options


def split_options(schedule: Callable[..., LRScheduler]) -> tuple[Callable[..., LRScheduler], dict[str, Any]]:
    """Return a schedule without Lightning's options, and these."""
    if not isinstance(schedule, partial):
        return schedule, {}
    taken = inspect.signature(schedule.func).parameters
    options = {key: schedule.keywords[key] for key in OF_LIGHTNING if key in schedule.keywords and key not in taken}
    rest = {key: value for key, value in schedule.keywords.items() if key not in options}
    return partial(schedule.func, *schedule.args, **rest), options


def make_schedule(
    schedule: Callable[..., LRScheduler], optimizer: Optimizer, total_steps: int, epochs: float
) -> tuple[LRScheduler, bool]:
    """Return the schedule of an optimiser, and whether it is stepped by epoch rather than by step.

    Args:
        schedule: makes it, of the optimiser and, if it takes them, `total_steps` and `epochs`.
        optimizer: whose rates are set.
        total_steps: steps of the run, 1 or more.
        epochs: epochs that these are, above 0; not whole where trainer.max_steps ends the last.
    """
    schedule, _ = split_options(schedule)
    taken = inspect.signature(schedule).parameters
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    about = {"total_steps": total_steps, "epochs": epochs}
    # A value that the config gives stays: a partial function shows it as the default of a keyword.
    given = schedule.keywords if isinstance(schedule, partial) else {}
    passed = {key: value for key, value in about.items() if (everything or key in taken) and key not in given}
    return schedule(optimizer, **passed), not (everything or "total_steps" in taken)


def step(optimizer: Optimizer, total_steps: int, epochs: float, every: int, gamma: float) -> LRScheduler:
    """Return a schedule that multiplies the rate by `gamma` after every `every` epochs.

    Args:
        optimizer: whose rates are set.
        total_steps: steps of the run, 1 or more.
        epochs: epochs that these are, above 0; not whole where trainer.max_steps ends the last.
        every: epochs between two falls, 1 or more.
        gamma: in (0, 1].
    """
    return StepLR(optimizer, step_size=max(1, round(every * total_steps / epochs)), gamma=gamma)


def cosine(optimizer: Optimizer, total_steps: int, epochs: float, warmup: float, final: float) -> LRScheduler:
    """Return a linear rise, then half a cosine down (Loshchilov, Hutter 2016, eq. 5, without restarts).

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
    """Return a rise to the optimiser's rate and a fall to almost 0, along half cosines (Smith, Topin 2017).

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


class Plateau(ReduceLROnPlateau):
    """The rate falls to `factor` times itself when a metric has not improved for more than `patience` epochs.

    Only epochs that measure it count: between validations nothing happens.

    Args:
        optimizer: whose rates are set.
        monitor: a metric that is logged once an epoch.
        factor: above 0 and below 1.
        patience: epochs, 0 or more.
        min_delta: what counts as an improvement, 0 or more, in the metric's own unit.
        min_lr: no rate falls below it, 0 or more.
        mode: "min" or "max": whether the metric is to be small or large; None: its name decides.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        monitor: str,
        factor: float,
        patience: int,
        min_delta: float,
        min_lr: float,
        mode: str | None = None,
    ) -> None:
        super().__init__(
            optimizer, mode_of(monitor, mode), factor, patience, min_delta, threshold_mode="abs", min_lr=min_lr, eps=0
        )
        self.monitor = monitor


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
