"""Private parts of Optuna, each with the public way that is missing. No other module uses private names of Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def set_attr(study: optuna.Study, trial: FrozenTrial, name: str, value: Any) -> None:
    """Store a value of any kind with a trial, under a name.

    Missing in public: only the process that asked for a trial has an object that can do this.
    """
    study._storage.set_trial_user_attr(trial._trial_id, name, value)


def set_state(study: optuna.Study, trial: FrozenTrial, state: str, values: list[float] | None = None) -> None:
    """Move a trial to one of the states of `optuna.trial.TrialState`, by name.

    Missing in public: `Study.tell` can't make a trial wait again that was running.
    """
    from optuna.trial import TrialState

    study._storage.set_trial_state_values(trial._trial_id, TrialState[state], values)


def report_value(study: optuna.Study, trial: FrozenTrial, epoch: int, value: float) -> None:
    """Store a trial's value after an epoch, for the pruner.

    Missing in public: only the process that asked for a trial has an object that can do this.
    """
    study._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)


def complete_values(study: optuna.Study, trial: FrozenTrial, distributions: Mapping[str, BaseDistribution]) -> None:
    """Have the study's sampler give a trial the values that it lacks, as if it had never been interrupted.

    Missing in public: `Study.ask` can't go on with a trial that another process asked for.
    """
    import optuna

    asked = optuna.trial.Trial(study, trial._trial_id)
    for name, distribution in distributions.items():
        drawn = not (distribution.single() or asked._is_relative_param(name, distribution))
        if name in trial.params and drawn:  # again, so that those after it get the random numbers after its own
            study.sampler.sample_independent(study, trial, name, distribution)
        asked._suggest(name, distribution)
