"""Runs that differ only in their seed, as one group each: what a comparison ranks and tests."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from mnist_lab.metrics import MONITOR, Mode, known_mode, mode_of
from mnist_lab.result import Result
from mnist_lab.sweep.sections import data_names
from mnist_lab.targets import with_current_names

SEEDS = ("seed", "seeds", "data.split_seed", "data.order_seed", "data.augment_seed")
WITHOUT = ("name", "data.root", "logger", "metrics", "reported", "report", "sweep", "space", "hydra")
EARLIER: dict[str, Any] = {
    "monitor": MONITOR,
    "module._target_": "mnist_lab.fast.FastClassifier",
    "data.resize": None,
    "data.channels": None,
}
"""Values of keys that configs of earlier versions lack."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        differs: the keys in which the groups of this comparison differ, with this group's values.
        results: the group's runs.
        values: the metric's values, one per run in which it was measured.
        p: p-value of Welch's two-sided t-test against the best group; None for the best group itself, and if either
            group has fewer than two values.
        usual: keys left out of the name because most groups share this value, as in an ablation.
        repeated: number of runs left out, since `rerun` made them and they repeat one that counts.
        same_seeds: number of runs that count and have the seeds of another one, without a mark of `rerun`.
        identical: how many of these have the history and the test of another one, to the last digit.
    """

    differs: dict[str, Any]
    results: tuple[Result, ...]
    values: tuple[float, ...]
    p: float | None = None
    usual: frozenset[str] = frozenset()
    repeated: int = 0
    same_seeds: int = 0
    identical: int = 0

    @property
    def mean(self) -> float:
        """Return the mean of the metric; NaN without values."""
        return fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float | None:
        """Return the sample standard deviation; None with fewer than two values."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> float | None:
        """Return half of the mean's 95 % confidence interval, from Student's t; None with fewer than two values."""
        return t_interval(self.values)

    @property
    def seconds(self) -> float:
        """Return the mean seconds of training."""
        return fmean(result.train_seconds for result in self.results)

    @property
    def name(self) -> str:
        """Return what distinguishes the group from the others, as `key=value`."""
        own = {key: value for key, value in self.differs.items() if key not in self.usual}
        words = (f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in own.items())
        return " ".join(words) or self.results[0].name


@dataclass(frozen=True)
class Peer:
    """Another program's times and accuracies with one network, as the verb `bench` measured them.

    Attributes:
        name: the program or the recipe.
        network: its name in the benchmark.
        seconds: seconds of training, one value per round.
        accuracies: test accuracies in [0, 1], one value per round.
    """

    name: str
    network: str
    seconds: tuple[float, ...]
    accuracies: tuple[float, ...]


def t_interval(values: Sequence[float]) -> float | None:
    """Return half of the mean's 95 % confidence interval, from Student's t; None with fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def matters(key: str) -> bool:
    """Return whether a key of the config makes runs differ in more than their names and seeds."""
    return not is_seed(key) and key not in WITHOUT and key.partition(".")[0] not in WITHOUT


def is_seed(key: str) -> bool:
    """Return whether a key of the config is a seed."""
    return key in SEEDS or key.partition(".")[0] in SEEDS


def grouped(results: Sequence[Result], metric: str, mode: Mode | None = None) -> list[Group]:
    """Return groups of runs that differ only in their seed, best first, each tested against the best.

    Args:
        results: the runs, of one section. A run and those in which `rerun` reproduced it are one measurement: only the
            first counts.
        metric: what they are judged by, as `Result.value` takes it.
        mode: whether it is to be small or large; None: its name decides.
    """
    named = zip(results, data_names(results), strict=True)
    flat = [settings_of(result.config) | {"data.name": name} for result, name in named]
    alike = [{key: _comparable(key, value) for key, value in config.items()} for config in flat]
    keys = list(dict.fromkeys(key for config in flat for key in config if matters(key)))
    differing = [key for key in keys if len({config.get(key, "None") for config in alike}) > 1]
    members: dict[str, list[int]] = {}
    repeated: Counter[str] = Counter()
    measured: set[str] = set()
    originals_first = sorted(range(len(results)), key=lambda n: results[n].repeats is not None)
    for n in originals_first:
        group = repr([alike[n].get(key, "None") for key in differing])
        measurement = results[n].repeats or results[n].identity
        if measurement in measured:
            repeated[group] += 1
        else:
            members.setdefault(group, []).append(n)
        measured.add(measurement)
    shown = _shown(results, flat, differing, list(members.values()))
    usual = _usual([shown[numbers[0]] for numbers in members.values()])
    groups = [
        Group(
            shown[numbers[0]],
            tuple(results[n] for n in numbers),
            tuple(value for n in numbers if (value := results[n].value(metric)) is not None),
            usual=frozenset(key for key, value in usual.items() if repr(shown[numbers[0]][key]) == value),
            repeated=repeated[group],
            same_seeds=len(numbers) - len({_seeds(results[n], alike[n]) for n in numbers}),
            identical=len(numbers) - len({(_seeds(results[n], alike[n]), _numbers(results[n])) for n in numbers}),
        )
        for group, numbers in members.items()
    ]
    sign = 1 if mode_of(metric, mode) == "min" else -1
    groups.sort(key=lambda group: (not group.values, sign * group.mean if group.values else 0))
    return [groups[0], *(_tested(group, groups[0]) for group in groups[1:])]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return the options in which two configs differ, each with a line that says how; null is as good as missing."""
    old, new = ({k: v for k, v in settings_of(config).items() if v is not None} for config in (before, now))
    return {
        key: f"{key}: {old.get(key, '(nothing)')} → {new.get(key, '(nothing)')}"
        for key in old | new
        if old.get(key) != new.get(key)
    }


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's config, flat, with today's names; options that earlier versions lack have today's defaults."""
    found = EARLIER | _flat(with_current_names(config))
    if "schedule.monitor" in found:
        found.setdefault("schedule.mode", known_mode(str(found["schedule.monitor"])))
    return found


def _comparable(key: str, value: Any) -> str:
    """Return a value such that equal ones are equal: 0 and 0.0 are one value; but of amounts 1 is one, and 1.0 all."""
    return repr(float(value) if type(value) is int and not (value == 1 and is_amount(key)) else value)


def _usual(groups: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the values that most groups share, of more than three keys in which they differ."""
    found: dict[str, str] = {}
    for key in groups[0] if len(groups[0]) > 3 else ():
        ((most, count),) = Counter(repr(group[key]) for group in groups).most_common(1)
        if count > len(groups) / 2:
            found[key] = most
    return found


def is_amount(key: str) -> bool:
    """Return whether a whole number of this option is a number of images or batches, and any other a fraction."""
    return key.startswith("trainer.") or key.endswith("_size")


def _seeds(result: Result, config: dict[str, Any]) -> str:
    return repr([result.seed, *((key, value) for key, value in config.items() if is_seed(key))])


def _numbers(result: Result) -> str:
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]
    return repr((rows, result.test))


def _tested(group: Group, best: Group) -> Group:
    if group.spread is None or best.spread is None:
        return group
    if group.spread == best.spread == 0:
        return replace(group, p=float(group.mean == best.mean))
    from scipy.stats import ttest_ind

    with warnings.catch_warnings(action="ignore"):  # runs that differ in rounding alone, of whom the table says ± 0.00
        p = float(ttest_ind(group.values, best.values, equal_var=False).pvalue)
    return replace(group, p=p)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(
    results: Sequence[Result], flat: list[dict[str, Any]], differing: list[str], members: list[list[int]]
) -> list[dict[str, Any]]:
    """Return the settings that tell groups apart, one dictionary per run: those typed, or all that differ if needed."""
    typed = [
        {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in result.overrides)}
        for result in results
    ]
    keys = [key for key in dict.fromkeys(k for words in typed for k in words) if matters(key)]
    keys = [key for key in keys if len({words.get(key) for words in typed}) > 1]
    shown = [  # an empty group, such as schedule=none, shows only in the words
        {key: values.get(key, "–") for key in keys}
        for values in (
            {**words, **{k: v for k, v in config.items() if v != {}}} for words, config in zip(typed, flat, strict=True)
        )
    ]
    if len({repr(shown[numbers[0]]) for numbers in members}) == len(members):
        return shown
    return [{key: config.get(key, "–") for key in differing} for config in flat]
