"""`interval`, `frequency` and `monitor` of a schedule have Lightning's meaning, on both ways of making steps."""

from pathlib import Path

import pytest

from mnist_lab import UserError, train
from mnist_lab.result import Result

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


@pytest.mark.parametrize("module", ["classifier", "textbook"])
@pytest.mark.parametrize(("schedule", "rates"), RATES.items())
def test_rates(schedule: str, rates: list[float], module: str, tmp_path: Path) -> None:
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
def test_what_has_no_meaning_is_refused(schedule: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train(*WORDS, f"schedule={{{schedule}}}", run_dir=tmp_path / "run")
