"""A finished run leaves one page that opens offline, with the numbers of its result, and its figures beside it."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import warm
from conftest import Command, in_memory, result_in
from PIL import Image

from mnist_lab import load_run
from mnist_lab.data import mnist_5k
from mnist_lab.result import Result
from mnist_lab.show.answers import Answers
from mnist_lab.show.curves import curves
from mnist_lab.show.figures import class_scores, confusion_matrix
from mnist_lab.show.page import _most_confused
from mnist_lab.show.style import png

RUN = ("model=mlp_512", "data=mnist_5k", "data.val=random", "trainer.max_epochs=2", "trainer=cpu", "hydra.run.dir=run")
FIGURES = {"curves", "predictions", "mistakes", "confusion", "classes", "calibration", "network", "weights"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    done = warm.lab([*RUN], path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "report       run/report.html\n" in done.stdout
    return path / "run"


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def answers(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the test images, (1000, 10), and their labels."""
    images = mnist_5k(Path(), False)
    return load_run(folder, device="cpu").predict(in_memory(images.test_images)), images.test_labels


def tables(page: str) -> list[list[list[str]]]:
    return [
        [
            [unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", table)
        ]
        for table in re.findall(r"<table.*?>(.*?)</table>", page, flags=re.DOTALL)
    ]


@pytest.mark.slow
def test_the_page_is_one_file_that_asks_for_nothing(page: str) -> None:
    assert not re.search(r"<(script|link|iframe)", page)
    assert re.findall(r'(?:src|href)="(?!data:image/svg\+xml;base64,)', page) == []
    assert "url(" not in page and "@import" not in page
    assert "model=mlp_512 data=mnist_5k" in page


def test_the_figures_of_the_page_are_those_beside_it(folder: Path, page: str) -> None:
    assert {path.stem for path in (folder / "figures").iterdir()} == FIGURES
    drawn = {base64.b64decode(content).decode() for content in re.findall(r"svg\+xml;base64,([^\"]+)", page)}
    assert drawn == {path.read_text() for path in (folder / "figures").iterdir()}
    for text in drawn:
        assert ET.fromstring(text).tag.endswith("svg")
        assert "<dc:date>" not in text


def test_the_numbers_are_those_of_the_result(folder: Path, page: str) -> None:
    result = Result.load(folder)
    n, p, z = result.test["n"], result.test["acc"], 1.959963984540054
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))  # Wilson 1927
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert f"<b>{100 * p:.2f} %</b>" in page
    assert f"<b>{100 * low:.2f} – {100 * high:.2f} %</b>" in page
    assert f"<b>{result.test['loss']:.4f}</b>" in page
    assert f"{result.test['correct']:,} of 1,000 images" in page
    assert result.command.endswith(" hydra.run.dir=run")
    command = result.command.removesuffix(" hydra.run.dir=run")  # which would be refused: it has files now
    assert f"<pre class=command>{command}</pre>" in page
    assert f"{result.machine['memory_gb']:.2f} GB" in page and 0.2 < result.machine["memory_gb"] < 20
    assert result.data["digest"] in page and result.packages["torch"] in page
    assert "predicted again" not in page  # what was predicted for the page is what the test counted


def test_precision_recall_and_mistakes_are_those_of_the_predictions(
    page: str, answers: tuple[torch.Tensor, torch.Tensor]
) -> None:
    predicted, labels = answers[0].argmax(1), answers[1]
    confused, scores, layers, _ = tables(page)
    for k, row in enumerate(scores[1:]):
        right = int(((predicted == k) & (labels == k)).sum())
        precision, recall = right / int((predicted == k).sum()), right / int((labels == k).sum())
        assert row == [str(k), "100", f"{100 * precision:.2f} %", f"{100 * recall:.2f} %"]
    for label, taken, times, share in confused[1:]:
        count = int(((labels == int(label)) & (predicted == int(taken))).sum())
        assert (times, share) == (str(count), f"{count:.2f} %")
    assert layers[-1] == ["all", "", "407,050"] and ["Linear", "512", "401,920"] in layers
    assert f"15 of {int((predicted != labels).sum())} mistakes" in page


def test_the_calibration_error_is_that_of_the_predictions(
    page: str, answers: tuple[torch.Tensor, torch.Tensor]
) -> None:
    confidence, predicted = answers[0].double().max(1)
    right = (predicted == answers[1]).double()
    error = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        error += abs(float((right[inside] - confidence[inside]).sum())) / 1000
    assert f"Expected calibration error: <b>{100 * error:.2f} %</b>" in page


def test_the_pictures_say_what_was_predicted(folder: Path, answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    shown = re.findall(r">Predicted: (\d) Label: (\d)<", (folder / "figures/predictions.svg").read_text())
    assert shown == [(str(int(p.argmax())), str(int(k))) for p, k in zip(answers[0][:9], answers[1][:9], strict=True)]
    wrong = (answers[0].argmax(1) != answers[1]).nonzero().flatten()
    surest = answers[0].max(1).values[wrong].max()
    assert f", {100 * surest:.2f} %<" in (folder / "figures/mistakes.svg").read_text()


@pytest.fixture
def five() -> Answers:
    """Three images of class a, one of which is taken for c; one of b; one of c."""
    labels, predicted = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 0, 2, 1, 2])
    return Answers(torch.eye(3)[predicted] * 0.9 + 0.03, labels, torch.zeros(5, 1, 2, 2), ("a", "b", "c"))


def test_figures_have_labels_down_predictions_across_and_precision_by_its_name(five: Answers) -> None:
    (ax, *_) = confusion_matrix(five).axes
    cells = {(round(y), round(x)): text.get_text() for text in ax.texts for x, y in [text.get_position()]}
    assert cells == {(0, 0): "2", (0, 2): "1", (1, 1): "1", (2, 2): "1"}
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("label", "predicted")
    drawn = {str(line.get_label()): np.asarray(line.get_xdata()).tolist() for line in class_scores(five).axes[0].lines}
    assert drawn["precision"] == pytest.approx([100, 100, 50])
    assert drawn["recall"] == pytest.approx([200 / 3, 100, 100])


@pytest.mark.parametrize("taken", [0, 1, 6, 30])  # of 100 images of a class for another
def test_a_confusion_matrix_is_drawn_whole_with_a_scale_where_there_are_mistakes(taken: int) -> None:
    labels = torch.arange(10).repeat_interleave(100)
    predicted = labels.clone()
    predicted[:taken] = 3
    figure = confusion_matrix(
        Answers(torch.eye(10)[predicted], labels, torch.zeros(1000, 1, 2, 2), tuple("abcdefghij"))
    )
    figure.axes[0].set_title("mistakes")
    assert len(figure.axes) == (2 if taken else 1)
    drawn = np.asarray(Image.open(io.BytesIO(png(figure))).convert("L")) < 250
    for edge in (drawn[:5], drawn[-5:], drawn[:, :5], drawn[:, -5:]):
        assert not edge.any()


def test_a_rare_mistake_is_not_0_percent_of_the_images() -> None:
    labels = torch.zeros(8990, dtype=torch.int64)
    predicted = labels.clone()
    predicted[0] = 1
    found = Answers(torch.eye(2)[predicted], labels, torch.zeros(8990, 1, 1, 1), ("a", "b"))
    assert tables(_most_confused(found))[0][1] == ["a", "b", "1", "0.01 %"]


def test_precision_and_recall_are_shown_up_to_100_percent(five: Answers) -> None:
    assert class_scores(five).axes[0].get_xlim()[1] <= 101


def test_long_names_of_classes_are_cut_with_a_mark_and_stay_apart() -> None:
    names = (
        "short", "a name of exactly 20", "one of more than twenty letters", "golden retriever, adult dog",
        "golden retriever, adult bitch", "20 $ and some more cents",
    )  # fmt: skip
    found = Answers(torch.eye(6), torch.arange(6), torch.zeros(6, 1, 2, 2), names).names
    assert found == (
        "short", "a name of exactly 20", "one of more than tw…", "golden ret…adult dog", "golden ret…ult bitch",
        r"20 \$ and some more …",
    )  # fmt: skip


def test_curves_are_labelled_with_their_metrics() -> None:
    rows = [{"epoch": n, "train/loss": 1 / n, "train/acc": 0.5, "val/loss": 2 / n, "val/acc": 0.4} for n in (1, 2)]
    result: Any = SimpleNamespace(history=rows, test_metrics={"loss": 0.7, "acc": 0.3}, tested=rows[-1])
    loss, accuracy = (
        {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in ax.lines}
        for ax in curves(result).axes
    )
    assert loss == {"training": [1, 0.5], "validation": [2, 1], "test, at the end": [0.7, 0.7]}
    assert accuracy == {"training": [50, 50], "validation": [40, 40], "test, at the end": [30, 30]}
    result.tested = rows[0]
    assert "test, epoch 1's network" in [line.get_label() for line in curves(result).axes[0].lines]


@pytest.mark.slow
def test_a_report_on_other_images_than_the_runs_says_so(folder: Path, lab: Command, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    result = Result.load(folder)
    replace(result, data={**result.data, "digest": "0" * 64}).save(tmp_path / "run")
    assert "their digest differs" in lab("test", "run=run").stdout
    assert lab("report", "run=run").returncode == 0
    assert "other files than the run recorded: their digest differs" in (tmp_path / "run/report.html").read_text()


@pytest.mark.slow
def test_the_report_verb_makes_the_same_files_again(folder: Path, lab: Command, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("report.html", "figures"))
    done = lab("report", "run=one,two")
    assert done.returncode == 0, done.stderr
    assert "one/report.html" in done.stdout and "two/report.html" in done.stdout
    for name in ("one", "two"):
        assert (tmp_path / name / "report.html").read_bytes() == (folder / "report.html").read_bytes()


@pytest.mark.slow
def test_a_run_without_a_finite_number_has_a_page_with_gaps(folder: Path, lab: Command, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "nan")
    checkpoint = tmp_path / "nan/checkpoints/last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    for weight in saved["state_dict"].values():
        weight.fill_(torch.nan)
    torch.save(saved, checkpoint)
    result = json.loads((tmp_path / "nan/result.json").read_text())
    del result["sha256"]
    result["history"][1]["train/loss"] = result["history"][1]["val/loss"] = result["test"]["loss"] = None
    result["notes"] = ["Training diverged <here>."]
    (tmp_path / "nan/result.json").write_text(json.dumps(result))
    done = lab("report", "run=nan")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    page = (tmp_path / "nan/report.html").read_text()
    assert "<div class=warning><p>Training diverged &lt;here&gt;.</p></div>" in page
    assert "<b>not finite</b>" in page and page.count("The network gives no finite probability") == 2
    assert "predicted again" in page


@pytest.mark.slow
def test_a_multirun_and_report_false_leave_no_report(lab: Command, tmp_path: Path) -> None:
    assert lab("trainer=debug", "data=mnist_5k", "report=false", "hydra.run.dir=single").returncode == 0
    done = lab("-m", "trainer=debug", "data=mnist_5k", "seed=0", "hydra.sweep.dir=several")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert list(tmp_path.rglob("report.html")) == []
    assert lab("trainer=debug", "report=maybe").stderr.startswith("error: report=maybe is not allowed")


OWN = """
import os
from torch import nn
made = []
class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        made.append(self)
        if "TWICE" in os.environ and len(made) > 1:
            raise RuntimeError("not twice")
        self.layer = nn.GRU(shape[2], 16, batch_first=True)
        self.out = nn.Linear(16, 10)
    def forward(self, images):
        return self.out(self.layer(images.squeeze(1)[:, ::7])[0][:, -1])
"""


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text("_target_: own.Net\nshape: ${data.shape}\n")
    return ("--config-dir", "conf", "data=mnist_5k", "model=mine", "trainer=debug", "logger=none", "data.val=random")


@pytest.mark.slow
def test_a_network_of_ones_own_has_a_page(lab: Command, tmp_path: Path, own: tuple[str, ...]) -> None:
    done = lab(*own)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (page,) = tmp_path.rglob("report.html")
    text = page.read_text()
    assert "<td>GRU</td><td>4×16</td>" in text
    assert "What the first layer looks for" not in text
    assert "of 800 images" in text  # trainer=debug tests no more
    assert "predicted again" not in text


@pytest.mark.slow
def test_a_report_that_fails_harms_nothing(lab: Command, tmp_path: Path, own: tuple[str, ...]) -> None:
    done = lab(*own, TWICE="1")
    assert done.returncode == 0, done.stderr
    assert "no report: " in done.stdout and "not twice" in done.stdout
    assert "python -m mnist_lab report run=outputs/" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert result_in(tmp_path).test["n"] == 800
    (log,) = tmp_path.rglob("run.log")
    assert "Traceback" in log.read_text() and not list(tmp_path.rglob("report.html"))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((), "which run?"),
        (("run=nowhere",), "there is no such folder"),
        (("run=.",), "has no config.yaml"),
        (("nonsense",), "nonsense: there is no such folder"),
        (("run=.", "nonsense"), "not understood"),
    ],
)
def test_a_mistake_gets_one_clear_answer(words: tuple[str, ...], answer: str, lab: Command, tmp_path: Path) -> None:
    done = lab("report", *words)
    assert done.returncode == 2
    assert answer in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_with_a_comma_in_its_name_is_one_run(folder: Path, lab: Command, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model=mlp,seed=0")
    shutil.copytree(folder, tmp_path / "b")
    for words in ("run=model=mlp,seed=0", "run=b,b"):
        done = lab("report", words)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 2


def test_a_run_that_never_ended_has_no_report(folder: Path, lab: Command, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "cut", ignore=shutil.ignore_patterns("result.json"))
    done = lab("report", "run=cut")
    assert done.returncode == 2 and "is no finished run" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium")
def test_a_browser_opens_the_report_without_errors(folder: Path, tmp_path: Path) -> None:
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    words += [f"--user-data-dir={tmp_path}", f"file://{folder}/report.html"]
    done = subprocess.run(words, env={**os.environ}, capture_output=True, text=True, timeout=120)
    assert "Expected calibration error" in done.stdout
    assert "CONSOLE" not in done.stderr
