"""trainer=ddp on two CPU processes: one folder, one result, the same images counted."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Command, result_in


@pytest.mark.slow
def test_two_processes_leave_one_result_and_learn_what_one_learns(lab: Command, tmp_path: Path) -> None:
    # 3,501 images in batches of 125: every share of a batch is uneven, and one process gets nothing of the last one.
    words = ["data=mnist_5k", "model=mlp_512", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    words += ["data.val=random", "data.val_size=499", "data.batch_size=125", "optimizer=sgd", "optimizer.lr=0.1"]
    two = lab(*words, "trainer=ddp", "hydra.run.dir=two")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("epoch 2/2") == 1
    one = lab(*words, "hydra.run.dir=one")
    assert one.returncode == 0
    shared, alone = result_in(tmp_path / "two"), result_in(tmp_path / "one")
    assert shared.machine["processes"] == 2
    assert shared.test["n"] == alone.test["n"] == 1000
    assert shared.data["train"] == alone.data["train"] == 3501
    for ours, theirs in zip(shared.history, alone.history, strict=True):  # equal but for float32 rounding
        for metric in ("train/loss", "train/acc", "val/loss", "val/acc"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4), metric
    assert shared.test["loss"] == pytest.approx(alone.test["loss"], rel=1e-4)


DDP = ["data=mnist_5k", "model=mlp_784_32", "data.val=random", "trainer=ddp", "trainer.accelerator=cpu"]


@pytest.mark.slow
def test_each_trial_of_a_sweep_may_have_two_processes(lab: Command, tmp_path: Path) -> None:
    words = [*DDP, "trainer.max_epochs=2"]
    done = lab("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert "2 complete" in done.stdout
    assert lab(*words, "seed=1", "hydra.run.dir=alone").returncode == 0
    trial, alone = result_in(tmp_path / "sweep/1"), result_in(tmp_path / "alone")
    assert trial.machine["processes"] == 2 and trial.test == alone.test
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "sweep"]


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_to_the_same_numbers(lab: Command, tmp_path: Path) -> None:
    words = [*DDP, "trainer.max_epochs=3", "augment=affine", "schedule=cosine"]
    (tmp_path / "own.py").write_text(
        "import os, signal\nfrom lightning.pytorch.callbacks import Callback\n\n\n"
        "class Stop(Callback):\n"
        "    def on_train_epoch_start(self, trainer, module):\n"
        "        if trainer.current_epoch == 1 and trainer.is_global_zero:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert lab(*words, "hydra.run.dir=whole").returncode == 0
    stopped = lab(*words, "hydra.run.dir=run", "+callbacks.stop._target_=own.Stop", PYTHONPATH=str(tmp_path))
    assert stopped.returncode != 0 and "stopped by SIGTERM in epoch 2" in stopped.stdout, stopped.stderr
    (tmp_path / "own.py").write_text("from lightning.pytorch.callbacks import Callback as Stop\n")
    done = lab("resume", "run", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    whole, run = result_in(tmp_path / "whole"), result_in(tmp_path / "run")
    assert run.test == whole.test
    for ours, theirs in zip(run.history, whole.history, strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}


@pytest.mark.slow
def test_what_torchrun_starts_is_one_run(tmp_path: Path) -> None:
    words = [*DDP, "trainer.max_epochs=1", "test_checkpoint=best"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "mnist_lab", *words]
    done = subprocess.run(torchrun, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert result_in(folder).machine["processes"] == 2
    assert done.stdout.count("epoch 1/1") == 1
