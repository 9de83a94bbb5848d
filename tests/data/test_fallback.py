"""No files, no network: mnist_5k stands in, in a way that nobody can miss, or it is an error."""

import json
import os
from pathlib import Path

import pytest
from conftest import OFFLINE, Command, needs_mnist, result_in

from mnist_lab.data import ImageDataModule, mnist_5k
from mnist_lab.result import Result


@pytest.mark.slow
def test_mnist_5k_replaces_mnist_with_a_warning_at_the_start_and_beside_the_result(
    lab: Command, tmp_path: Path
) -> None:
    done = lab("trainer=debug", MNIST_LAB_DATA=str(tmp_path / "data"), **OFFLINE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("NOT MNIST: mnist_5k stands in for it") == 2
    assert "images of mnist_5k" in done.stdout
    result = result_in(tmp_path)
    assert (result.data["requested"], result.data["name"]) == ("mnist", "mnist_5k")
    assert "can't be downloaded" in result.data["fallback"]
    assert "NOT MNIST" in result.notes[0]
    assert not (tmp_path / "data").exists()


def test_an_eighth_of_the_replacement_is_validated_on() -> None:
    data = ImageDataModule("mnist", mnist_5k, "/", (1, 28, 28), 10, val_size=5000)
    data.use_fallback("there is no network")
    data.setup()
    assert (len(data.train_index), data.val_count) == (3500, 500)


@pytest.mark.slow
def test_missing_data_without_a_fallback_is_an_error_with_three_remedies(lab: Command, tmp_path: Path) -> None:
    done = lab("data.fallback=null", MNIST_LAB_DATA=str(tmp_path / "data"), **OFFLINE)
    assert done.returncode == 2
    assert "Three ways out" in done.stderr and "data=mnist_5k" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_experiments_that_compare_with_a_published_number_never_fall_back(lab: Command, tmp_path: Path) -> None:
    done = lab("experiment=d_mlp_512", MNIST_LAB_DATA=str(tmp_path / "data"), **OFFLINE)
    assert done.returncode == 2
    assert "can't be downloaded" in done.stderr


def test_incomplete_files_are_an_error_that_names_what_is_missing(lab: Command, tmp_path: Path) -> None:
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")
    done = lab(MNIST_LAB_DATA=str(tmp_path / "data"), **OFFLINE)
    assert done.returncode == 2
    assert "train-images-idx3-ubyte is missing" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_testing_again_never_changes_the_data(lab: Command, tmp_path: Path) -> None:
    """A run of the data that stands in is tested on that; a run of other data never on what stands in."""
    offline = {"MNIST_LAB_DATA": str(tmp_path / "data"), **OFFLINE}
    assert lab("trainer=debug", "hydra.run.dir=stood_in", **offline).returncode == 0
    again = lab("test", "run=stood_in", **offline)
    assert again.returncode == 0 and "NOT MNIST" in again.stdout
    row = f"│ {Result.load(tmp_path / 'stood_in').test['loss']:.4f} │"
    assert again.stdout.count(row) == 2, again.stdout

    result = tmp_path / "stood_in/result.json"
    changed = json.loads(result.read_text())
    changed["data"]["fallback"] = None
    del changed["sha256"]
    result.write_text(json.dumps(changed))
    other = lab("test", "run=stood_in", **offline)
    assert other.returncode == 2 and "Three ways out" in other.stderr


@pytest.mark.slow
def test_a_damaged_archive_is_named(lab: Command, tmp_path: Path) -> None:
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"half a downl")
    done = lab(MNIST_LAB_DATA=str(tmp_path / "data"), **OFFLINE)
    assert done.returncode == 2
    assert "train-images-idx3-ubyte.gz, the download of mnist, is damaged or incomplete" in done.stderr


@pytest.mark.slow
@needs_mnist
def test_resume_never_changes_the_data(lab: Command, tmp_path: Path) -> None:
    offline = {"MNIST_LAB_DATA": str(tmp_path / "data"), **OFFLINE}
    words = ["model=mlp_784_32", "data.val=none", "trainer.max_epochs=1", "report=false"]
    assert lab(*words, "hydra.run.dir=stood_in", **offline).returncode == 0
    (tmp_path / "data").symlink_to(os.environ["MNIST_LAB_DATA"])
    assert lab(*words, "data.train_size=500", "hydra.run.dir=real", **offline).returncode == 0

    assert lab("resume", "stood_in", "trainer.max_epochs=2").returncode == 0
    stood_in, real = (Result.load(tmp_path / name) for name in ("stood_in", "real"))
    assert (stood_in.data["name"], len(stood_in.history)) == ("mnist_5k", 2) and "NOT MNIST" in stood_in.notes[0]
    (tmp_path / "data").unlink()
    done = lab("resume", "real", "trainer.max_epochs=2", **offline)
    assert done.returncode == 2 and "Three ways out" in done.stderr
    assert Result.load(tmp_path / "real") == real
