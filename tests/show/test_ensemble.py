"""`ensemble`: the mean of several runs' probabilities, and what it gets right."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Command, in_memory
from PIL import Image
from some import some

import mnist_lab
from mnist_lab.data import mnist_5k

SHORT = ["model=mlp_784_32", "data=mnist_5k", "trainer.max_epochs=2", "trainer.accelerator=cpu", "logger=none"]
SHORT += ["data.val=random", "data.val_size=1", "test_checkpoint=best"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs that were tested with their best weights, which are not the last. Not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        mnist_lab.train(*SHORT, "optimizer.lr=0.5", f"seed={seed}", "report=false", run_dir=folder / str(seed))
    return folder


@pytest.mark.slow
def test_an_image_gets_the_class_of_the_highest_mean_probability(runs: Path, lab: Command) -> None:
    images = mnist_5k(Path(), False)
    best = [torch.load(runs / f"{seed}/checkpoints/best.ckpt", weights_only=True)["epoch"] for seed in range(3)]
    assert 0 in best, "not the last epoch's weights"
    members = [mnist_lab.load_run(runs / str(seed), device="cpu") for seed in range(3)]
    mean = torch.stack([run.predict(in_memory(images.test_images)) for run in members]).double().mean(0)
    wrong = int((mean.argmax(1) != images.test_labels).sum())
    loss = torch.nn.functional.nll_loss(mean.log(), images.test_labels).item()

    done = lab("ensemble", str(runs))
    assert done.returncode == 0, done.stderr
    rows = {
        cells[0]: cells[1:]
        for line in done.stdout.splitlines()
        if len(cells := re.split(r"\s*[│┃]\s*", line.strip(" │┃"))) > 1
    }
    assert rows["all together"] == [f"{loss:.4f}", f"{1 - wrong / 1000:.2%}"]
    assert rows["wrong, of all images"][-1] == str(wrong)
    accuracies = [run.result.test["acc"] for run in members]
    assert rows["mean of one"][-1] == f"{sum(accuracies) / 3:.2%}"
    assert [rows[str(runs / str(seed))][-1] for seed in range(3)] == [f"{value:.2%}" for value in accuracies]


@pytest.mark.parametrize(
    ("words", "answer"),
    some(
        [
            ([], "use: python -m mnist_lab ensemble"),
            (["nowhere"], "nowhere: there is no such folder"),
            (["RUNS/0"], "1 finished run"),
            (["RUNS", "optimizer.lrr=1"], "optimizer.lrr: the run has no such option"),
            (["RUNS", "optimizer.lrr=" + 300 * "1"], "optimizer.lrr: the run has no such option"),
        ],
        3,
    ),
)
def test_runs_that_make_no_ensemble_are_refused_in_one_line(
    words: list[str], answer: str, runs: Path, lab: Command
) -> None:
    done = lab("ensemble", *(word.replace("RUNS", str(runs)) for word in words))
    assert done.returncode == 2 and answer in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_ensembles_accuracies_are_of_the_current_images(lab: Command, tmp_path: Path) -> None:
    for n in range(60):
        folder = tmp_path / "pictures" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 4 * n).save(folder / f"{n}.png")
    words = ["data=image_folder", "data.root=pictures", "data.shape=[1,8,8]", "data.val=none", "model=mlp_784_32"]
    for seed in "01":
        assert (
            lab(*words, f"seed={seed}", "trainer.max_epochs=1", "report=false", f"hydra.run.dir=runs/{seed}").returncode
            == 0
        )
    recorded = lab("ensemble", "runs").stdout
    for path in (tmp_path / "pictures/a").glob("*.png"):
        shutil.copy(path, tmp_path / "pictures/b" / f"copy-{path.name}")  # no network can be right about both
    done = lab("ensemble", "runs")
    assert done.returncode == 0, done.stderr
    assert "their digest differs" in done.stdout and "their digest differs" not in recorded
    shown = [re.findall(r"runs/[01].*?([\d.]+)%", text) for text in (recorded, done.stdout)]
    assert len(shown[0]) == 2 and shown[0] != shown[1], shown


@pytest.mark.slow
def test_losses_of_logits_far_apart_are_finite(lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "data.scale=none", "model.hidden=[]", "model.dropout=0", "optimizer.lr=0.002"]
    for seed in "01":
        done = lab(*words, f"seed={seed}", "trainer.max_epochs=1", "report=false", f"hydra.run.dir=runs/{seed}")
        assert done.returncode == 0, done.stderr
    done = lab("ensemble", "runs")
    for seed in "01":
        loss = mnist_lab.load_run(tmp_path / "runs" / seed).result.test["loss"]
        assert f"{loss:.4f}" in done.stdout and "inf" not in done.stdout


def test_a_copy_of_a_run_is_no_further_member(runs: Path, lab: Command, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    shutil.copytree(runs / "1", tmp_path / "runs/1-again")
    done = lab("ensemble", "runs")
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr
        == f"error: {tmp_path}/runs/1-again is a copy of {tmp_path}/runs/1: an ensemble has different runs\n"
    )


def test_runs_of_different_test_sets_are_not_averaged(runs: Path, lab: Command, tmp_path: Path) -> None:
    shutil.copytree(runs / "0", tmp_path / "a/0")
    shutil.copytree(runs / "1", tmp_path / "a/1")
    path = tmp_path / "a/1/result.json"
    digest = mnist_lab.load_run(runs / "0", device="cpu").result.data["digest"]
    changed = json.loads(path.read_text().replace(digest, "0" * 64))
    del changed["sha256"]
    path.write_text(json.dumps(changed))
    done = lab("ensemble", "a")
    assert done.returncode == 2 and "were tested on different files" in done.stderr
