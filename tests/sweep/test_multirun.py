"""Multirun: each combination once, each in a folder of its own, in one process."""

import shlex
from pathlib import Path

import pytest
from conftest import Command

from mnist_lab.result import Result


@pytest.mark.slow
def test_a_multirun_trains_each_combination_once(lab: Command, tmp_path: Path) -> None:
    done = lab("-m", "model=mlp_512,cnn", "seed=range(0,2)", "data=mnist_5k", "trainer=debug")
    assert done.returncode == 0, done.stderr
    results = [Result.load(path.parent) for path in tmp_path.rglob("result.json")]
    assert {(result.name, result.seed) for result in results} == {
        (f"{model}-mnist_5k", seed) for model in ("mlp_512", "cnn") for seed in (0, 1)
    }
    assert len({tuple(row["train/loss"] for row in result.history) for result in results}) == 4


@pytest.mark.slow
def test_a_job_of_a_sweep_gives_what_the_same_run_gives_alone(lab: Command, tmp_path: Path) -> None:
    words = ("model=mlp", "data=mnist_5k", "trainer=debug")
    assert lab("-m", *words, "seed=3,4").returncode == 0
    assert lab(*words, "seed=4", "hydra.run.dir=alone").returncode == 0
    (swept,) = (r for r in (Result.load(p.parent) for p in tmp_path.glob("outputs/**/result.json")) if r.seed == 4)
    assert Result.load(tmp_path / "alone").test == swept.test


@pytest.mark.slow
def test_globs_and_folders_of_yours_work_as_in_hydra(lab: Command, tmp_path: Path) -> None:
    folder = tmp_path / "own, (it's) café"
    (folder / "model").mkdir(parents=True)
    (folder / "model/tiny.yaml").write_text(
        "_target_: mnist_lab.models.MLP\ninput_shape: ${data.shape}\nnum_classes: ${data.num_classes}\nhidden: [4]\n"
    )
    (folder / "mine.yaml").write_text("defaults:\n  - config\n  - _self_\nseed: 7\n")
    words = ("--config-dir", str(folder), "-cn", "mine", "-m", "model=glob(ti*)", "data=mnist_5k", "trainer=debug")
    done = lab(*words)
    assert done.returncode == 0, done.stderr
    (result,) = (Result.load(path.parent) for path in tmp_path.rglob("result.json"))
    assert result.seed == 7 and result.name == "tiny-mnist_5k"
    assert shlex.split(result.command)[3:7] == ["--config-dir", str(folder), "--config-name", "mine"]


@pytest.mark.slow
def test_a_log_file_of_another_logging_config_is_no_other_run(lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "trainer=debug", "report=false", "hydra/job_logging=default", "hydra.run.dir=run"]
    done = lab(*words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/mnist_lab.log").exists() and (tmp_path / "run/result.json").exists()


@pytest.mark.slow
def test_a_job_never_writes_into_the_folder_of_another(lab: Command, tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", "hydra.sweep.subdir=same", "data=mnist_5k", "trainer=debug", "hydra.sweep.dir=s"]
    done = lab(*words)
    assert done.returncode == 2 and "a trial's folder is its number" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = lab(*words, "hydra/sweeper=basic")
    assert done.returncode == 2
    assert "has the files of another run" in done.stderr
    assert Result.load(tmp_path / "s/same").seed == 0
