"""`compare` ranks runs of one task and test set, and a run that repeats another counts once."""

import base64
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command, result_in
from results import FASHION, FIVE_THOUSAND, ROW, compared, run

from mnist_lab.result import Result
from mnist_lab.sweep.groups import Peer, grouped
from mnist_lab.sweep.report import page
from mnist_lab.sweep.sections import sections

UNLIKE = {
    "five against the rest": run(0.9089, data={"classes": ["not 5", "5"]}, data__one_vs_rest=5),
    "other classes": run(0.95, data={"classes": list("abcdefghij")}),
    "another data set": run(0.95, data={"name": "fashion_mnist", "digest": FASHION}),
    "the same name with other files": run(0.95, data={"digest": "0" * 64}),
    "fewer test images": run(0.95, n=800, trainer__limit_test_batches=2),
    "another number of test images": run(0.95, data={"test": 800}, n=800),
    "fast_dev_run": run(0.95, trainer__fast_dev_run=True),
    "fast_dev_run of seven": run(0.95, trainer__fast_dev_run=7),
    "limited training": run(0.95, trainer__limit_train_batches=10, data__batch_size=100),
    "half of the training": run(0.95, trainer__limit_train_batches=0.5),
    "limited validation": run(0.95, trainer__limit_val_batches=2, data__eval_batch_size=400),
    "overfitted batches": run(0.95, trainer__overfit_batches=3),
}


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize("metric", ["test/acc", "val/loss", "seconds"])
def test_an_unlike_run_has_a_section_of_its_own(name: str, metric: str) -> None:
    usual = [run(0.9, 0), run(0.91, 1)]
    found = sections([UNLIKE[name], *usual], metric)
    assert [section.results for section in found] == [tuple(usual), (UNLIKE[name],)], "the larger one first"
    assert found[0].headline != found[1].headline


def test_no_two_unlike_runs_share_a_headline() -> None:
    found = sections([run(0.9), *UNLIKE.values()], "test/acc")
    headlines = {section.headline for section in found}
    assert len(headlines) == len(found) >= len(UNLIKE)
    assert "mnist (87581b9c), 5 against the rest, 10,000 test images" in headlines
    assert "mnist (87581b9c), 10 classes, 800 of 10,000 test images" in headlines


@pytest.mark.parametrize(
    "like",
    [
        run(0.95, trainer__limit_test_batches=1.0, trainer__limit_train_batches=1.0, trainer__fast_dev_run=False),
        run(0.95, trainer__limit_train_batches=20, data__batch_size=100),  # there are no more
        run(0.95, trainer__limit_val_batches=2, data={"val": 0, "val_from": "none"}),
        run(0.95, data={"train": 60_000}),
        run(0.95, trainer__max_epochs=1, trainer__max_steps=3, model__hidden=[7]),
    ],
)
def test_settings_of_the_training_are_compared(like: Result) -> None:
    (section,) = sections([run(0.9), like], "test/acc")
    assert len(section.results) == 2


def test_an_option_that_earlier_versions_lack_is_its_null() -> None:
    (group,) = grouped([run(0.9, 0), run(0.91, 1, data__eval_transform=None)], "test/acc")
    assert len(group.results) == 2


def test_limits_of_the_training_are_compared_with_each_other() -> None:
    some = [run(0.9, trainer__limit_train_batches=n, data__batch_size=100) for n in (5, 10)]
    assert [len(section.results) for section in sections(some, "test/acc")] == [2]


def test_the_test_sets_content_counts_before_the_files() -> None:
    """Files of other training images leave the test set as it is, and files may be divided in other ways."""
    first = run(0.9, data={"digest": "f" * 64, "test_digest": "a" * 64})
    more_training = run(0.9, data={"digest": "e" * 64, "test_digest": "a" * 64})
    other_fold = run(0.9, data={"digest": "f" * 64, "test_digest": "b" * 64})
    older = run(0.9, data={"digest": "e" * 64})
    found = sections([first, more_training, other_fold, older], "test/acc")
    assert [section.results for section in found] == [(first, more_training, older), (other_fold,)]


def test_validation_is_compared_on_the_same_kind_of_images() -> None:
    runs = [run(0.9), run(0.9, data={"val": 10_000, "val_from": "test"}), run(0.9, data={"val": 500})]
    assert len(sections(runs, "val/acc")) == 3 and len(sections(runs, "test/acc")) == 1


@pytest.mark.parametrize(
    ("found", "frequent", "accuracy"),
    [
        (run(0.9, data={"test_counts": [5, 2, 3], "classes": list("abc")}, n=10), "a", 0.5),
        (run(0.9, data={"test_counts": [4, 4, 2], "classes": list("abc")}, n=10), None, 0.4),
        (run(0.9), "1", 0.1135),  # of an older result
        (UNLIKE["five against the rest"], "not 5", 1 - 0.0892),
        (run(0.9, data={"digest": FIVE_THOUSAND}, n=1000), None, 0.1),
        (run(0.9, n=800), None, None),  # which images these were is not known
        (run(0.9, data={"digest": "0" * 64}), None, None),
    ],
)
def test_the_accuracy_of_the_most_frequent_class_is_known(
    found: Result, frequent: str | None, accuracy: float | None
) -> None:
    (section,) = sections([found], "test/acc")
    assert section.frequent == frequent and section.frequent_acc == (accuracy and pytest.approx(accuracy))
    assert "None" not in section.baseline
    assert ("unknown" if accuracy is None else f": {100 * accuracy:.2f} %") in section.baseline


def test_every_form_of_the_comparison_has_the_sections(lab: Command, tmp_path: Path) -> None:
    neurons = [replace(UNLIKE["five against the rest"], seed=n, test={**run(a).test, "acc": a, "n": 10_000})
               for n, a in enumerate((0.9089, 0.9108))]  # fmt: skip
    runs = {f"net{n}": run(0.88 + n / 100, n) for n in range(2)} | {"other": run(0.7, 0, optimizer__lr=0.2)}
    runs["other"].overrides[0] = "optimizer.lr=0.2"
    rows, shown = compared(lab, tmp_path, runs | {f"neuron{n}": r for n, r in enumerate(neurons)}, ".")
    ten, five = "mnist, 10 classes, 10,000 test images", "mnist, 5 against the rest, 10,000 test images"
    assert [(row["section"], row["most_frequent_acc"], row["n"]) for row in rows] == [
        (ten, "0.1135", "2"), (ten, "0.1135", "1"), (five, "0.9108", "2"),
    ]  # fmt: skip
    assert [row["p"] for row in rows] == ["", "", ""], "no test across sections"
    markdown, html = ((tmp_path / f"compare.{kind}").read_text() for kind in ("md", "html"))
    for text in (shown, markdown, html):
        assert text.index(ten) < text.index("11.35 %") and text.index(five) < text.index(", not 5: 91.08 %")
    assert len(re.findall("^best ", shown, re.M)) == 2 and "neuron0  neuron1  (mnist, 5 against the rest" in shown
    assert html.count("<tr class=best>") == 2 and html.count("<h2 class=section") == 2


def test_runs_of_one_section_are_shown_without_a_headline(lab: Command, tmp_path: Path) -> None:
    _, shown = compared(lab, tmp_path, {str(n): run(0.9, n) for n in range(2)}, ".")
    assert "most frequent class, 1: 11.35 %" in shown and "10 classes" not in shown
    for kind in ("md", "html"):
        assert "class=section" not in (tmp_path / f"compare.{kind}").read_text()


def test_other_programs_are_drawn_beside_the_runs_with_their_test_images() -> None:
    found = sections([run(0.9), UNLIKE["another data set"]], "test/acc")
    ranked = [(section, grouped(section.results, "test/acc")) for section in found]
    html = page(ranked, "test/acc", "t", [Peer("Keras on JAX", "B", (210.0,), (0.99,))])
    drawn = [base64.b64decode(found).decode() for found in re.findall(r"base64,([^\"]+)", html)]
    assert sum("Keras on JAX" in drawing for drawing in drawn) == 1
    before, after = html.split("fashion_mnist</h2>")[0], html.split("id=section-1")[1]
    assert "What it takes" in before and "What it takes" not in after


@pytest.mark.slow
def test_a_result_has_what_the_sections_need(lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "data.train_size=200", "trainer.max_epochs=1", "report=false", "logger=none"]
    assert lab("model=neuron", *words, "hydra.run.dir=runs/neuron").returncode == 0
    data = result_in(tmp_path / "runs/neuron").data
    assert data["test_counts"] == [900, 100] and len(data["test_digest"]) == 64
    debug = ("trainer.limit_test_batches=1", "data.eval_batch_size=50")
    assert lab("model=mlp_784_32", *words, *debug, "hydra.run.dir=runs/limited").returncode == 0
    limited = result_in(tmp_path / "runs/limited").data
    assert limited["test_counts"] == [5] * 10, "of the images that the test has seen"
    assert limited["test_digest"] == data["test_digest"]
    done = lab("compare", "runs")
    assert done.returncode == 0 and "50 of 1,000 test images" in done.stdout, done.stderr


def test_runs_of_two_people_are_two_measurements(lab: Command, tmp_path: Path) -> None:
    mine, theirs = run(0.9), replace(run(0.94), name="theirs")
    theirs.config["name"] = "theirs"
    (row,), shown = compared(lab, tmp_path, {"a": mine, "b": theirs}, ".")
    assert row["n"] == "2" and float(row["mean"]) == pytest.approx(0.92) and "left out" not in shown
    assert "1 run(s) have the settings and the seeds of another one, 0 of them its numbers" in shown


def test_equal_runs_without_a_mark_are_counted_and_noted(lab: Command, tmp_path: Path) -> None:
    runs = {str(n): replace(run(0.9), started_at=f"2026-01-0{n}T00:00:00") for n in (1, 2, 3)}
    (row,), shown = compared(lab, tmp_path, runs, ".")
    assert row["n"] == "3"
    assert "2 run(s) have the settings and the seeds of another one, 2 of them its numbers" in shown
    assert "n counts each" in (tmp_path / "compare.html").read_text()


def test_equal_numbers_of_other_seeds_are_no_repetition() -> None:
    (group,) = grouped([run(0.9, n) for n in range(3)], "test/acc")
    assert len(group.values) == 3 and group.same_seeds == group.identical == 0


def test_a_chain_of_reruns_is_one_measurement_and_the_original_counts() -> None:
    original = replace(run(0.9), started_at="1")
    again, once_more = (replace(run(0.9), started_at=n, repeats=original.identity) for n in "23")
    for runs in ([again, original, once_more], [once_more, again], [again, original]):
        (group,) = grouped(runs, "test/acc")
        assert len(group.results) == 1 and group.repeated == len(runs) - 1
        assert (group.results[0] is original) == (original in runs)


@pytest.mark.slow
def test_rerun_marks_what_it_has_reproduced(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "data.train_size=200", "trainer.max_epochs=1", "report=false"]
    assert lab(*words, "hydra.run.dir=runs/first").returncode == 0
    assert lab("rerun", "runs/first", "dir=runs/again").returncode == 0
    assert lab("rerun", "runs/again", "dir=runs/once_more").returncode == 0
    first, again, once_more = (Result.load(tmp_path / "runs" / name) for name in ("first", "again", "once_more"))
    assert first.repeats is None and again.repeats == once_more.repeats == first.identity
    done = lab("compare", "runs")
    (row,) = csv.DictReader((tmp_path / "runs/compare.csv").open())
    assert row["n"] == "1" and "2 finished run(s) left out" in done.stdout and "n counts each" not in done.stdout

    changed = replace(first, history=[{**ROW, **first.history[0], "train/loss": 1.0}])
    changed.save(tmp_path / "runs/first")
    assert lab("rerun", "runs/first", "dir=runs/other").returncode == 1
    assert Result.load(tmp_path / "runs/other").repeats is None, "it has other numbers"


def test_an_older_result_without_the_mark_is_read(tmp_path: Path) -> None:
    run(0.9).save(tmp_path)
    values = json.loads((tmp_path / "result.json").read_text())
    del values["repeats"], values["sha256"]
    (tmp_path / "result.json").write_text(json.dumps(values))
    assert Result.load(tmp_path).repeats is None
