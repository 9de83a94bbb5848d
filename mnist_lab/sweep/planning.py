"""The trials of a sweep, planned: which exist, and with which values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from mnist_lab.sweep.optuna_adapter import complete_values, set_state
from mnist_lab.sweep.space import Axis, grid
from mnist_lab.sweep.study import sampler_of, trials_of

if TYPE_CHECKING:
    import optuna

AT_ONCE = ("grid", "random", "qmc")
"""Samplers that learn nothing from earlier trials, so that all can be planned before the first runs."""


def plan(study: optuna.Study, axes: Sequence[Axis], options: Mapping[str, Any], side_by_side: int) -> None:
    """Add the trials that can be planned now, waiting.

    Args:
        study: the study.
        axes: the keys in which its trials differ.
        options: those of the sweep.
        side_by_side: how many trials run at a time; a sampler that learns plans no more, unless `at_a_time` says so.
    """
    import optuna

    planned, total = len(trials_of(study)), options["trials"]
    distributions = {one.name: one.distribution() for one in axes}
    if options["sampler"] == "grid":
        end = min(total, planned + (options["at_a_time"] or total))
        for values in islice(grid(axes), planned, end):
            waiting = optuna.trial.TrialState.WAITING
            study.add_trial(optuna.trial.create_trial(state=waiting, params=values, distributions=distributions))
        return
    at_once = total if options["sampler"] in AT_ONCE else options["at_a_time"] or side_by_side
    for number in range(planned, min(total, planned + at_once)):
        study.sampler = sampler_of(options["sampler"], options["seed"], number)
        study.ask(distributions)
    for trial in trials_of(study)[planned:]:  # only now: to ask again would give one that waits
        set_state(study, trial, "WAITING")


def complete(study: optuna.Study, axes: Sequence[Axis], options: Mapping[str, Any]) -> None:
    """Give trials their values that were being planned when the sweep was stopped."""
    distributions = {one.name: one.distribution() for one in axes}
    for trial in trials_of(study):
        if not (trial.state.is_finished() or trial.params.keys() >= distributions.keys()):
            study.sampler = sampler_of(options["sampler"], options["seed"], trial.number)
            complete_values(study, trial, distributions)
            set_state(study, trial, "WAITING")
