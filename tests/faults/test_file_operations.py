"""Runs killed before an operation on their files, with callbacks that change weights, end as undisturbed ones."""

import random
import shutil
from pathlib import Path

import pytest
from conftest import Tally
from killing import OWN, WORDS
from recorded import found
from warm import lab

KILLER = '''
import os
import sys
from pathlib import Path

from lightning.pytorch.callbacks import Callback

CHANGING = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate"}


class KilledAtOperation(Callback):
    """Kills its process before the operation on files in the run's folder whose number the environment names."""

    def on_fit_start(self, trainer, module):
        self.folder, self.done = trainer.default_root_dir, 0
        sys.addaudithook(self.count)

    def count(self, event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in CHANGING) or not str(arguments[0]).startswith(str(self.folder)):
            return
        self.done += 1
        if os.environ.get("KILLED_AT") == str(self.done):
            os.kill(os.getpid(), 9)

    def on_test_end(self, trainer, module):
        Path("operations").write_text(str(self.done))
'''
WORDS = [*WORDS, "checkpoint.every=4 steps", "+callbacks.killer._target_=killer.KilledAtOperation"]
CALLBACKS = {
    "averaged weights": ["+callbacks.own._target_=own.Average"],
    "noise": ["+callbacks.own._target_=own.Noise"],
    "moving average": ["+callbacks.own._target_=lightning.pytorch.callbacks.EMAWeightAveraging"],
}


def undisturbed(recipe: str, cwd: Path) -> int:
    """Run a recipe in the folder `whole`; return how many operations on files it makes between fit and test."""
    (cwd / "own.py").write_text(OWN)
    (cwd / "killer.py").write_text(KILLER)
    done = lab([*WORDS, *CALLBACKS[recipe], "hydra.run.dir=whole"], cwd)
    assert done.returncode == 0, done.stderr
    return int((cwd / "operations").read_text())


def killed_before(operations: list[int], recipe: str, cwd: Path) -> int:
    """Run a recipe in the folder `run`, killed before each operation in turn, and compare it; return the kills."""
    command, kills = [*WORDS, *CALLBACKS[recipe], "hydra.run.dir=run"], 0
    for number in [*operations, 0]:
        done = lab(command, cwd, environment={"KILLED_AT": str(number)})
        assert done.returncode in ((-9, 0) if number else (0,)), (number, done)
        kills += done.returncode == -9
        if done.returncode == 0:  # fewer operations were left
            break
        command = ["resume", "run"]
    expected, here = found(cwd / "whole"), found(cwd / "run")
    for part in expected:
        assert here[part] == expected[part], (operations, part)
    return kills


@pytest.mark.slow
def test_a_run_killed_before_any_file_operation_is_resumed_exactly(tmp_path: Path) -> None:
    total = undisturbed("averaged weights", tmp_path)
    assert total > 40, "three epochs with four checkpoints each"
    assert killed_before(list(range(5, total // 2, 5)), "averaged weights", tmp_path) > 3


@pytest.mark.faults
@pytest.mark.parametrize("recipe", CALLBACKS)
def test_runs_killed_before_random_file_operations_are_resumed_exactly(
    recipe: str, tmp_path: Path, tally: Tally
) -> None:
    chance = random.Random(f"operations {recipe} {tally.seed}")
    total = undisturbed(recipe, tmp_path)
    for _ in range(tally.size):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        kills = killed_before([chance.randint(1, total) for _ in range(chance.randint(1, 3))], recipe, tmp_path)
        tally.count("kills before an operation on files survived", kills)
        tally.count("runs killed before operations on files, and found as if they had not been")
