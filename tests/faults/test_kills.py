"""Runs and sweeps killed at random moments, from the first import to the last line, end as if nothing had happened."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Tally
from recorded import finds, same
from warm import lab, start, told

QUICK = ["data=mnist_5k", "data.train_size=3500", "data.val=random", "trainer.accelerator=cpu", "report=false"]
MLP = [*QUICK, "model=mlp", "model.hidden=[32]", "trainer.max_epochs=4"]
RECIPES = {
    "adam": [*MLP, "checkpoint.every=5 steps"],
    "rmsprop, augmentation": [
        *(*QUICK, "model=cnn", "model.filters=4", "trainer.max_epochs=4"),
        *("optimizer=rmsprop", "augment=affine", "checkpoint.every=4 steps"),
    ],
    "momentum, cosine": [*MLP, "model=mlp_784_32", "optimizer=sgd", "optimizer.momentum=0.9", "schedule=cosine"],
    "accumulation": [*MLP, "optimizer=adamw", "trainer.accumulate_grad_batches=3", "data.batch_size=32"],
    "best": [
        *MLP,
        "test_checkpoint=best",
        "callbacks=early_stopping",
        "data.batch_size=16",
        "checkpoint.every=50 steps",
    ],
    "convolution": [*QUICK, "model=cnn", "model.filters=4", "schedule=one_cycle", "trainer.max_epochs=3"],
    "averaged weights": [
        *(*MLP, "+callbacks.own._target_=lightning.pytorch.callbacks.EMAWeightAveraging", "checkpoint.every=9 steps"),
    ],
    "pruned weights": [
        *(*MLP, "+callbacks.own={_target_: lightning.pytorch.callbacks.ModelPruning, pruning_fn: l1_unstructured}"),
        *("+callbacks.own.amount=0.3", "test_checkpoint=best"),
    ],
    "workers": [*MLP, "data.loader=workers", "data.workers=1", "data.train_size=400", "trainer.max_epochs=2"],
    "sweep": ["-m", *MLP, "trainer.max_epochs=2", "seed=0,1,2"],
    "search": ["-m", *MLP, "trainer.max_epochs=2", "sweep=tpe", "sweep.trials=3", "optimizer.lr=interval(1e-3,1e-2)"],
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def line(recipe: str, name: str) -> list[str]:
    words = RECIPES[recipe]
    return [*words, f"hydra.{'sweep' if words[0] == '-m' else 'run'}.dir={name}"]


def killed(words: list[str], cwd: Path, wait: float, how: int) -> str | None:
    """Starts a command and kills it after so many seconds: what it showed; None where it had ended by then."""
    shown = cwd / "shown"
    for path in cwd.glob("shown.*"):
        path.unlink()
    process = start(words, cwd, shown)
    while process.is_alive() and not Path(f"{shown}.err").exists():  # until then it is no command yet
        time.sleep(0.001)
    time.sleep(wait)
    over = not process.is_alive()
    if not over:
        assert process.pid is not None
        os.kill(process.pid, how)
    process.join(120)
    assert process.exitcode is not None, f"it hangs after signal {how}"
    done = told(process, shown)
    assert "Traceback" not in done.stdout + done.stderr, done
    assert done.returncode in (0, 130, 128 + how, -how), done
    return None if over else done.stdout + done.stderr


def disturbed(recipe: str, cwd: Path, seconds: float, kills: int, chance: random.Random) -> int:
    """Runs a recipe in the folder `run`, kills it so often, and goes on to its end. How many kills it has met."""
    words, met = line(recipe, "run"), 0
    for n in range(kills + 1):
        if n < kills:
            met += killed(words, cwd, chance.uniform(0, seconds), chance.choice(SIGNALS)) is not None
        else:
            done = lab(words, cwd)
            if "was stopped before it began" in done.stderr or "is no sweep" in done.stderr:
                words = line(recipe, "run")
                shutil.rmtree(cwd / "run")
                done = lab(words, cwd)
            assert done.returncode == 0, done
        kept = any((cwd / "run" / name).exists() for name in ("config.yaml", "sweep.json"))
        if not kept:
            shutil.rmtree(cwd / "run", ignore_errors=True)
        words = ["resume", "run"] if kept else line(recipe, "run")
    return met


def undisturbed(recipe: str, cwd: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """What a recipe finds when it is left alone, and how long that takes."""
    lab(["--help"], cwd)  # by now the process is there that others are forked from
    before = time.monotonic()
    done = lab(line(recipe, "whole"), cwd)
    assert done.returncode == 0, done.stderr
    return finds(cwd / "whole"), time.monotonic() - before


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["best", "sweep"])
def test_a_run_or_sweep_that_is_killed_twice_ends_as_an_undisturbed_one(recipe: str, tmp_path: Path) -> None:
    expected, seconds = undisturbed(recipe, tmp_path)
    disturbed(recipe, tmp_path, seconds, 2, random.Random(recipe))
    same(expected, finds(tmp_path / "run"))


@pytest.mark.faults
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_or_sweep_that_is_killed_often_ends_as_an_undisturbed_one(
    recipe: str, tmp_path: Path, tally: Tally
) -> None:
    chance = random.Random(f"{recipe} {tally.seed}")
    expected, seconds = undisturbed(recipe, tmp_path)
    for _ in range(tally.size):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        tally.count("kills survived", disturbed(recipe, tmp_path, seconds, chance.choice([1, 1, 2, 3]), chance))
        same(expected, finds(tmp_path / "run"))
        tally.count("runs and sweeps killed, and found as if they had not been")
