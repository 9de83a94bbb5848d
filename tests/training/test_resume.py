"""Runs that are really stopped, at any moment, and resumed: they end as one that was never stopped."""

import json
import os
import random
import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import warm
from conftest import Command, last_steps, outcome
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lab import train
from mnist_lab.errors import UserError
from mnist_lab.files import folder_lock
from mnist_lab.folders import run_folder
from mnist_lab.result import Result
from mnist_lab.training import Checkpoints, Divergence

MLP = ["data=mnist_5k", "model=mlp_784_32", "data.val=random", "trainer.max_epochs=5", "report=false"]
CNN = [*MLP, "model=cnn", "model.filters=4"]  # whose epochs of 3,500 images are two training steps
RECIPES = {
    "momentum, cosine": [*MLP, "optimizer=sgd", "optimizer.momentum=0.9", "schedule=cosine"],
    "dropout, augmentation": [*CNN, "augment=affine", "callbacks=early_stopping"],
    "plateau": [*CNN, "schedule=plateau", "schedule.patience=0", "schedule.min_delta=0.1", "callbacks=none"],
    "accumulation, batch normalisation": [
        *(*MLP, "model=conv_stack", "model.layers=[8,pool]", "model.hidden=16", "data.train_size=1000"),
        *("trainer.accumulate_grad_batches=3", "data.batch_size=32", "optimizer=adamw"),
    ],
    "convolution": ["data=mnist_5k", "model=cnn", "data.train_size=1000", "schedule=one_cycle", *MLP[3:]],
}


def stop(folder: Path, words: list[str], when: Path, how: int, wait: float) -> tuple[int, str]:
    """Sends a signal some time after a file has appeared; the exit status and what the terminal showed."""
    with TemporaryDirectory() as aside:
        shown = Path(aside) / "shown"
        process = warm.start(words, folder, shown)
        for _ in range(4000):
            if when.exists() or not process.is_alive():
                break
            time.sleep(0.01)
        time.sleep(wait)
        assert process.pid is not None
        with suppress(ProcessLookupError):  # it has ended
            os.kill(process.pid, how)
        process.join(120)
        done = warm.told(process, shown)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_stopped_by_sigint_sigterm_and_sigkill_ends_as_an_undisturbed_one(
    recipe: str, lab: Command, tmp_path: Path
) -> None:
    words = [*RECIPES[recipe], "checkpoint.every=7 steps"]
    assert lab(*words, "hydra.run.dir=whole").returncode == 0
    chance = random.Random(recipe)
    last = tmp_path / "run/checkpoints/last.ckpt"
    line = [*words, "hydra.run.dir=run"]
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        status, shown = stop(tmp_path, line, last, how, chance.random() / 2)
        assert status in (0, 128 + how, -how), shown
        if status == 128 + how:
            assert "To go on: python -m mnist_lab resume run" in shown
        line = ["resume", "run"]
    done = lab(*line)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    history = Result.load(tmp_path / "run").history
    curve = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload().Scalars("train/loss")
    assert [point.step for point in curve] == last_steps(Result.load(tmp_path / "run"))
    assert [point.value for point in curve] == pytest.approx([row["train/loss"] for row in history])


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_resumes_there(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os, signal\nfrom lightning.pytorch.callbacks import Callback\n\n\n"
        "class Stop(Callback):\n"
        "    def on_train_epoch_start(self, trainer, module):\n"
        "        if trainer.current_epoch == 1:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    words = [*CNN, "schedule=cosine", "data.batch_size=64", "trainer.max_epochs=3"]
    assert lab(*words, "hydra.run.dir=whole").returncode == 0
    stopped = lab(*words, "hydra.run.dir=run", "+callbacks.stop._target_=own.Stop", PYTHONPATH=str(tmp_path))
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "stopped by SIGTERM in epoch 2" in stopped.stdout
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] == 1 and saved["within_epoch"] and saved["progress"] == [32, 55]
    (tmp_path / "own.py").write_text("from lightning.pytorch.callbacks import Callback as Stop\n")

    # Earlier versions kept another state within an epoch.
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    older = {key: value for key, value in saved.items() if key != "within_epoch"} | {"counted": {"sums": {"train": 1}}}
    torch.save(older, tmp_path / "older/checkpoints/last.ckpt")
    refused = lab("resume", "older", PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2 and "f9043fd" in refused.stderr
    assert refused.stderr.count("\n") == 1

    done = lab("resume", "run", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "epoch 1/" not in done.stdout
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


CALLBACKS = """
import os
from lightning.pytorch.callbacks import BaseFinetuning, Callback

class Killed(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if os.environ.get("KILLED_AT") == f"{trainer.current_epoch} {batch_idx}":
            os.kill(os.getpid(), 9)

class Thaws(BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.net.layers[1])

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.net.layers[1], optimizer, lr=1e-2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "moment"),
    [
        (["trainer.accumulate_grad_batches=4", "+trainer.val_check_interval=5", "trainer.max_epochs=2"], "0 6"),
        (["+callbacks.thaws._target_=own.Thaws", "trainer.max_epochs=4"], "2 1"),
    ],
    ids=["gradients that wait for more mini-batches", "layers that were frozen"],
)
def test_a_killed_run_keeps_accumulated_gradients_and_frozen_layers(
    words: list[str], moment: str, lab: Command, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(CALLBACKS)
    words = [*MLP, "data.train_size=800", "data.batch_size=100", *words, "+callbacks.killed._target_=own.Killed"]
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    assert lab(*words, "hydra.run.dir=whole", **path).returncode == 0
    assert lab(*words, "hydra.run.dir=run", **path, KILLED_AT=moment).returncode == -9
    done = lab("resume", "run", **path)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_checkpoint_is_due_after_so_many_steps_or_minutes(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda due, all: due))
    steps, minutes = (
        Checkpoints(tmp_path, number, unit, "val/acc", "max", {}, Divergence())
        for number, unit in ((7, "step"), (10, "minute"))
    )
    steps._step = 16
    for now, due in ((16, False), (20, False), (21, True), (32, True)):  # which need not come one by one
        trainer.global_step = now
        assert steps._due(trainer) == due, now
    for passed, due in ((300, False), (900, True)):
        minutes._time = time.monotonic() - passed
        assert minutes._due(trainer) == due, passed


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(lab: Command, tmp_path: Path) -> None:
    words = [*MLP, "data.train_size=300", "trainer.max_epochs=3"]
    assert lab(*words, "hydra.run.dir=run").returncode == 0
    whole = outcome(tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    last = tmp_path / "run/checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    done = lab("resume", "run")
    assert done.returncode == 0, done.stderr
    assert "checkpoints/last.ckpt is damaged" in done.stdout and "epoch 3/3" in done.stdout
    assert "the one before is used" in done.stdout
    assert outcome(tmp_path / "run") == whole
    assert (last.parent / "last.damaged").exists()

    (tmp_path / "run/result.json").unlink()
    last.write_bytes(content)
    (last.parent / "previous.ckpt").unlink()
    done = lab("resume", "run")
    assert done.returncode == 0 and "the run begins anew" in done.stdout and "before is used" not in done.stdout
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_a_finished_run_can_be_trained_longer(lab: Command, tmp_path: Path) -> None:
    small = ["data.train_size=300", "model.hidden=[16]"]
    assert lab(*MLP, *small, "trainer.max_epochs=4", "hydra.run.dir=four").returncode == 0
    assert lab(*MLP, *small, "trainer.max_epochs=2", "hydra.run.dir=two").returncode == 0
    done = lab("resume", "two", "trainer.max_epochs=4")
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "two") == outcome(tmp_path / "four")
    two, four = (Result.load(tmp_path / name) for name in ("two", "four"))
    assert two.config == four.config
    assert two.overrides[-1] == "trainer.max_epochs=4"
    assert two.command.endswith(" trainer.max_epochs=4"), "which repeats all of it"


@pytest.mark.slow
def test_a_stopped_longer_training_has_no_result_until_it_is_resumed(lab: Command, tmp_path: Path) -> None:
    words = [*CNN, "schedule=cosine"]
    assert lab(*words, "trainer.max_epochs=1", "hydra.run.dir=run").returncode == 0
    longer = ["resume", "run", "trainer.max_epochs=60"]
    status, shown = stop(tmp_path, longer, tmp_path / "run/checkpoints/previous.ckpt", signal.SIGTERM, 0.5)
    assert status == 128 + signal.SIGTERM and "To go on: python -m mnist_lab resume run" in shown
    assert "has no result.json" in lab("report", "run=run").stderr, "that of one epoch is of other weights"
    refused = lab("resume", "run", "trainer.max_epochs=1")
    assert refused.returncode == 2 and "run has had more already" in refused.stderr
    least = re.search("trainer.max_epochs=(\\d+) is the least", refused.stderr)
    assert least is not None
    config = (tmp_path / "run/config.yaml").read_text()
    done = lab("resume", "run", f"trainer.max_epochs={least[1]}")
    assert done.returncode == 0 and "max_epochs: 60" in config, done.stderr
    result = Result.load(tmp_path / "run")
    assert len(result.history) == int(least[1])
    assert [note.partition(":")[0] for note in result.notes] == [
        "The number of epochs has changed, 1 → 60",
        f"The number of epochs has changed, 60 → {least[1]}",
    ]


@pytest.mark.slow
def test_a_run_that_stopped_early_is_finished(lab: Command, tmp_path: Path) -> None:
    words = [*MLP, "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=2"]
    assert lab(*words, "trainer.max_epochs=60", "hydra.run.dir=run").returncode == 0
    before = Result.load(tmp_path / "run")
    done = lab("resume", "run", "trainer.max_epochs=60")
    assert f"is finished, after {len(before.history)} epochs" in done.stdout and len(before.history) < 60
    assert Result.load(tmp_path / "run") == before


@pytest.mark.slow
def test_a_run_that_stopped_early_can_be_tested_finished_and_trained_longer(lab: Command, tmp_path: Path) -> None:
    words = [*MLP, "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=2"]
    assert lab(*words, "trainer.max_epochs=60", "hydra.run.dir=run").returncode == 0
    before = Result.load(tmp_path / "run")
    (tmp_path / "run/result.json").unlink()  # as if it had been stopped in its test
    tested = lab("test", "run=run")
    assert tested.returncode == 0 and f"{before.test['acc']:.2%}" in tested.stdout, tested
    assert lab("resume", "run").returncode == 0
    again = Result.load(tmp_path / "run")
    assert (again.history, again.test) == (before.history, before.test)
    assert lab("resume", "run", f"trainer.max_epochs={len(before.history) + 1}").returncode == 0
    assert len(Result.load(tmp_path / "run").history) == len(before.history) + 1


@pytest.mark.slow
def test_a_longer_training_with_averaged_weights_ends_as_one_in_a_row(lab: Command, tmp_path: Path) -> None:
    words = [*MLP, "data.train_size=300", "+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"]
    assert lab(*words, "trainer.max_epochs=3", "hydra.run.dir=three").returncode == 0
    assert lab(*words, "trainer.max_epochs=2", "hydra.run.dir=two").returncode == 0
    assert lab("resume", "two", "trainer.max_epochs=3").returncode == 0
    assert outcome(tmp_path / "two") == outcome(tmp_path / "three")


@pytest.mark.slow
def test_a_run_is_resumed_only_on_the_images_that_it_began_with(lab: Command, tmp_path: Path) -> None:
    for n in range(40):
        folder = tmp_path / "pictures" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * n).save(folder / f"{n}.png")
    words = ["data=image_folder", "data.root=pictures", "data.shape=[1,8,8]", "data.val=random", "model=mlp_784_32"]
    words += ["trainer.max_epochs=1", "report=false", "hydra.run.dir=run"]
    assert lab(*words).returncode == 0
    more = tmp_path / "pictures/a/more.png"
    shutil.copy(tmp_path / "pictures/a/0.png", more)
    refused = lab("resume", "run", "trainer.max_epochs=2")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "began with other images than pictures has now" in refused.stderr
    assert len(Result.load(tmp_path / "run").history) == 1
    more.unlink()
    assert lab("resume", "run", "trainer.max_epochs=2").returncode == 0


@pytest.mark.slow
def test_report_false_holds_when_a_run_is_resumed(lab: Command, tmp_path: Path) -> None:
    train(*MLP, "data.train_size=300", "trainer.max_epochs=1", run_dir=tmp_path / "run")
    assert lab("resume", "run", "trainer.max_epochs=2").returncode == 0
    assert len(Result.load(tmp_path / "run").history) == 2
    assert not (tmp_path / "run/report.html").exists()


@pytest.mark.slow
def test_resume_and_rerun_take_a_folder_named_like_an_option(lab: Command, tmp_path: Path) -> None:
    small = ["data.train_size=300", "trainer.max_epochs=1"]
    assert lab(*MLP, *small, "hydra.run.dir='seed=0'").returncode == 0
    done = lab("resume", "seed=0", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    assert len(Result.load(tmp_path / "seed=0").history) == 2
    done = lab("rerun", "seed=0")
    assert done.returncode == 0 and "reproduced" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_run_that_another_process_works_on_is_left_alone(lab: Command, tmp_path: Path) -> None:
    process = warm.start([*MLP, "trainer.max_epochs=500", "hydra.run.dir=run"], tmp_path, tmp_path / "shown")
    try:
        for _ in range(2000):
            if (tmp_path / "run/checkpoints/last.ckpt").exists():
                break
            time.sleep(0.05)
        done = lab("resume", "run")
        assert done.returncode == 2
        assert f"is being worked on by process {process.pid}" in done.stderr
    finally:
        process.kill()
        process.join()


def test_the_second_of_two_runs_that_begin_in_one_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with folder_lock(folder, "run"):
        with pytest.raises(UserError, match="is being worked on"), run_folder(folder, until=tmp_path):
            pass
        assert (folder / ".holder").exists()


@pytest.mark.slow
def test_resume_names_what_it_cannot_resume(lab: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in {
        "resume": "use: python -m mnist_lab resume",
        "resume empty": "empty is no sweep",
        "resume nowhere": "nowhere: there is no such folder",
    }.items():
        done = lab(*words.split())
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert lab(*MLP, "trainer.max_epochs=1", "hydra.run.dir=run").returncode == 0
    done = lab("resume", "run", "optimizer.lr=1")
    assert done.returncode == 2 and "only these can be changed: trainer.max_epochs" in done.stderr
    asked = tmp_path / "run/run.json"
    for damaged in (json.dumps(json.loads(asked.read_text()) | {"remarks": 3}), "{"):
        asked.write_text(damaged)
        done = lab("resume", "run", "trainer.max_epochs=2")
        assert done.returncode == 2 and "run.json can't be read" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_checkpoint_file_is_always_whole(lab: Command, tmp_path: Path) -> None:
    line = [*MLP, "trainer.max_epochs=500", "checkpoint.every=1 step", "hydra.run.dir=run"]
    process = warm.start(line, tmp_path, tmp_path / "shown")
    last, read = tmp_path / "run/checkpoints/last.ckpt", 0
    try:
        while read < 30 and process.is_alive():
            if last.exists():
                torch.load(last, weights_only=True)
                read += 1
            time.sleep(0.005)
    finally:
        process.kill()
        process.join()
    assert read == 30
    torch.load(last, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_fit_start", "on_sanity_check_start", "on_test_start"])
def test_ctrl_c_outside_the_training_loop_ends_with_status_130(hook: str, lab: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"import lightning\nclass Stop(lightning.Callback):\n def {hook}(self, *_):\n  raise KeyboardInterrupt\n"
    )
    words = [*MLP, "data.train_size=200", "trainer.max_epochs=1", "trainer.num_sanity_val_steps=1", "report=false"]
    done = lab(*words, "+callbacks.stop._target_=own.Stop", "hydra.run.dir=run", PYTHONPATH=str(tmp_path))
    assert done.returncode == 130 and "Traceback" not in done.stderr, done
