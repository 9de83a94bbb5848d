"""What ended a training is recorded; a run goes on with a higher limit as one that had it from the start."""

from pathlib import Path

import pytest
import torch
from conftest import QUICK, Command, outcome

from mnist_lab import UserError, compose, load_run, train
from mnist_lab.result import Result

WORDS = ["model=mlp", "model.hidden=[32]", "data=mnist_5k", "data.train_size=1000", "data.batch_size=100"]
WORDS += ["data.val=random", "report=false", "logger=none", "trainer.accelerator=cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "ended"),
    [
        (["trainer.max_epochs=2"], {"by": "max_epochs", "epochs": 2, "steps": 20}),
        (["trainer.max_epochs=2", "trainer.max_steps=100"], {"by": "max_epochs", "epochs": 2, "steps": 20}),
        (["trainer.max_epochs=-1", "trainer.max_steps=25"], {"by": "max_steps", "epochs": 3, "steps": 25}),
        (["trainer.max_epochs=2", "trainer.max_steps=20"], {"by": "max_steps", "epochs": 2, "steps": 20}),
        (
            [
                "trainer.max_epochs=30",
                "callbacks=early_stopping",
                "optimizer.lr=2",
                "callbacks.early_stopping.patience=1",
            ],
            {"by": "early_stopping"},
        ),
        (["trainer.max_epochs=-1", "+trainer.max_time={seconds: 1}"], {"by": "max_time"}),
        (["trainer.max_epochs=9", f"+callbacks.own._target_={__name__}.stops"], {"by": "callback", "epochs": 1}),
    ],
    ids=lambda words: " ".join(words)[:40] if isinstance(words, list) else "",
)
def test_what_ended_a_training_is_recorded(
    words: list[str], ended: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(*WORDS, *words, run_dir=tmp_path / "run").result
    assert ended.items() <= result.ended.items()
    assert result.ended["epochs"] == len(result.history)
    shown = capsys.readouterr().out
    assert f"{result.ended['steps']:,} steps" in shown and "ended by" in shown
    assert ("max_steps=100 was not reached" in shown) == ("trainer.max_steps=100" in words)


def stops() -> object:
    from lightning.pytorch.callbacks import LambdaCallback

    return LambdaCallback(on_train_epoch_end=lambda trainer, module: setattr(trainer, "should_stop", True))


def test_training_without_any_limit_is_refused() -> None:
    with pytest.raises(UserError, match="never ends"):
        compose(*WORDS, "trainer.max_epochs=-1")


@pytest.mark.slow
def test_a_run_that_max_steps_ended_within_an_epoch_is_continued_there(lab: Command, tmp_path: Path) -> None:
    words = [*WORDS, "schedule=step", "trainer.max_epochs=20"]
    assert lab(*words, "trainer.max_steps=47", "hydra.run.dir=long").returncode == 0
    assert lab(*words, "trainer.max_steps=25", "hydra.run.dir=run").returncode == 0
    assert "To train it longer: trainer.max_steps=26" in lab("resume", "run").stdout
    done = lab("resume", "run", "trainer.max_steps=47")
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(tmp_path / "long")
    result = Result.load(tmp_path / "run")
    assert result.ended == {"by": "max_steps", "epochs": 5, "steps": 47}
    assert result.config == Result.load(tmp_path / "long").config
    assert any("number of steps has changed, 25 → 47" in note for note in result.notes)


@pytest.mark.slow
def test_max_time_of_a_finished_run_can_be_raised(lab: Command, tmp_path: Path) -> None:
    words = [*WORDS, "trainer.max_epochs=100000", "+trainer.max_time={seconds: 1}", "hydra.run.dir=run"]
    assert lab(*words).returncode == 0
    before = Result.load(tmp_path / "run")
    refused = lab("resume", "run", "trainer.max_epochs=200000")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "trainer.max_time=" in refused.stderr
    done = lab("resume", "run", "trainer.max_time={seconds: 2}")
    assert done.returncode == 0, done.stderr
    after = Result.load(tmp_path / "run")
    assert after.ended["by"] == "max_time" and after.ended["steps"] > before.ended["steps"]
    assert after.history[: len(before.history) - 1] == before.history[:-1], "the last one was cut"
    assert after.overrides.count("+trainer.max_time={seconds: 2}") == 1
    assert not any("seconds: 1" in word for word in after.overrides)


@pytest.mark.slow
def test_a_limit_that_did_not_end_a_run_can_be_raised_without_harm(lab: Command, tmp_path: Path) -> None:
    assert lab(*WORDS, "trainer.max_epochs=2", "trainer.max_steps=100", "hydra.run.dir=run").returncode == 0
    before = Result.load(tmp_path / "run")
    assert lab("resume", "run", "trainer.max_steps=200").returncode == 0
    after = Result.load(tmp_path / "run")
    assert (after.test, after.ended, after.history) == (before.test, before.ended, before.history)
    assert load_run(tmp_path / "run").cfg.trainer.max_steps == 200


@pytest.mark.slow
def test_a_limit_of_1_is_one_mini_batch_and_1_0_is_all_of_them(tmp_path: Path) -> None:
    found = {}
    for limit in ("1", "1.0"):
        limits = [f"trainer.limit_{part}_batches={limit}" for part in ("train", "test")]
        words = ["data.batch_size=30", "data.eval_batch_size=400", "trainer.max_epochs=1", *limits]
        result = train(*QUICK, *words, run_dir=tmp_path / limit).result
        found[limit] = (result.ended["steps"], result.test["n"])
    assert found == {"1": (1, 400), "1.0": (10, 1000)}


@pytest.mark.slow
def test_an_epoch_that_max_steps_cuts_short_is_kept_validated_and_noted(tmp_path: Path) -> None:
    words = ["data.batch_size=30", "trainer.max_epochs=9", "trainer.max_steps=15", "checkpoint.every=9 epochs"]
    result = train(*QUICK, *words, "optimizer.lr=0.1", run_dir=tmp_path / "run").result
    first, second = result.history
    assert 0 < second["val/loss"] < first["val/loss"]
    assert any(note.startswith("Epoch 2 was cut short after 5 of 10 mini-batches") for note in result.notes)
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 15


@pytest.mark.slow
def test_a_run_that_is_tested_later_says_as_well_that_its_epoch_was_cut_short(lab: Command, tmp_path: Path) -> None:
    before = train(*QUICK, "data.batch_size=30", "trainer.max_steps=15", run_dir=tmp_path / "run").result
    (tmp_path / "run/result.json").unlink()  # as if it had been stopped in its test
    assert lab("resume", "run").returncode == 0
    assert any("was cut short after 5 of 10" in note for note in before.notes), before.notes
    assert Result.load(tmp_path / "run").notes == before.notes


def test_a_training_without_a_step_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training was stopped before its first step"):
        train(*QUICK, "+trainer.max_time=00:00:00:00", run_dir=tmp_path / "run")
    assert not (tmp_path / "run/result.json").exists()


@pytest.mark.slow
def test_val_check_interval_may_be_a_time(tmp_path: Path) -> None:
    words = ["trainer.max_epochs=2", "+trainer.val_check_interval=00:01:00:00"]
    assert len(train(*QUICK, *words, run_dir=tmp_path / "run").result.history) == 2
