"""A checkpoint that somebody else has made: values of wrong types, or a config whose network fills the memory."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from omegaconf import OmegaConf
from some import some

from mnist_lab import evaluate
from mnist_lab.errors import UserError
from mnist_lab.record import data_facts
from mnist_lab.resume import resume
from mnist_lab.trained import load_run
from mnist_lab.training.checkpoint_files import read_checkpoint

VERBS: dict[str, Callable[[Path], Any]] = {
    "test": lambda run: evaluate.test([f"run={run}"]),
    "resume": lambda run: resume([str(run), "trainer.max_epochs=4"]),
    "predict, draw and export": load_run,
}


@pytest.fixture(autouse=True)
def _denormal_numbers_as_before() -> Iterator[None]:
    """A command flushes them, in the process that it has for itself."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stranger's finished run."""
    return shutil.copytree(ROOT / "tests/old_runs/finished", tmp_path / "run")


@pytest.mark.parametrize("verb", VERBS)
def test_a_network_larger_than_its_checkpoint_is_not_made(verb: str, run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    shape = {"input_shape": [1, 28, 28], "num_classes": 10, "hidden": [10_000, 10_000]}
    model = {"_target_": "mnist_lab.models.MLP", "activation": "relu", "dropout": 0, "init": "pytorch", **shape}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": model}))
    with pytest.raises(UserError, match=r"another network than the run's config: it has 342 values, .* 107,960,010"):
        VERBS[verb](run)


WRONG: list[tuple[str, Any]] = [
    ("epoch", "2"),
    ("epoch", 10**30),
    ("global_step", [105]),
    ("global_step", None),
    ("state_dict", [1]),
    ("ImageDataModule", "x"),
    ("ImageDataModule.digest", 7),
    ("ImageDataModule.shape", "1, 28, 28"),
    ("ImageDataModule.class_names", [7]),
    ("ImageDataModule.shift", 0.0),
    ("processes", 1),
    ("frozen", [None]),
    ("callbacks", []),
    ("callbacks.History.rows", 3),
    ("callbacks.Checkpoints.over", "x"),
    ("loops.fit_loop.epoch_progress.current", None),
    ("optimizer_states", None),
]


@pytest.mark.parametrize(("key", "value"), some(WRONG, 6))
def test_a_wrong_type_in_a_checkpoint_is_named(key: str, value: Any, run: Path) -> None:
    path = run / "checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert read_checkpoint(path).keys() == saved.keys()
    *sections, last = [part.replace("/", ".") for part in key.split(".")]
    section = saved
    for name in sections:
        section = section[name]
    section[last] = value
    torch.save(saved, path)
    for do in VERBS.values():
        with pytest.raises(UserError, match=r"last\.ckpt can't be read as a checkpoint: " + key) as told:
            do(run)
        assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["epoch", "global_step", "state_dict"])
def test_what_a_checkpoint_lacks_is_named(key: str, run: Path) -> None:
    path = run / "checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    del saved[key]
    torch.save(saved, path)
    with pytest.raises(UserError, match=f"{key} is missing"):
        read_checkpoint(path)


class Described(L.LightningDataModule):
    def __init__(self, described: Any) -> None:
        super().__init__()
        self.describe = lambda: described


UNUSUAL = [{"train": np.int64(3)}, {"digest": Path("x")}, {"classes": {"a"}}, {"test": torch.tensor(1)}]
UNUSUAL += [{"name": {"a": {"b": 1}}}, {"train": -1}, ["x"], None]


@pytest.mark.parametrize("described", UNUSUAL)
def test_what_data_of_ones_own_says_is_recorded_or_refused(described: Any) -> None:
    with pytest.raises(UserError, match=r"Described\.describe\(\) returns can't be recorded"):
        data_facts(OmegaConf.create(), Described(described))
    facts = data_facts(OmegaConf.create(), Described({"train": 3, "classes": ("a", "b"), "of": {"x": [1]}}))
    assert facts["classes"] == ["a", "b"] and facts["of"] == {"x": [1]}
