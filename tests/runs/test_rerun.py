"""`rerun`: the numbers come back, or what differs is named."""

import json
from pathlib import Path

import pytest
from conftest import Command

from mnist_lab.result import Result

WORDS = ["data=mnist_5k", "model=mlp_784_32", "augment=affine", "data.val=random", "trainer.max_epochs=2"]


@pytest.mark.slow
def test_rerun_reproduces_the_numbers_to_the_last_digit_or_names_what_differs(lab: Command, tmp_path: Path) -> None:
    assert lab(*WORDS, "hydra.run.dir=run").returncode == 0
    done = lab("rerun", "run", "dir=again")
    assert done.returncode == 0, done.stderr
    assert "reproduced: history and test are those of run, to the last digit" in done.stdout
    first, second = (Result.load(tmp_path / name) for name in ("run", "again"))
    assert first.test == second.test and first.config == second.config
    assert "needs a new or an empty folder of its own" in lab("rerun", "run", "dir=again").stderr
    done = lab("rerun", "run", "dir=run/result.json")
    assert done.returncode == 2 and "run/result.json is a file" in done.stderr

    path = tmp_path / "run/result.json"
    recorded = json.loads(path.read_text())
    del recorded["sha256"]
    recorded["test"]["correct"] += 1
    recorded["history"][0]["val/loss"] += 1e-9
    recorded["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(recorded))
    done = lab("rerun", "run")
    assert done.returncode == 1
    assert "NOT reproduced" in done.stdout
    assert "test.correct: " in done.stdout and "epoch 1.val/loss: " in done.stdout
    assert "packages.torch: 1.0 → " in done.stdout


@pytest.mark.slow
def test_rerun_of_a_longer_training_says_that_no_single_command_repeats_it(lab: Command, tmp_path: Path) -> None:
    words = ["data=mnist_5k", "model=mlp_784_32", "data.train_size=500", "schedule=cosine"]
    words += ["data.batch_size=100", "report=false"]
    assert lab(*words, "trainer.max_epochs=1", "hydra.run.dir=run").returncode == 0
    assert lab("resume", "run", "trainer.max_epochs=2").returncode == 0
    (note,) = [note for note in Result.load(tmp_path / "run").notes if "1 → 2" in note]
    assert note.startswith("The number of epochs has changed")
    done = lab("rerun", "run=run", "dir=again")
    assert done.returncode == 1 and note in done.stdout and "can't be repeated exactly" not in done.stdout
    done = lab("rerun", "run", "seed=1")
    assert done.returncode == 2 and "To run it with a change: python -m mnist_lab data=mnist_5k" in done.stderr
    assert "trainer.max_epochs=2 seed=1" in done.stderr


def test_rerun_without_a_finished_run_is_an_error_in_one_line(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in {
        "rerun": "use: python -m mnist_lab rerun",
        "rerun nowhere": "there is no such folder",
        "rerun empty": "is not the folder of a run",
    }.items():
        done = lab(*words.split())
        assert done.returncode == 2 and message in done.stderr, done.stderr
