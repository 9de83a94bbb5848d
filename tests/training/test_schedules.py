"""`interval`, `frequency` and `monitor` of a schedule have Lightning's meaning, on both ways of making steps."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from torch import nn

from mnist_lab import UserError, train
from mnist_lab.result import Result
from mnist_lab.training import schedules

WORDS = ["model=mlp", "model.hidden=[8]", "model.dropout=0", "data=mnist_5k", "data.train_size=100"]
WORDS += ["data.batch_size=5", "data.val=random", "data.val_size=100", "report=false", "logger=none", "trainer=cpu"]
TORCH = "torch.optim.lr_scheduler"
CYCLIC = f"_target_: {TORCH}.CyclicLR, _partial_: true, base_lr: 0.001, max_lr: 0.1, step_size_up: 20"
STEPS = f"_target_: {TORCH}.StepLR, _partial_: true, step_size: 1, gamma: 0.5"
PLATEAU = (
    f"_target_: {TORCH}.ReduceLROnPlateau, _partial_: true, patience: 0, factor: 0.5, threshold: 100, monitor: val/loss"
)
RATES = {
    # 20 steps an epoch: the 20th is made one below the peak; the 40th one above the valley.
    f"{CYCLIC}, cycle_momentum: false, interval: step": [0.09505, 0.00595, 0.09505],
    f"{CYCLIC}, cycle_momentum: false": [0.001, 0.00595, 0.0109],
    f"{STEPS}, interval: step, frequency: 10": [0.05, 0.0125, 0.003125],
    f"{STEPS}, frequency: 2": [0.1, 0.1, 0.05],
    f"{PLATEAU}, threshold_mode: abs": [0.1, 0.1, 0.05],  # no loss falls by so much
    f"{PLATEAU}, threshold_mode: abs, frequency: 2": [0.1, 0.1, 0.1],
}


@pytest.mark.parametrize("module", ["classifier", pytest.param("textbook", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("schedule", "rates"), RATES.items())
def test_interval_frequency_and_monitor_of_a_schedule_have_lightnings_meaning(
    schedule: str, rates: list[float], module: str, tmp_path: Path
) -> None:
    words = ["optimizer=sgd", "optimizer.lr=0.1", "trainer.max_epochs=3", f"module={module}"]
    train(*WORDS, *words, f"schedule={{{schedule}}}", run_dir=tmp_path / "run")
    assert [row["lr"] for row in Result.load(tmp_path / "run").history] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (f"{STEPS}, monitor: val/loss", "StepLR follows no metric"),
        (f"{STEPS}, interval: batch", "schedule.interval=batch is not allowed"),
        (f"_target_: {TORCH}.ReduceLROnPlateau, _partial_: true", "schedule.monitor=val/loss"),
    ],
)
def test_a_schedule_with_a_meaningless_interval_or_monitor_is_refused(schedule: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train(*WORDS, f"schedule={{{schedule}}}", run_dir=tmp_path / "run")


def rates(schedule: Any, steps: int, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    made = schedule(optimizer, total_steps=steps, epochs=5, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


def test_step_schedule_falls_after_every_so_many_epochs() -> None:
    assert rates(schedules.step, 10, every=2, gamma=0.1) == pytest.approx([2.0] * 4 + [0.2] * 4 + [0.02] * 2)


@given(steps=st.integers(3, 200), warmup=st.floats(0, 0.9), final=st.floats(0, 1))
def test_cosine_schedule_rises_and_falls_to_its_final_rate(steps: int, warmup: float, final: float) -> None:
    found = rates(schedules.cosine, steps, warmup=warmup, final=final)
    rising = round(warmup * steps)
    assert all(0 < rate <= 2.0 + 1e-12 for rate in found[: steps - 1])
    assert all(a < b for a, b in pairwise(found[:rising]))
    assert all(a >= b - 1e-12 for a, b in pairwise(found[rising:]))
    if steps - rising > 1:
        assert found[rising] == pytest.approx(2.0)
        assert found[-1] == pytest.approx(2.0 * final)


@pytest.mark.parametrize("warmup", [0.2, 0.3, 0.7])
def test_one_cycle_goes_up_to_the_rate_and_down_to_almost_nothing(warmup: float) -> None:
    found = rates(schedules.one_cycle, 101, warmup=warmup, initial=0.04, final=4e-6)
    assert found[0] == pytest.approx(2.0 * 0.04)
    assert max(found) == pytest.approx(2.0, rel=1e-3) and found.index(max(found)) == round(100 * warmup)
    assert found[-1] == pytest.approx(2.0 * 4e-6)


class Rates(Callback):
    seen: list[float]

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Rates.seen = []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trainer.max_epochs=2", "schedule=step", "schedule.every=1"], [0.1] * 20 + [0.01] * 20),
        (["trainer.max_steps=25", "schedule=step", "schedule.every=1"], [0.1] * 20 + [0.01] * 5),
    ],
)
def test_an_epoch_of_the_schedule_is_one_of_the_training_wherever_a_limit_ends_it(
    words: list[str], expected: list[float], tmp_path: Path
) -> None:
    train(*WORDS, "optimizer=sgd", "optimizer.lr=0.1", f"+callbacks.own._target_={__name__}.Rates", *words,
          run_dir=tmp_path / "run")  # fmt: skip
    assert Rates.seen == pytest.approx(expected)


def test_the_cosine_schedule_moves_at_each_step_to_the_end_of_the_run(tmp_path: Path) -> None:
    words = ["optimizer.lr=0.1", "schedule=cosine", "trainer.max_epochs=2"]
    train(*WORDS, *words, f"+callbacks.own._target_={__name__}.Rates", run_dir=tmp_path / "run")
    assert len(set(Rates.seen)) == 40 and Rates.seen == sorted(Rates.seen, reverse=True) and Rates.seen[0] == 0.1
    assert Rates.seen[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_history_has_the_rate_that_each_epoch_used(tmp_path: Path) -> None:
    words = ["optimizer.lr=0.1", "trainer.max_epochs=4", "schedule=step", "schedule.every=1"]
    run = train(*WORDS, *words, "trainer.check_val_every_n_epoch=2", run_dir=tmp_path / "run")
    assert [row["lr"] for row in run.result.history] == pytest.approx([1e-1, 1e-2, 1e-3, 1e-4])
    assert [row["val/acc"] is None for row in run.result.history] == [True, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["val/loss", "train/acc"])
def test_plateau_lowers_the_rate_when_its_metric_stands_still(monitor: str, tmp_path: Path) -> None:
    words = ["optimizer=sgd", "optimizer.lr=0.5", "trainer.max_epochs=16", "trainer.check_val_every_n_epoch=2"]
    words += ["schedule=plateau", "schedule.patience=0", f"schedule.monitor={monitor}"]
    words += ["schedule.min_delta=0.05", "schedule.factor=0.5", "schedule.min_lr=0.1"]
    history = train(*WORDS, *words, run_dir=tmp_path / "run").result.history
    best, rate, rates = float("inf"), 0.5, []
    for row in history:
        rates.append(rate)
        if row[monitor] is None:
            continue
        value = row[monitor] if monitor.endswith("loss") else -row[monitor]
        if value < best - 0.05:
            best = value
        else:
            rate = max(rate / 2, 0.1)
    assert [row["lr"] for row in history] == pytest.approx(rates)
    assert len(set(rates)) > 2, rates
