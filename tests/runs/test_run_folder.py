"""One command trains, tests and leaves a folder that holds everything about the run."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import warm
from conftest import Command, result_in
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from mnist_lab.command import quoted
from mnist_lab.environment import code_state
from mnist_lab.terminal import logged, metrics_table, show

RUN = ("model=mlp_512", "data=mnist_5k", "data.val=random", "trainer.max_epochs=2", "trainer=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    words = [sys.executable, "-m", "mnist_lab", *RUN]
    done = subprocess.run(words, cwd=path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (path / "stdout").write_text(done.stdout)
    (path / "stderr").write_text(done.stderr)
    return path


def run_dir(folder: Path) -> Path:
    (path,) = folder.glob("outputs/mlp_512-mnist_5k/*")
    return path


@pytest.mark.slow
def test_a_run_prints_nothing_to_stderr(folder: Path) -> None:
    assert (folder / "stderr").read_text() == ""


def test_the_terminal_shows_a_line_an_epoch_and_the_table(folder: Path) -> None:
    shown = (folder / "stdout").read_text()
    assert "407,050" in shown
    assert "epoch 1/2   train loss" in shown
    assert "epoch 2/2   train loss" in shown
    assert "gap, train − test" in shown
    assert "test again   python -m mnist_lab test run=outputs/mlp_512-mnist_5k/" in shown
    assert (run_dir(folder) / "run.log").read_text().count("epoch ") >= 2


def test_result_json_names_everything(folder: Path) -> None:
    result = result_in(folder)
    assert result.schema_version == 1
    assert result.command == "python -m mnist_lab " + " ".join(RUN)
    assert result.overrides == list(RUN)
    assert result.seed == 0
    assert result.model["parameters"] == 407_050
    assert result.data["name"] == result.data["requested"] == "mnist_5k"
    assert (result.data["train"], result.data["val"], result.data["test"]) == (3500, 500, 1000)
    assert len(result.data["digest"]) == 64
    assert result.packages["torch"] and result.machine["cores"] >= 1
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.test["n"] == 1000
    assert result.test["acc"] == result.test["correct"] / 1000 > 0.8
    assert set(result.seconds) == {"start", "train", "test"} and min(result.seconds.values()) >= 0
    assert result.notes == []


@pytest.mark.parametrize(("said", "changed"), [("", False), (" M mnist_lab/run.py", True)])
def test_a_result_says_whether_the_code_was_changed(said: str, changed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))  # what git would answer
    assert code_state.__wrapped__()["changed"] is changed


def test_the_configs_and_the_overrides_are_there(folder: Path) -> None:
    cfg = OmegaConf.load(run_dir(folder) / "config.yaml")
    assert cfg.model.hidden == [512]
    assert cfg == OmegaConf.create(result_in(folder).config)
    assert OmegaConf.load(run_dir(folder) / ".hydra/overrides.yaml") == list(RUN)
    where, hydra = str(run_dir(folder)), OmegaConf.load(run_dir(folder) / ".hydra/hydra.yaml").hydra
    assert hydra.run.dir == hydra.runtime.output_dir == where and hydra.mode == "RUN"
    assert hydra.overrides.hydra == [f"hydra.run.dir='{where}'", "hydra.mode=RUN"]


def test_history_csv_has_a_row_an_epoch(folder: Path) -> None:
    with (run_dir(folder) / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["train/loss"]) < float(rows[0]["train/loss"])
    assert float(rows[1]["val/acc"]) == result_in(folder).history[1]["val/acc"]
    assert float(rows[0]["lr"]) == 0.001


def test_tensorboard_reads_scalars_hyperparameters_and_the_config(folder: Path) -> None:
    events = EventAccumulator(str(run_dir(folder) / "tensorboard")).Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc", "lr"} <= set(scalars)
    history = result_in(folder).history
    assert [e.value for e in events.Scalars("val/acc")] == pytest.approx([row["val/acc"] for row in history])
    assert [e.value for e in events.Scalars("test/acc")] == pytest.approx([result_in(folder).test["acc"]])
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["trainer.max_epochs"].number_value == 2 and values["data.batch_size"].number_value == 64
    assert values["model.hidden"].string_value == "[512]" and values["trainer"].string_value == "cpu"
    text = make_ndarray(events.Tensors("config/text_summary")[0].tensor_proto).item().decode()
    assert "mnist_lab.models.MLP" in text


def test_the_checkpoints_hold_no_code(folder: Path) -> None:
    import torch

    for name in ("best", "last"):
        saved = torch.load(run_dir(folder) / f"checkpoints/{name}.ckpt", weights_only=True)
        assert saved["state_dict"]["net.layers.1.weight"].shape == (512, 784)


def test_test_again_gives_the_recorded_numbers(folder: Path) -> None:
    done = warm.lab(["test", f"run={run_dir(folder)}"], folder)
    assert done.returncode == 0, done.stderr
    recorded = result_in(folder).test
    row = f"{recorded['loss']:.4f} │   {recorded['acc']:.2%}"
    assert done.stdout.count(row) == 2, done.stdout


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(folder: Path, lab: Command, tmp_path: Path) -> None:
    assert lab(*RUN).returncode == 0
    again, first = result_in(tmp_path), result_in(folder)
    assert again.test == first.test

    def numbers(rows: list[dict[str, object]]) -> str:
        return json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows])

    assert numbers(again.history) == numbers(first.history)


@pytest.mark.slow
def test_another_seed_gives_other_numbers(folder: Path, lab: Command, tmp_path: Path) -> None:
    assert lab(*RUN, "seed=1").returncode == 0
    assert result_in(tmp_path).history[0]["train/loss"] != result_in(folder).history[0]["train/loss"]


def test_a_notebook_shows_a_table_once_and_the_log_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("rich.jupyter.display", lambda *table: shown.append(table))
    monkeypatch.setattr("rich._console", Console(force_jupyter=True, width=100))
    with logged(tmp_path / "run.log"):
        show(metrics_table("title", [("test", {"loss": 0.5, "acc": 0.25})]))
    assert len(shown) == 1
    assert "│ test │ 0.5000 │   25.00% │\n" in (tmp_path / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["b\\s", "it's", "\\", "b\\'s, \\\\"])
def test_a_run_folder_is_below_the_current_folder_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    done = warm.lab(["model=neuron", "data=mnist_5k", "trainer=debug", "report=false"], tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert result_in(tmp_path / name / "outputs").name == "neuron-mnist_5k"


@example("b\\s")
@given(st.text(st.sampled_from("\\'\"a ,=$") | st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_path_is_the_same_after_hydra_has_read_it(name: str) -> None:
    path = Path("folder", name)
    assert OverridesParser.create().parse_override(f"key={quoted(path)}").value() == str(path)
