"""Each of several loggers gets the curves, the config and the test; each is closed however a run ends."""

import csv
import json
import struct
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from killing import WORDS
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lab import train
from mnist_lab.composing import compose_config, run_config
from mnist_lab.errors import UserError
from mnist_lab.sweep.groups import changes, matters
from mnist_lab.sweep.trial import discard_stale_trial
from mnist_lab.training.loggers import make_loggers, opened, tensorboard_of

SMALL = [*WORDS, "trainer.max_epochs=2"]
INSTALLED = ["csv", "tensorboard", *(name for name in ("wandb", "mlflow") if find_spec(name) is not None)]
CLASSES = "lightning.pytorch.loggers"
Curves = dict[str, list[tuple[int, Any]]]


def of_tensorboard(run: Path) -> tuple[Curves, str]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    curves = {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return curves, events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def of_csv(run: Path) -> tuple[Curves, str]:
    curves: Curves = {}
    with (run / "csv/metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves, str(yaml.safe_load((run / "csv/hparams.yaml").read_text()))


def records(path: Path) -> Iterator[bytes]:
    """Yield what a file of W&B holds: a log of LevelDB, blocks of 32 KiB of pieces, each with its length and kind."""
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a record that is whole, or its last piece
            yield whole
            whole = b""


def of_wandb(run: Path) -> tuple[Curves, str]:
    record_of = import_module("wandb.proto.wandb_internal_pb2").Record.FromString

    curves: Curves = {}
    config: list[str] = []
    (path,) = run.glob("wandb/offline-run-*/run-*.wandb")
    for record in map(record_of, records(path)):
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            curves.setdefault(name, []).append((row["trainer/global_step"], value))
        config += [item.value_json for item in record.config.update]
        if record.WhichOneof("record_type") == "exit":
            assert record.exit.exit_code == 0
    return curves, str(config)


def of_mlflow(run: Path) -> tuple[Curves, str]:
    client = import_module("mlflow").MlflowClient(f"sqlite:///{run}/mlflow.db")

    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert found.info.status == "FINISHED"
    points = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    return {name: [(p.step, p.value) for p in listed] for name, listed in points.items()}, str(found.data.params)


READERS = {"tensorboard": of_tensorboard, "csv": of_csv, "wandb": of_wandb, "mlflow": of_mlflow}


@pytest.mark.slow
def test_each_logger_has_the_curves_the_config_and_the_test(tmp_path: Path) -> None:
    words = [*SMALL, f"logger=[{','.join(INSTALLED)}]", "optimizer.lr=0.00789", "callbacks=dashboard"]
    result = train(*words, run_dir=tmp_path / "run").result
    assert json.loads((tmp_path / "run/run.json").read_text())["loggers"][:2] == ["csv", "tensorboard"]
    for name in INSTALLED:
        curves, config = READERS[name](tmp_path / "run")
        for column in ("train/loss", "train/acc", "val/loss", "val/acc"):
            expected = [pytest.approx(row[column]) for row in result.history]
            assert curves[column] == list(zip((9, 19), expected, strict=True)), (name, column)
        assert curves["test/acc"] == [(20, pytest.approx(result.test["acc"]))], name
        assert "0.00789" in config, name
    assert EventAccumulator(str(tmp_path / "run/tensorboard")).Reload().Tags()["images"], "though it isn't the first"


def test_loggers_of_ones_own_have_names_of_their_own(tmp_path: Path) -> None:
    words = [f"+logger.b={{_target_: {CLASSES}.CSVLogger, save_dir: tables, name: ''}}", "logger.csv.version=one"]
    cfg = run_config(compose_config([*SMALL, "logger=[tensorboard,csv]", *words]))
    made = make_loggers(cfg.logger, tmp_path, 5, ["tensorboard", "version_7", "version_3"])
    assert [Path(str(logger.log_dir)) for logger in made] == [
        *(tmp_path / "tensorboard", tmp_path / "one", tmp_path / "tables/version_3")
    ], "a version that the config gives stays; what a stopped run has made up is continued"
    trainer = L.Trainer(logger=made, accelerator="cpu", enable_progress_bar=False)
    assert tensorboard_of(trainer) is made[0] and tensorboard_of(L.Trainer(logger=False, accelerator="cpu")) is None


@pytest.mark.parametrize("word", ["logger._target_=", "+logger._target_="])
def test_logger_target_replaces_all_loggers(word: str, tmp_path: Path) -> None:
    cfg = run_config(compose_config([*SMALL, f"{word}{CLASSES}.CSVLogger"]), [f"{word}{CLASSES}.CSVLogger"])
    (logger,) = make_loggers(cfg.logger, tmp_path, 0)
    assert isinstance(logger, CSVLogger)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"a": {"_target_": "torch.nn.ReLU"}}, "logger.a: torch.nn.ReLU is no Lightning logger"),
        ({"_target_": "torch.nn.ReLU"}, "logger: torch.nn.ReLU is no Lightning logger"),
        ({"a": {"_target_": f"{CLASSES}.CSVLogger", "x": 1}}, "logger.a: .* unexpected keyword argument 'x'"),
        ({"a": {"_target_": "not.there"}}, "logger.a: "),
        (
            {"_target_": f"{CLASSES}.CSVLogger", "b": {"_target_": f"{CLASSES}.CSVLogger"}},
            r"logger names a class beside b: each of several has a section, \+logger.NAME._target_=",
        ),
    ],
)
def test_a_class_that_is_no_logger_is_refused(described: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as told:
        make_loggers(OmegaConf.create(described), tmp_path, 0)
    assert "\n" not in str(told.value)


def test_loggers_do_not_change_the_numbers_of_a_run(tmp_path: Path) -> None:
    flat = {"_target_": f"{CLASSES}.TensorBoardLogger", "name": "", "version": "tensorboard"}
    before = {"model": {"_target_": "own.Net"}, "logger": flat}
    now: Any = before | {"logger": {"csv": {"_target_": f"{CLASSES}.CSVLogger"}}}
    assert not any(map(matters, changes(before, now))), "runs are compared, and those of earlier versions, too"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before))
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    discard_stale_trial(tmp_path, OmegaConf.create(now))
    assert (tmp_path / "history.csv").exists(), "a trial goes on"
    discard_stale_trial(tmp_path, OmegaConf.create(now | {"seed": 2}))
    assert not (tmp_path / "history.csv").exists()


class Ends(CSVLogger):
    """Notes how it was closed, and fails where it is told to."""

    def __init__(self, folder: Path, name: str, ends: list[tuple[str, str]], fails: str = "") -> None:
        super().__init__(folder, name=name)
        self.ends, self.fails = ends, fails

    @property
    def experiment(self) -> Any:
        if self.fails == "open":
            raise ConnectionError
        return super().experiment

    def finalize(self, status: str) -> None:
        self.ends.append((str(self.name), status))
        if self.fails == "close":
            raise ConnectionError


@pytest.mark.parametrize("fails", ["open", "run", "close", ""])
def test_each_logger_is_closed_even_if_another_fails(fails: str, tmp_path: Path) -> None:
    ends: list[tuple[str, str]] = []
    loggers = [Ends(tmp_path, "a", ends), Ends(tmp_path, "b", ends, fails)]
    trainer = L.Trainer(logger=loggers, accelerator="cpu", enable_progress_bar=False)
    try:
        with opened(trainer, 0):
            assert fails != "open"
            if fails == "run":
                raise ConnectionError
        assert not fails
    except ConnectionError:
        assert fails
    assert (
        ends
        == {
            "open": [("a", "failed")],
            "run": [("b", "failed"), ("a", "failed")],
            "close": [("b", "success"), ("a", "failed")],
            "": [("b", "success"), ("a", "success")],
        }[fails]
    )
