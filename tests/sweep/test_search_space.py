"""Values of a sweep: grids and intervals, and how samplers draw from them and pruners end trials."""

import optuna
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from mnist_lab.sweep.space import Axis, axis, grid
from mnist_lab.sweep.study import pruner_of, sampler_of

numbers = st.integers(-1000, 1000) | st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
words = st.sampled_from(["true", "null", "relu", "[1,2]", "{a: 1}", "'a, b'", "a-b"]) | numbers.map(str)


@given(st.lists(words, min_size=2, max_size=6, unique=True))
def test_values_of_a_sweep_are_written_as_hydra_reads_them(values: list[str]) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"+a.b={','.join(values)}"])
    found = axis(override)
    again = OverridesParser.create().parse_overrides(found.extremes())
    expected = [OverridesParser.create().parse_override(f"+a.b={value}").value() for value in dict.fromkeys(values)]
    assert [one.value() for one in again] == expected or len({str(v) for v in expected}) < len(expected)


@given(st.floats(1e-6, 1.0), st.floats(1.1, 100.0), st.booleans(), st.integers(0, 2**31))
def test_values_drawn_from_an_interval_lie_within_it_and_survive_the_command_line(
    low: float, high: float, log: bool, seed: int
) -> None:
    word = f"interval({low!r},{high!r})"
    (override,) = OverridesParser.create().parse_overrides([f"lr={f'tag(log,{word})' if log else word}"])
    found = axis(override)
    assert (found.low, found.high, found.log) == (low, high, log)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    value = study.ask({"lr": found.distribution()}).params["lr"]
    assert low <= value <= high
    assert OverridesParser.create().parse_override(found.override(value)).value() == value


@pytest.mark.parametrize("word", ["interval(1,10000)", "int(interval(1,10000))"])
def test_a_logarithmic_interval_is_drawn_by_orders_of_magnitude(word: str) -> None:
    found = axis(OverridesParser.create().parse_override(f"width=tag(log,{word})"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = sorted(study.ask({"width": found.distribution()}).params["width"] for _ in range(200))
    assert 30 < values[100] < 300, "the median is in the middle of the exponents"
    assert all(isinstance(value, int) for value in values) == word.startswith("int(")


def test_an_interval_of_whole_numbers_includes_both_its_ends() -> None:
    for word in ("int(interval(1,3))", "tag(log,int(interval(1,3)))"):
        found = axis(OverridesParser.create().parse_override(f"width={word}"))
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        assert {study.ask({"width": found.distribution()}).params["width"] for _ in range(100)} == {1, 2, 3}, word


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_grid_is_the_product_of_its_axes(sizes: list[int]) -> None:
    axes = [Axis(f"k{n}", tuple(map(str, range(size)))) for n, size in enumerate(sizes)]
    found = [tuple(values.values()) for values in grid(axes)]
    assert len(found) == len(set(found)) == int(torch.tensor(sizes).prod()) and found == sorted(found)


@pytest.mark.slow
def test_a_quasi_random_search_fills_the_space_more_evenly_than_a_random_one() -> None:
    from scipy.stats.qmc import discrepancy

    def uneven(sampler: str, seed: int) -> float:
        study, unit = optuna.create_study(), optuna.distributions.FloatDistribution(0, 1)
        for number in range(32):
            study.sampler = sampler_of(sampler, seed, number)
            study.ask({"a": unit, "b": unit})
        return float(discrepancy([list(trial.params.values()) for trial in study.get_trials()]))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert all(uneven("qmc", seed) < uneven("random", seed) / 2 for seed in range(4))


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "cmaes"])
def test_each_trial_of_a_search_has_its_own_values(sampler: str) -> None:
    study, unit = optuna.create_study(), optuna.distributions.FloatDistribution(0, 1)
    for number in range(4):
        study.sampler = sampler_of(sampler, 0, number)  # a new one, as in a sweep that is resumed
        study.ask({"a": unit, "b": unit})
    assert len({trial.params["a"] for trial in study.get_trials()}) == 4


def test_a_genetic_search_learns_from_its_first_ten_trials() -> None:
    def values(sampler: str) -> list[dict[str, float]]:
        study, unit = optuna.create_study(), optuna.distributions.FloatDistribution(0, 1)
        for number in range(20):
            study.sampler = sampler_of(sampler, 0, number)
            trial = study.ask({"a": unit, "b": unit})
            study.tell(trial, trial.params["a"])
        return [trial.params for trial in study.get_trials()]

    genetic, random = values("nsga2"), values("random")
    assert genetic[:10] == random[:10] and genetic[10:] != random[10:]


@pytest.mark.parametrize(("patience", "ended"), [(0, True), (1, True), (2, False)])
def test_a_pruner_ends_no_trial_before_patience_epochs(patience: int, ended: bool) -> None:
    study = optuna.create_study(direction="maximize")
    for _ in range(4):
        study.add_trial(optuna.trial.create_trial(value=0.9, intermediate_values={1: 0.9, 2: 0.9}))
    hopeless = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values={1: 0.1})
    assert pruner_of("median", patience).prune(study, hopeless) == ended
