"""TensorBoard's own reader finds every run's curves over its epochs, and with callbacks=dashboard much more."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
import yaml
from conftest import Command, in_memory
from lightning.pytorch.callbacks import Callback
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import get_experiment, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS, GetExperimentRequest, ListSessionGroupsRequest
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.util.tensor_util import make_ndarray

from mnist_lab import train
from mnist_lab.build import build_tested
from mnist_lab.result import Result
from mnist_lab.show import figures
from mnist_lab.show.tensorboard import Dashboard
from mnist_lab.trained import load_run

RUN = ("model=mlp", "data=mnist_5k", "data.val=random", "model.hidden=[64,32]", "trainer=cpu", "trainer.max_epochs=2")
FULL = (
    "callbacks=[early_stopping,dashboard]",
    "callbacks.dashboard.histograms=true",
    "callbacks.dashboard.embedding=100",
)


def trained(folder: Path, *words: str) -> Path:
    done = warm.lab([*words, f"hydra.run.dir={folder}"], folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("plain"), *RUN)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("full"), *RUN, *FULL)


def read(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(
        str(run_dir / "tensorboard"), size_guidance={"images": 0, "histograms": 0, "tensors": 0}
    ).Reload()


def steps(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Scalars(tag)]


@pytest.mark.slow
def test_every_run_draws_its_curves_at_the_last_step_of_each_epoch(plain: Path) -> None:
    events = read(plain)
    for tag in ("train/loss", "train/acc", "val/loss", "val/acc", "lr", "train/images_per_second"):
        assert steps(events, tag) == [27, 55]  # of 28 an epoch
    assert {(event.step, event.value) for event in events.Scalars("epoch")} == {(27, 0), (55, 1), (56, 2)}
    assert steps(events, "test/acc") == steps(events, "test/loss") == [56]
    for event, row in zip(events.Scalars("train/images_per_second"), Result.load(plain).history, strict=True):
        assert event.value >= 3500 / row["seconds"]  # which validation is part of
    assert events.Tags()["images"] == events.Tags()["histograms"] == [] and not events.Tags()["graph"]


def test_every_run_has_training_and_validation_on_one_chart(plain: Path) -> None:
    (event,) = read(plain).Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts == {"loss": ["train/loss", "val/loss"], "accuracy": ["train/acc", "val/acc"]}


@pytest.mark.slow
def test_the_dashboard_changes_no_number(plain: Path, full: Path) -> None:
    rows = [[{**row, "seconds": 0} for row in Result.load(folder).history] for folder in (plain, full)]
    assert rows[0] == rows[1]
    assert Result.load(plain).test == Result.load(full).test


def test_the_dashboard_callback_keeps_several_steps_at_a_time() -> None:
    hooks = [name for name in vars(Callback) if "batch" in name or "backward" in name or "optimizer" in name]
    assert len(hooks) >= 10
    for name in ("on_before_zero_grad", *hooks):
        assert getattr(Dashboard, name) is getattr(Callback, name)


def test_mistakes_of_each_epoch_and_the_confusion_matrix_are_pictures(full: Path) -> None:
    events = read(full)
    assert sorted(events.Tags()["images"]) == ["confusion_matrix/test", "mistakes/validation"]
    assert [event.step for event in events.Images("mistakes/validation")] == [27, 55]
    assert [event.step for event in events.Images("confusion_matrix/test")] == [56]
    for tag in events.Tags()["images"]:
        picture = np.asarray(Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string)))
        assert min(picture.shape[:2]) >= 700 and picture.std() > 20


@pytest.mark.slow
def test_the_worst_mistakes_come_first_and_the_confusion_matrix_has_labels_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    for name in ("titled", "confusion_matrix"):
        draw = getattr(figures, name)
        monkeypatch.setattr(figures, name, lambda *a, n=name, draw=draw: (seen.update({n: a}), draw(*a))[1])
    words = ["model=mlp_784_32", "data=mnist_5k", "data.val=random", "callbacks=dashboard", "trainer.max_epochs=1"]
    train(*words, "trainer.accelerator=cpu", "report=false", run_dir=tmp_path / "run")
    run = load_run(tmp_path / "run", device="cpu")
    data = build_tested(run.cfg, tmp_path / "run")
    assert data.images is not None

    images, labels = in_memory(data.images.train_images)[data.val_index], data.images.train_labels[data.val_index]
    found = run.predict(images)
    of_the_truth = found[torch.arange(len(labels)), labels].masked_fill(found.argmax(1) == labels, 2.0)
    assert torch.equal(seen["titled"][0][0], images[of_the_truth.argmin()])

    expected = torch.zeros(10, 10, dtype=torch.int64)
    predicted = run.predict(in_memory(data.images.test_images)).argmax(1)
    for label, taken in zip(data.images.test_labels, predicted, strict=True):
        expected[label, taken] += 1
    assert torch.equal(seen["confusion_matrix"][0].confusion(), expected) and not torch.equal(expected, expected.T)


def test_precision_and_recall_are_of_the_whole_test_set(full: Path) -> None:
    events = read(full)
    for name in "0123456789":
        (event,) = events.Tensors(f"precision_recall/{name}")
        true_positives, false_positives, *_ = make_ndarray(event.tensor_proto)
        assert true_positives[0] == 100 and false_positives[0] == 900  # at a threshold of 0


def test_histograms_are_of_all_weights_and_their_gradients(full: Path) -> None:
    events = read(full)
    names = [f"layers.{n}.{kind}" for n in (1, 4, 7) for kind in ("weight", "bias")]
    assert set(events.Tags()["histograms"]) == {f"{of}/{name}" for of in ("weights", "gradients") for name in names}
    for tag in events.Tags()["histograms"]:
        assert [event.step for event in events.Histograms(tag)] == [27, 55]
    assert events.Histograms("gradients/layers.1.weight")[0].histogram_value.num == 64 * 784


def test_the_graph_shows_standard_layers(full: Path) -> None:
    graph = GraphDef.FromString(read(full).Graph().SerializeToString())
    operations = [node.op for node in graph.node if "::" in node.op]
    assert operations.count("aten::linear") == 3
    assert all(name.startswith(("aten::", "prim::")) for name in operations)
    assert any(node.name.startswith("MLP/") for node in graph.node)


def test_the_projector_has_the_last_hidden_layer_with_pictures_and_classes(full: Path) -> None:
    folder = full / "tensorboard"
    config = (folder / "projector_config.pbtxt").read_text()
    points = np.loadtxt(folder / "00000/last_hidden_layer/tensors.tsv", delimiter="\t")
    rows = [row.split("\t") for row in (folder / "00000/last_hidden_layer/metadata.tsv").read_text().splitlines()]
    sprite = Image.open(folder / "00000/last_hidden_layer/sprite.png")
    assert "last_hidden_layer" in config and "sprite.png" in config and "metadata.tsv" in config
    assert sprite.size == (280, 280) and points.shape == (100, 32)

    run = load_run(full)
    data = build_tested(run.cfg, full)
    sample = torch.linspace(0, 999, 100).long()
    assert data.images is not None and isinstance(data.images.test_images, torch.Tensor)
    images = data.images.test_images[sample]
    hidden = run.net.layers[:-1](run.scale(images))  # type: ignore[index, operator]
    np.testing.assert_allclose(points, hidden.numpy(), atol=1e-3)
    predicted, labels = run.predict(images).argmax(1).tolist(), data.images.test_labels[sample].tolist()
    assert rows[0] == ["answer", "label", "predicted"]
    assert [(int(label), int(answer)) for _, label, answer in rows[1:]] == list(zip(labels, predicted, strict=True))
    wrong = [label != answer for label, answer in zip(labels, predicted, strict=True)]
    assert [" → " in row[0] for row in rows[1:]] == wrong and any(wrong)


@pytest.mark.slow
def test_pictures_are_of_the_images_that_were_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    for name in ("least_probable", "confusion_matrix"):
        draw = getattr(figures, name)
        monkeypatch.setattr(
            figures, name, lambda *a, n=name, draw=draw: (seen.update({n: len(a[0].labels)}), draw(*a))[1]
        )
    words = ["model=mlp", "data=mnist_5k", "data.val=random", "trainer=debug", "trainer.accelerator=cpu"]
    words += ["trainer.limit_val_batches=1", "callbacks=dashboard", "report=false"]
    tested = train(*words, run_dir=tmp_path / "run").result.test["n"]
    assert seen == {"least_probable": 400, "confusion_matrix": 800} and tested == 800


@pytest.mark.slow
def test_the_dashboard_works_without_validation(tmp_path: Path) -> None:
    words = ["model=cnn", "data=mnist_5k", "data.val=none", "trainer=debug", "trainer.accelerator=cpu"]
    tags = read(trained(tmp_path / "run", *words, "callbacks=dashboard")).Tags()
    assert tags["images"] == ["confusion_matrix/test"] and tags["graph"]
    assert (tmp_path / "run/tensorboard/projector_config.pbtxt").exists()


def test_a_dashboard_without_tensorboard_is_a_mistake(lab: Command) -> None:
    done = lab("callbacks=dashboard", "logger=none")
    assert done.returncode == 2 and "add logger=tensorboard" in done.stderr


NETWORKS = """
import torch
import warm
from torch import nn

class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.unused = nn.Linear(6, 2), nn.Linear(3, 2)
        self.hidden, self.of_patches = nn.Linear(24 * 20, 6), nn.Linear(20, 20)

    def forward(self, images):
        patches = self.of_patches(images.flatten(1).reshape(-1, 20)).reshape(len(images), -1)
        return self.last(self.hidden(patches).relu())
"""


@pytest.mark.slow
def test_the_projector_has_the_last_linear_layer_that_an_image_meets_whatever_its_shape(
    lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(NETWORKS)
    for n in range(40):
        (tmp_path / f"images/{'a$' if n % 2 else 'b${'}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 24), 6 * n).save(tmp_path / f"images/{'a$' if n % 2 else 'b${'}/{n}.png")
    words = ["data=image_folder", "data.root=images", "data.shape=[1,24,20]", "data.val=random", "callbacks=dashboard"]
    words += ["trainer.max_epochs=1", "report=false", "hydra.run.dir=run"]
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text("_target_: own.Patches\n")
    done = lab("--config-dir", "conf", "model=own", *words, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    points = np.loadtxt(tmp_path / "run/tensorboard/00000/last_hidden_layer/tensors.tsv", delimiter="\t")
    assert points.shape[1] == 6
    sprite = Image.open(tmp_path / "run/tensorboard/00000/last_hidden_layer/sprite.png")
    assert sprite.size[0] % 24 == sprite.size[1] % 24 == 0


@pytest.mark.slow
def test_the_hparams_tab_has_a_column_for_all_settings_of_all_runs_as_they_are_now(
    lab: Command, tmp_path: Path
) -> None:
    words = ["data=mnist_5k", "data.val=random", "data.train_size=200", "trainer.max_epochs=1", "report=false"]
    for model in ("mlp_784_32", "cnn", "neuron"):
        done = lab(*words, f"model={model}", f"hydra.run.dir=runs/{model}")
        assert done.returncode == 0, done.stderr
    assert lab("resume", "runs/cnn", "trainer.max_epochs=2").returncode == 0
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "runs")).Reload()
    tab = Context(TBContext(data_provider=MultiplexerDataProvider(events, str(tmp_path))))
    asked = RequestContext(), tab, ""
    columns = get_experiment.Handler(*asked, GetExperimentRequest()).run()
    settings = {info.name for info in columns.hparam_infos}
    assert {"model.filters", "model.digit", "model.hidden", "optimizer.lr", "data.batch_size"} <= settings
    metrics = {info.name.tag for info in columns.metric_infos}
    assert {"test/acc", "test/loss", "val/acc", "val/loss"} <= metrics
    shown = ListSessionGroupsRequest(start_index=0, slice_size=10, allowed_statuses=[STATUS_SUCCESS])
    for info in columns.metric_infos:
        shown.col_params.add().metric.CopyFrom(info.name)
    groups = list_session_groups.Handler(*asked, shown).run().session_groups
    assert len(groups) == 3
    (cnn,) = (group for group in groups if group.hparams["model"].string_value == "CNN")
    assert cnn.hparams["trainer.max_epochs"].number_value == 2
    values = {value.name.tag: value.value for value in cnn.metric_values}
    assert values["test/acc"] == pytest.approx(Result.load(tmp_path / "runs/cnn").test["acc"])


@pytest.mark.slow
def test_class_names_that_the_font_lacks_cause_no_warnings(lab: Command, tmp_path: Path) -> None:
    for n in range(24):
        (tmp_path / "images" / "猫犬"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * n).save(tmp_path / "images" / "猫犬"[n % 2] / f"{n}.png")
    words = ["data=image_folder", "data.root=images", "data.shape=[1,8,8]", "data.val=test", "callbacks=dashboard"]
    done = lab(*words, "model=mlp_784_32", "trainer.max_epochs=1", "report=false")
    assert done.returncode == 0 and done.stderr == "", done.stderr


@pytest.mark.slow
def test_another_logger_gets_the_test_and_the_config_too(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "trainer.max_epochs=1", "report=false", "hydra.run.dir=run"]
    done = lab(*words, "logger=none", "+logger._target_=lightning.pytorch.loggers.CSVLogger")
    assert done.returncode == 0, done.stderr
    assert "dashboard" not in done.stdout, "which would find nothing"
    (folder,) = (path.parent for path in (tmp_path / "run").rglob("metrics.csv"))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    accuracies = [float(row["test/acc"]) for row in rows if row["test/acc"]]
    assert accuracies == [Result.load(tmp_path / "run").test["acc"]]
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["optimizer"]["lr"] == 0.01
