"""From Hydra's override grammar to what differs between trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from mnist_lab.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Axis:
    """One key that differs from trial to trial.

    Attributes:
        key: the key as it was typed, including a `+`.
        words: the values if they can be counted, each in Hydra's grammar; empty for an interval.
        low: lower end of an interval.
        high: upper end of an interval, which is part of it.
        log: whether an interval is searched on a logarithmic scale.
        whole: whether an interval has only whole numbers.
    """

    key: str
    words: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def name(self) -> str:
        """Return the key as dashboards and tables show it."""
        return self.key.lstrip("+")

    @property
    def values(self) -> tuple[Value, ...]:
        """Return the words as numbers, booleans or None where they stand for one, else as strings.

        If two of them would be equal, such as 1 (one batch) and 1.0 (all batches), all stay strings.
        """
        found = tuple(map(_value, self.words))
        return found if len(set(found)) == len(found) else self.words

    def override(self, value: Value) -> str:
        """Return the override that gives the key this value.

        Raises:
            UserError: it is no value of this axis, so somebody has changed the study.
        """
        if self.words and value in self.values:
            return f"{self.key}={self.words[self.values.index(value)]}"
        if not self.words and isinstance(value, int | float):
            return f"{self.key}={value!r}"
        raise UserError(f"{self.key}={value} is in the study of this sweep, which can't have given it that value")

    def distribution(self) -> BaseDistribution:
        """Return the axis as a distribution of Optuna's."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.words:
            return CategoricalDistribution(self.values)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def extremes(self) -> list[str]:
        """Return overrides that suffice to check all values: each word, or both ends of an interval."""
        ends: list[Value] = [int(self.low), int(self.high)] if self.whole else [self.low, self.high]
        return [self.override(value) for value in (self.values or ends)]


def axis(override: Override) -> Axis:
    """Return the axis that an override with several values stands for.

    Args:
        override: as Hydra parses `key=a,b`, `key=choice(a,b)`, `key=range(1,5)`, `key=interval(0,1)`, `key=glob(*)`, or
            one of them inside `tag(log,...)`, `sort(...)`, `shuffle(...)`, `int(...)`, `float(...)`.

    Raises:
        UserError: there is nothing to choose from, or an interval has another tag than log.
    """
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None and sweep.end is not None
        low, high, log = float(sweep.start), float(sweep.end), "log" in sweep.tags
        if unknown := sweep.tags - {"log"}:
            raise UserError(f"{override.input_line}: there is no such tag as {min(unknown)}; tag(log,...) is one")
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int) and not isinstance(sweep.start, bool)
        if not low < high or (log and low <= 0):
            why = "logarithmic from above 0" if log and low <= 0 else "from a smaller number to a greater"
            raise UserError(f"{override.input_line}: an interval must go {why}")
        return Axis(override.get_key_element(), low=low, high=high, log=log, whole=whole)
    assert isinstance(sweep, ChoiceSweep | RangeSweep | Glob)
    try:
        words = tuple(dict.fromkeys(override.sweep_string_iterator()))
    except (HydraException, ValueError) as error:
        raise UserError(f"{override.input_line}: {' '.join(str(error).split())}") from error
    if not words:
        raise UserError(f"{override.input_line}: an empty range, there is nothing to sweep over")
    return Axis(override.get_key_element(), words)


def grid(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Yield every combination, as values by the axes' names; the last axis changes fastest.

    Raises:
        UserError: an axis is an interval, whose values can't be counted.
    """
    for one in axes:
        if not one.words:
            raise UserError(
                f"{one.key}: a grid needs values that can be counted; an interval needs sweep=random or tpe"
            )
    for values in product(*(one.values for one in axes)):
        yield dict(zip((one.name for one in axes), values, strict=True))


def _value(word: str) -> Value:
    if word in ("null", "true", "false"):
        return {"null": None, "true": True, "false": False}[word]
    for kind in (int, float):
        try:
            number = kind(word)
        except ValueError:
            continue
        return number if isfinite(number) else word
    return word
