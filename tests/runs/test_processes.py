"""Several processes on a CPU, started by the run, torchrun or srun: one folder, one result, each image counted once."""

import os
from pathlib import Path

import pytest
import torch
import warm
from conftest import Command, result_in

import mnist_lab.run
from mnist_lab.run_folder import load_config


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["label_smoothing=0", "weight={_target_: torch.tensor, data: [9.0,1,1,1,1,1,1,1,1,0]}"]
)
def test_three_processes_leave_one_result_and_learn_what_one_does(loss: str, lab: Command, tmp_path: Path) -> None:
    # 501 images in batches of 125: every share of a batch is uneven, and two processes get nothing of the last one.
    # The same of 1,000 test images in batches of 111, and 499 for validation.
    words = [
        "data=mnist_5k",
        "data.train_size=501",
        "model=mlp_512",
        "model.hidden=[32]",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "report=false",
    ]
    words += ["data.val=random", "data.val_size=499", "data.batch_size=125", "optimizer=sgd", "optimizer.lr=0.1"]
    words += ["data.eval_batch_size=111", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1"]
    words += [f"++loss.{loss}", "metrics=classification"]
    three = lab(*words, "trainer=ddp", "trainer.devices=3", "hydra.run.dir=three")
    assert three.returncode == 0 and three.stderr == "", three.stderr
    assert three.stdout.count("epoch 2/2") == 1
    assert lab(*words, "hydra.run.dir=one").returncode == 0
    shared, alone = result_in(tmp_path / "three"), result_in(tmp_path / "one")
    assert shared.machine["processes"] == 3
    assert shared.data["train"] == alone.data["train"] == 501
    for ours, theirs in zip(shared.history, alone.history, strict=True):  # equal but for float32 rounding
        for metric in ("train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "val/auroc", "lr"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4), metric
    assert shared.test["loss"] == pytest.approx(alone.test["loss"], rel=1e-4)
    assert [each["support"] for each in shared.test["classes"]] == [100] * 10
    assert shared.test["classes"] == alone.test["classes"]
    steps = [
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        for run in ("three", "one")
    ]
    assert steps == [2 * 3, 2 * 3]

    # The same weights, tested by one process: each image was counted once, padded by none.
    cfg = load_config(tmp_path / "three", [])
    again = mnist_lab.run.test_again(cfg, tmp_path / "three", tmp_path / "three/checkpoints/last.ckpt")
    assert again["test/n"] == shared.test["n"] == 1000
    assert again["test/acc"] == shared.test["acc"]
    assert again["test/loss"] == pytest.approx(shared.test["loss"], rel=1e-6)


DDP = [
    "data=mnist_5k",
    "data.train_size=300",
    "model=mlp_784_32",
    "logger=none",
    "data.val=random",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "report=false",
]


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
def test_a_run_of_processes_may_have_a_folder_named_like_an_option(lab: Command, tmp_path: Path) -> None:
    done = lab(*DDP, "trainer.max_epochs=1", "hydra.run.dir='seed=0'")
    assert done.returncode == 0, done.stderr
    assert result_in(tmp_path / "seed=0").machine["processes"] == 2


@pytest.mark.slow
def test_all_processes_validate_the_same_network(lab: Command, tmp_path: Path) -> None:
    """Of a layer that counts for itself, as BatchNorm does, each process has counted its own share."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\ndef net(shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.BatchNorm1d(32), nn.Linear(32, 10))\n"
    )
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text("_target_: own.net\nshape: ${data.shape}\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    words = ["data=mnist_5k", "data.val=test", "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    done = lab("--config-dir", "conf", "model=mine", *words, "logger=none", "hydra.run.dir=run", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    found = result_in(tmp_path / "run")
    assert found.test["loss"] == pytest.approx(found.history[-1]["val/loss"], rel=1e-6)


@pytest.mark.slow
def test_what_torchrun_starts_is_one_run(tmp_path: Path) -> None:
    words = [*DDP, "trainer.max_epochs=1", "test_checkpoint=best"]
    torchrun = ["--nproc_per_node=2", "-m", "mnist_lab", *words]
    done = warm.lab(torchrun, tmp_path, helpers=2, module="torch.distributed.run")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert result_in(folder).machine["processes"] == 2
    assert done.stdout.count("epoch 1/1") == 1
    few = warm.lab([*torchrun, "trainer.devices=3"], tmp_path, helpers=2, module="torch.distributed.run")
    assert few.returncode != 0
    assert few.stderr.count("error: torchrun has started 2 processes, and the run is for 3") == 1
    assert list((tmp_path / "outputs").glob("*/*")) == [folder]


@pytest.mark.slow
def test_what_srun_starts_is_one_run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two processes with the variables that `srun -n 2` gives them. SLURM itself is not needed."""
    shown = tmp_path_factory.mktemp("shown")
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NNODES": "1"}
    slurm |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    words = [*DDP, "trainer.max_epochs=1", "data.batch_size=299", "data.loader=workers", "hydra.run.dir=run"]

    def srun(*words: str) -> list[tuple[int, str, str]]:
        """Exit status, stdout and stderr of each."""
        variables = [slurm | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
        tasks = [warm.start(list(words), tmp_path, shown / str(task), variables[task]) for task in range(2)]
        for task in tasks:
            task.join(300)
        done = [warm.told(task, shown / str(number)) for number, task in enumerate(tasks)]
        for path in shown.iterdir():
            path.unlink()
        return [(task.returncode, task.stdout, task.stderr) for task in done]

    first, second = srun(*words)
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "epoch 1/1" in first[1]
    assert first[2] == "" and second[1:] == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert result_in(tmp_path).machine["processes"] == 2

    first, second = srun("-m", *DDP, "seed=0,1")
    assert first[0] == second[0] == 2 and second[1:] == ("", "")
    assert "a multirun can't be started by srun" in first[2]
