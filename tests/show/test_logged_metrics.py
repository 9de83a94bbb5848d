"""Results of modules that log other metrics than ours are shown, drawn and compared by those metrics."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from results import result
from rich.console import Console

from mnist_lab.errors import UserError
from mnist_lab.metrics import of_stage
from mnist_lab.result import Result
from mnist_lab.show.curves import curves, logged_names
from mnist_lab.show.page import page
from mnist_lab.sweep import report as sweep_report
from mnist_lab.sweep.compare import compare
from mnist_lab.sweep.groups import grouped
from mnist_lab.sweep.sections import limits_of, sections
from mnist_lab.terminal import show_result


def vae(seed: int = 0, elbo: float = -90.0, mode: str | None = "max", **config: Any) -> Result:
    """A run of somebody's own module and data: it logs val/elbo and, of the test, elbo and f1."""
    found = result(seed, 0.1, 0.5)
    rows = [{"epoch": n, "val/elbo": elbo - 10 / n, "lr": 0.001, "seconds": 1.0} for n in (1, 2)]
    tested = {"loss": None, "acc": None, "correct": None, "n": None, "metrics": {"elbo": elbo, "f1": 0.5}}
    unknown = dict.fromkeys(("fallback", "digest", "train", "val", "test", "val_from"))
    return replace(
        found,
        config={**found.config, "monitor": "val/elbo", "mode": mode, "trainer": {"max_epochs": 2}, **config},
        data={"name": "own.Pairs", "requested": "own.Pairs", "files": {}, "classes": []} | unknown,
        history=rows,
        test={"checkpoint": "last", "epoch": 2, **tested},
        model={"target": "own.VAE", "parameters": 10, "trainable_parameters": 10},
        machine={
            "processes": 1,
            "accelerator": "cpu",
            "accelerator_name": None,
            "processor": "p",
            "cores": 2,
            "threads": 2,
            "system": "s",
        },
        code={"version": "0", "commit": None, "changed": None},
        seconds={"start": 1.0, "train": 2.0, "test": 1.0},
        module={"target": "own.VAE", "steps": "one at a time", "why": None},
        ended={"by": "max_epochs", "epochs": 2, "steps": 8},
    )


def test_a_value_is_found_by_its_name() -> None:
    own = vae(elbo=-80.0)
    assert own.metrics == ["test/elbo", "test/f1", "val/elbo", "seconds", "parameters"]
    assert own.value("test/elbo") == -80 and own.value("val/elbo") == -85 and own.value("test/acc") is None
    assert own.value("parameters") == own.model["parameters"]
    older = result(0, 0.1, 0.5)
    assert "metrics" not in older.test and older.value("test/acc") == 0.5 and older.module == {}


def test_a_result_with_other_metrics_is_read_as_it_was_saved(tmp_path: Path) -> None:
    vae().save(tmp_path)
    assert Result.load(tmp_path) == vae()
    assert "test elbo -90.0000, f1 0.5000" in repr(vae())


def test_metrics_of_a_row_are_those_of_its_stage() -> None:
    row = {"epoch": 1, "train/loss": 1.0, "val_loss": 2.0, "elbo": 3.0, "val/acc": None, "lr": 0.1, "seconds": 1.0}
    assert of_stage(row, "train") == {"loss": 1.0}
    assert of_stage(row, "val") == {"loss": 2.0, "acc": None}
    assert of_stage(row, "") == {"elbo": 3.0}
    assert of_stage({"epoch": 1, "val/loss": None, "val/acc": None}, "val") == {}, "nothing was measured"


def test_the_table_has_a_column_for_each_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=100)
    monkeypatch.setattr("mnist_lab.terminal.get_console", lambda: console)
    show_result(vae())
    lines = [re.sub(r"[│┃ ]+", " ", line).strip() for line in console.export_text().splitlines()]
    assert "elbo f1" in lines and "validation, last epoch -95.0000" in lines
    assert "test, own.Pairs -90.0000 0.5000" in lines
    assert "2 epochs, 8 steps ended by max_epochs=2" in lines
    assert not any("gap" in line for line in lines)


def test_curves_are_drawn_of_what_was_logged() -> None:
    rows = [{"epoch": n, "train/loss": 1 / n, "val/elbo": -n, "kl": 2.0, "lr": 0.1, "seconds": 1.0} for n in (1, 2)]
    found = replace(vae(), history=rows)
    assert logged_names(found) == ["loss", "elbo", "kl"]
    axes = curves(found).axes
    assert [ax.get_ylabel() for ax in axes if ax.get_visible()] == ["loss", "elbo", "kl"]
    drawn = {str(line.get_label()): list(line.get_ydata()) for line in axes[1].lines}  # type: ignore[arg-type]
    assert drawn == {"validation": [-1, -2], "test, at the end": [-90, -90]}


def test_the_page_shows_the_metrics_and_says_what_is_missing() -> None:
    html = page(vae(), {"curves": "<figure>drawn</figure>"}, [], None, "module is own.VAE, which is no Classifier")
    assert "Nothing is shown of single images: module is own.VAE, which is no Classifier." in html
    assert "Metrics by epoch" in html and "<figure>drawn</figure>" in html
    assert "<b>-90.0000</b><span>test elbo</span>" in html and "<b>0.5000</b><span>test f1</span>" in html
    assert "Calibration" not in html and "accuracy" not in html and "None" not in html.split("<details>")[0]


def saved(folder: Path, *runs: Result) -> Path:
    for n, found in enumerate(runs):
        (folder / str(n)).mkdir(parents=True)
        found.save(folder / str(n))
    return folder


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def ranked_elbos(folder: Path) -> list[float]:
    with (folder / "compare.csv").open() as file:
        return [float(row["mean"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_runs_are_compared_by_a_metric_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = saved(tmp_path, *(vae(n, -90.0 + n, optimizer={"lr": n / 10}) for n in range(3)))
    compare([str(runs), "metric=val/elbo"])
    assert "val/elbo, best first" in lines(capsys)
    assert ranked_elbos(runs) == [-93, -94, -95], "mode=max of the runs says that more is better"
    compare([str(runs), "metric=val/elbo", "mode=min"])
    assert ranked_elbos(runs) == [-95, -94, -93]
    capsys.readouterr()
    compare([str(runs)])
    shown = lines(capsys)
    assert "test/elbo, best first" in shown, "the runs have no accuracy: their monitor, of the test"
    assert ranked_elbos(runs) == [-88, -89, -90]
    assert not any("most frequent class" in line for line in shown)
    html = (runs / "compare.html").read_text()
    assert "Learning curves" in html and "most frequent class" not in html
    compare([str(runs), "metric=test/f1"])
    assert "test/f1, best first" in lines(capsys)


@pytest.mark.parametrize(
    ("words", "mode", "answer"),
    [
        (["metric=val/elbow"], "max", "Did you mean val/elbo?\nThey are: test/elbo, test/f1, val/elbo, seconds, par"),
        (["metric=val/elbo"], None, "metric=val/elbo: is it to be small or large? Add mode=min or mode=max"),
        (["metric=val/elbo", "mode=up"], None, "one of min, max"),
        (["metrics=val/elbo"], None, "Did you mean metric?"),
    ],
)
def test_a_metric_that_no_run_has_is_an_error_in_one_line(
    words: list[str], mode: str | None, answer: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(answer)):
        compare([str(saved(tmp_path, vae(mode=mode))), *words])
    assert not list(tmp_path.glob("compare.*"))


def test_runs_with_and_without_a_metric_have_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = saved(tmp_path, vae(), result(0, 0.1, 0.9))
    compare([str(runs), "metric=test/acc"])
    assert any("own.Pairs" in line for line in lines(capsys))


def test_data_without_a_digest_is_identified_by_its_name() -> None:
    one, two = vae(), vae(1)
    other = replace(two, data={**two.data, "name": "own.Triples"})
    assert len(sections([one, two], "val/elbo")) == 1
    assert [section.headline for section in sections([one, other], "val/elbo")] == ["own.Pairs", "own.Triples"]


def test_a_run_without_a_test_was_not_cut_short() -> None:
    found = replace(vae(), data={**vae().data, "test": 1000, "digest": "0" * 64})
    assert limits_of(found) == {}


def test_runs_of_earlier_versions_are_like_those_of_today() -> None:
    """Their configs have no module and no monitor, and names of classes that have moved since."""
    adam = {"_target_": "mnist_lab.training.Adam", "lr": 0.1}
    plateau = {"_target_": "mnist_lab.training.schedules.Plateau", "monitor": "val/loss"}
    before = replace(result(0, 0.1, 0.9), config={"optimizer": adam, "schedule": plateau})
    module = {"_target_": "mnist_lab.fast.FastClassifier"}
    today: dict[str, Any] = {
        "module": module,
        "monitor": "val/acc",
        "mode": None,
        "schedule": {**plateau, "mode": "min"},
    }
    now = replace(before, config={**today, "optimizer": {**adam, "_target_": "mnist_lab.fast.Adam"}}, seed=1)
    (group,) = grouped([before, now], "test/acc")
    assert len(group.results) == 2


def test_learning_curves_are_drawn_of_what_was_logged() -> None:
    (curve,) = sweep_report._curves(grouped([vae(0), vae(1, -80.0)], "val/elbo", "max"), "val").axes[0].lines
    assert list(curve.get_ydata()) == [-95, -90]  # type: ignore[arg-type]
