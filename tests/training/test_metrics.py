"""`metrics=` adds torchmetrics objects: recorded, judged by, searched for and compared like loss and accuracy."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import mnist_lab
from mnist_lab.build import build_tested
from mnist_lab.composing import compose_config
from mnist_lab.errors import UserError
from mnist_lab.result import Result
from mnist_lab.trained import TrainedRun

WORDS = ["data=mnist_5k", "model=mlp_784_32", "optimizer=adam", "data.train_size=600", "data.val_size=500"]
WORDS += ["data.batch_size=50", "trainer.max_epochs=2"]
F1 = "torchmetrics.classification.MulticlassF1Score"
KAPPA = "+metrics.kappa._target_=torchmetrics.classification.MulticlassCohenKappa"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("metrics") / "run"
    return mnist_lab.train(*WORDS, "metrics=classification", KAPPA, run_dir=folder)


def _of_predictions(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the metrics, by their formulas, of predictions for test images."""
    shares, truth = probabilities.double().numpy(), labels.numpy()
    counts = np.zeros((10, 10))
    np.add.at(counts, (truth, shares.argmax(1)), 1)
    right, n = counts.diagonal(), counts.sum()
    precision, recall = right / np.maximum(counts.sum(0), 1), right / counts.sum(1)
    f1 = 2 * right / (counts.sum(0) + counts.sum(1))
    chance = (counts.sum(0) * counts.sum(1)).sum() / n**2
    areas = []  # the share of pairs of an image of the class and another in which the first has the higher probability
    for number in range(10):
        own, others = shares[truth == number, number], shares[truth != number, number]
        higher = (own[:, None] > others).mean() + 0.5 * (own[:, None] == others).mean()
        areas.append(higher)
    return {
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
        "auroc": float(np.mean(areas)),
        "kappa": (right.sum() / n - chance) / (1 - chance),
    }


@pytest.mark.slow
def test_metric_values_are_those_of_the_runs_predictions(run: TrainedRun) -> None:
    data = build_tested(run.cfg, run.run_dir)
    assert data.images is not None and isinstance(data.images.test_images, Tensor)
    expected = _of_predictions(run.predict(data.images.test_images), data.images.test_labels)
    assert {name: run.result.test["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_precision_recall_and_support_of_each_class_are_recorded(run: TrainedRun) -> None:
    classes = json.loads((run.run_dir / "result.json").read_text())["test"]["classes"]
    assert [each["name"] for each in classes] == list("0123456789")
    assert sum(each["support"] for each in classes) == run.result.test["n"]
    right = sum(each["recall"] * each["support"] for each in classes)
    assert right == pytest.approx(run.result.test["correct"])
    mean = np.mean([each["precision"] or 0 for each in classes])
    assert mean == pytest.approx(run.result.test["metrics"]["precision"], abs=1e-6)


def test_metrics_are_in_the_history_and_in_tensorboard(run: TrainedRun) -> None:
    with (run.run_dir / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(str(run.run_dir / "tensorboard"))
    events.Reload()
    for name in ("precision", "recall", "f1", "auroc", "kappa"):
        curve = [event.value for event in events.Scalars(f"val/{name}")]
        assert [float(row[f"val/{name}"]) for row in rows] == pytest.approx(curve, abs=1e-6) and len(curve) == 2
        assert f"train/{name}" not in rows[0], "of validation and test"


@pytest.mark.slow
def test_both_classifiers_have_the_same_metrics(run: TrainedRun, tmp_path: Path) -> None:
    words = [*WORDS, "metrics=classification", KAPPA, "module=textbook", "logger=none"]
    other = mnist_lab.train(*words, run_dir=tmp_path / "textbook").result
    assert run.result.module["steps"] == "several at a time" and other.module["steps"] == "one at a time"
    assert other.test["classes"] == run.result.test["classes"]
    for ours, theirs in zip(run.result.history, other.history, strict=True):
        names = [name for name in ours if name.startswith("val/")]
        assert {n: ours[n] for n in names} == pytest.approx({n: theirs[n] for n in names}, abs=1e-6)


@pytest.mark.slow
def test_a_run_can_be_judged_by_a_chosen_metric(tmp_path: Path) -> None:
    words = [*WORDS, KAPPA, "logger=none", "monitor=val/kappa", "mode=max", "callbacks=early_stopping"]
    run = mnist_lab.train(
        *words, "test_checkpoint=best", "trainer.max_epochs=9", "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=0.5", run_dir=tmp_path / "run",
    )  # fmt: skip
    history = run.result.history
    assert run.result.ended["by"] == "early_stopping" and len(history) == 2
    assert run.result.test["epoch"] == 1 + int(np.argmax([row["val/kappa"] for row in history]))
    saved = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert saved["callbacks"]["Checkpoints"]["best"] == pytest.approx(max(row["val/kappa"] for row in history))


@pytest.mark.slow
def test_a_sweep_can_search_and_compare_can_rank_by_a_chosen_metric(lab: Command, tmp_path: Path) -> None:
    words = [*WORDS, "metrics=classification", "logger=none", "optimizer.lr=0.00001,0.001"]
    done = lab("-m", *words, "sweep.objective=val/f1", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    trials = {folder: Result.load(tmp_path / "s" / folder) for folder in ("0", "1")}
    with (tmp_path / "s/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], row["optimizer.lr"]) for row in rows] == [("val/f1", "0.001"), ("val/f1", "1e-05")]
    assert float(rows[0]["mean"]) == trials["1"].history[-1]["val/f1"]
    done = lab("compare", "s/0", "s/1", "metric=test/f1", "dir=compared")
    with (tmp_path / "compared/compare.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["mean"]) == trials["1"].test["metrics"]["f1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("monitor=val/f1", "monitor=val/f1 is not allowed: it must be one of train/loss"),
        ("metrics=classification monitor=val/f2", "val/f2 is not allowed: .*val/f1"),
        (f"{KAPPA} monitor=val/kappa", "val/kappa: its name doesn't say whether"),
        ("metrics=clasification", "there is no such metrics. Did you mean classification"),
    ],
)
def test_a_missing_metric_is_an_error_before_the_run(words: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config(words.split())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"+metrics.f1={{_target_:{F1},average:null}}", "gives more than one number"),
        ("+metrics.x._target_=torchmetrics.MeanSquaredLogError", r"metrics\.x"),
        ("+metrics.x._target_=torch.nn.ReLU", r"metrics\.x is no torchmetrics\.Metric"),
        ("+metrics.x=5", r"metrics\.x is no torchmetrics\.Metric"),
        (f"+metrics.acc._target_={F1}", r"metrics\.acc: another name is needed"),
    ],
)  # fmt: skip
def test_a_metric_that_takes_no_probabilities_and_labels_is_refused(word: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        mnist_lab.train(*WORDS, word, run_dir=tmp_path / "run")
