"""Weights, validation part, order, dropout and augmentation have a seed each, so that one can be changed alone."""

from __future__ import annotations

import os
import random
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Command, result_in
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mnist_lab
from mnist_lab.data import Batches, ImageDataModule
from mnist_lab.seeds import seed_of

KINDS = ("weights", "split", "order", "dropout", "augment")
SHORT = ["model=mlp", "data=mnist_5k", "data.val=random", "data.val_size=500", "data.train_size=500"]
SHORT += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none", "report=false", "augment=affine"]


class Look(L.Callback):
    """Digests of what chance brings a training: `Look.found`, by the name of its seed."""

    found: dict[str, str]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule)
        batches = data.train_dataloader()
        assert isinstance(batches, Batches) and isinstance(batches.images, Tensor)
        order = batches.sampler()
        place = {int(position): n for n, position in enumerate(data.train_index)}
        Look.found = {
            "weights": digest(*pl_module.parameters()),
            "split": digest(data.val_index),
            "order": digest(torch.tensor([place[int(position)] for position in order])),
            "dropout": digest(torch.get_rng_state()),
            "augment": digest(batches.prepare(batches.images[:128], 0)),
        }


def digest(*tensors: Tensor) -> str:
    return blake2b(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def look(folder: Path, *words: str) -> dict[str, str]:
    mnist_lab.train(*SHORT, f"+callbacks.look._target_={__name__}.Look", *words, run_dir=folder)
    return Look.found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return look(tmp_path_factory.mktemp("usual") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_changing_one_seed_changes_one_thing(kind: str, usual: dict[str, str], tmp_path: Path) -> None:
    found = look(tmp_path / "run", f"seeds.{kind}=1")
    assert {name for name in KINDS if found[name] != usual[name]} == {kind}


@pytest.mark.slow
def test_seed_changes_all_random_numbers(usual: dict[str, str], tmp_path: Path) -> None:
    found = look(tmp_path / "run", "seed=1")
    assert {name for name in KINDS if found[name] != usual[name]} == set(KINDS)


@pytest.mark.slow
def test_a_bigger_network_sees_the_same_images_in_the_same_order(usual: dict[str, str], tmp_path: Path) -> None:
    found = look(tmp_path / "run", "model.hidden=[600,300]")
    assert {name for name in KINDS if found[name] != usual[name]} == {"weights"}


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(0, 1000))
def test_seeds_of_different_kinds_are_never_equal(seed: int, other: int, epoch: int, later: int) -> None:
    found = {seed_of(kind, s, e) for kind in KINDS for s in {seed, other} for e in {epoch, later}}
    assert len(found) == len(KINDS) * len({seed, other}) * len({epoch, later})
    assert all(0 <= value < 2**64 for value in found)


@pytest.mark.slow
def test_a_sweep_that_is_judged_by_the_test_set_notes_it_in_each_result(lab: Command, tmp_path: Path) -> None:
    words = ["-m", "model=mlp_784_32", "data=mnist_5k", "trainer=debug", "logger=none"]
    assert lab(*words, "data.val=none", "optimizer.lr=0.01,0.1", "hydra.sweep.dir=chosen").returncode == 0
    (note,) = result_in(tmp_path / "chosen/0").notes
    assert "optimizer.lr by test/acc" in note and "no longer a fair one" in note
    assert note in (tmp_path / "chosen/compare.md").read_text()

    assert lab(*words, "data.val=test", "optimizer.lr=0.01,0.1", "hydra.sweep.dir=both").returncode == 0
    assert any("optimizer.lr by val/acc, of the test set" in note for note in result_in(tmp_path / "both/0").notes)
    assert lab(*words, "data.val=none", "seed=0,1", "hydra.sweep.dir=repeated").returncode == 0
    assert result_in(tmp_path / "repeated/0").notes == [], "to repeat is not to choose"


@pytest.mark.slow
def test_a_checkpoint_chosen_by_the_test_set_is_noted(lab: Command, tmp_path: Path) -> None:
    words = ["model=mlp_784_32", "data=mnist_5k", "trainer=debug", "logger=none", "data.val=test"]
    assert lab(*words, "test_checkpoint=best").returncode == 0
    assert any("chose the epoch" in note for note in result_in(tmp_path).notes)


@pytest.mark.slow
def test_a_training_leaves_the_callers_random_numbers_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a random search in a notebook would try the same values again and again."""

    def numbers() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(()))]

    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    found = []
    for trains in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        numbers()
        if trains:
            mnist_lab.train("data=mnist_5k", "trainer=debug", "report=false", "logger=none", run_dir=tmp_path / "run")
        found.append(numbers())
    assert found[0] == found[1]
    assert os.environ["PL_GLOBAL_SEED"] == "1" and "PL_SEED_WORKERS" not in os.environ
