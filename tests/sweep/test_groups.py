"""`compare` groups runs by their settings: means over seeds, differences, importance, and which runs count."""

from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest
from conftest import Command
from results import DATA, ROW, compared, result

from mnist_lab.sweep.groups import grouped
from mnist_lab.sweep.report import _curves, _importance


def test_runs_that_differ_in_the_seed_alone_are_one_group_and_a_difference_has_a_p_value() -> None:
    from scipy import stats

    good, bad = [0.95, 0.96, 0.94, 0.97], [0.90, 0.93, 0.955, 0.91]
    results = [result(s, 0.1, a) for s, a in enumerate(bad)] + [result(s, 0.2, a) for s, a in enumerate(good)]
    best, other = grouped(results, "test/acc")
    assert best.differs == {"optimizer.lr": 0.2} and best.values == tuple(good) and best.p is None
    assert other.p == pytest.approx(stats.ttest_ind(bad, good, equal_var=False).pvalue)
    assert best.interval is not None and best.spread == pytest.approx(stdev(good))
    low, high = stats.t.interval(0.95, 3, loc=best.mean, scale=stats.sem(good))
    assert (best.mean - best.interval, best.mean + best.interval) == pytest.approx((low, high))
    assert grouped(results, "test/loss")[0].mean == pytest.approx(0.1)


def test_0_and_0_0_are_one_value() -> None:
    runs = [replace(result(n, 0.1, 0.9), config={"model": {"dropout": (0, 0.0)[n]}}) for n in range(2)]
    (group,) = grouped(runs, "test/acc")
    assert len(group.results) == 2


def test_a_learning_curve_is_the_mean_of_a_groups_runs() -> None:
    runs = [replace(result(n, 0.1, 0.9), history=[{**ROW, "train/loss": loss}]) for n, loss in enumerate((0.2, 0.4))]
    (curve,) = _curves(grouped(runs, "test/acc"), "train").axes[0].lines
    assert curve.get_ydata() == pytest.approx([0.3])


def test_a_run_that_repeats_another_is_left_out_of_the_mean(lab: Command, tmp_path: Path) -> None:
    again = replace(result(0, 0.1, 0.9), name="again", repeats=result(0, 0.1, 0.9).identity)
    again.config["data"]["root"] = "elsewhere"
    runs = {"a/0": result(0, 0.1, 0.9), "a/0 again": again, "a/1": result(1, 0.1, 0.92), "a/2": result(0, 0.2, 0.8)}
    (good, bad), shown = compared(lab, tmp_path, runs, "a")
    assert (good["n"], good["mean"], bad["n"]) == ("2", "0.91", "1")
    assert "note: 1 finished run(s) left out: each repeats one that counts" in shown
    assert "1 finished run(s) left out" in (tmp_path / "compare.md").read_text()


def test_a_run_below_two_of_the_compared_folders_counts_once(lab: Command, tmp_path: Path) -> None:
    runs = {"one/a": result(0, 0.1, 0.9), "one/b": result(1, 0.1, 0.92)}
    (row,), shown = compared(lab, tmp_path, runs, "one", "one/a", "one/b", "one/../one", str(tmp_path))
    assert row["n"] == "2" and "left out" not in shown


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_processes(lab: Command, tmp_path: Path) -> None:
    rows = [{**ROW, "epoch": n, "seconds": 10.0} for n in (1, 2, 3)]
    runs = {"resumed": replace(result(0, 0.1, 0.9), history=rows), "whole": result(0, 0.2, 0.9)}
    (quick, slow), shown = compared(lab, tmp_path, runs, ".", "metric=seconds")
    assert (quick["mean"], quick["train_seconds"]) == ("1.0", "1.0"), "with what comes before its first epoch"
    assert (slow["mean"], slow["train_seconds"]) == ("30.0", "30.0") and " 30.0" in shown


def test_data_sets_of_one_name_with_other_digests_are_compared_apart(lab: Command, tmp_path: Path) -> None:
    other = replace(result(1, 0.1, 0.8), data={**DATA, "digest": "1" * 64})
    rows, _ = compared(lab, tmp_path, {"a": result(0, 0.1, 0.9), "b": other}, ".")
    assert [(row["n"], row["data.name"]) for row in rows] == [("1", "mnist (00000000)"), ("1", "mnist (11111111)")]


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "decides"), [("test/loss", "a"), ("seconds", "a"), ("test/acc", "b")])
def test_importance_is_that_for_the_best_runs_be_the_metric_high_or_low(metric: str, decides: str) -> None:
    value = {(a, b): 0.1 if a == 0 else 0.9 if b == 5 else 0.5 for a in range(6) for b in range(6)}
    found = [
        replace(result(0, 0.1, v), config={"a": a, "b": b}, test={"acc": v, "loss": v}, seconds={"train": 10 * v})
        for (a, b), v in value.items()
    ]
    points = [(group, v) for group in grouped(found, metric) for v in group.values]
    importance = _importance(points, ["a", "b"], metric)
    assert importance is not None and importance[decides] > 0.9


def test_options_of_the_sweep_itself_are_no_hyperparameters(lab: Command, tmp_path: Path) -> None:
    typed = [["sweep=tpe", "sweep.trials=3", "space=mlp", "optimizer.lr=0.1"], ["sweep.trials=4", "optimizer.lr=0.2"]]
    runs = {str(n): replace(result(0, 0.1 + n / 10, 0.9), overrides=words) for n, words in enumerate(typed)}
    _, shown = compared(lab, tmp_path, runs, ".")
    assert "optimizer.lr=0.1" in shown and "sweep" not in shown and "space" not in shown
    assert (tmp_path / "compare.csv").read_text().startswith("optimizer.lr,metric,mean,")


def test_runs_without_a_value_of_the_metric_are_compared_without_it(lab: Command, tmp_path: Path) -> None:
    runs = {str(n): result(0, 0.1 + n, 0.9) for n in range(3)}
    for n, found in enumerate(runs.values()):
        found.config["model"] = {"hidden": 2**n}
        found.overrides.append(f"model.hidden={2**n}")
    rows, _ = compared(lab, tmp_path, runs, ".", "metric=val/acc")
    assert [(row["mean"], row["n"]) for row in rows] == [("nan", "0")] * 3
    assert "val/acc" in (tmp_path / "compare.html").read_text()


def test_a_group_is_named_by_the_settings_that_most_groups_do_not_share() -> None:
    parts = {"lr": 0.1, "smoothing": 0.1, "pool": 2, "width": 64}
    without = [{**parts, key: value} for key, value in (("lr", 0.01), ("smoothing", 0), ("pool", 1), ("width", 32))]
    results = []
    for n, config in enumerate([parts, *without]):
        one = result(0, 0.1, 0.9 - n / 100)
        typed = [f"{key}={value}" for key, value in config.items() if value != parts[key]]
        results.append(replace(one, config=config, overrides=typed))
    found = grouped(results, "test/acc")
    assert [group.name for group in found] == ["n", "lr=0.01", "smoothing=0", "pool=1", "width=32"]
    assert all(set(group.differs) == set(parts) for group in found), "figures and files have all of them"
