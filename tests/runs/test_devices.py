"""Where there is no GPU, PyTorch's device `meta` stands in for one: it computes shapes and no values.

What stays behind on the CPU is an error on it as it is on a GPU, and so is whatever a step would have to wait for.
"""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torchmetrics import Metric

from mnist_lab.composing import compose_config, run_config
from mnist_lab.run import run
from mnist_lab.training.metrics import Accuracy, Confusion, MeanLoss

WORDS = ["data=mnist_5k", "data.val=random", "data.train_size=700", "trainer.max_epochs=2"]
NOT_FUSED = "optimizer.fused=false"  # PyTorch has no fused steps for meta


class Broken(Exception):
    """Ends a run in the middle of an epoch."""


class Break(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step  # of 6 an epoch

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise Broken


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(metric: Metric) -> Tensor:
        return torch.ones(())  # the one place where sums come back from the device: when an epoch ends

    def reduce(strategy: SingleDeviceStrategy, tensor: Tensor, *_: object, **__: object) -> Tensor:
        return torch.ones(tensor.shape)  # Lightning asks so for the lengths of the loaders: before the first epoch

    monkeypatch.setattr(SingleDeviceStrategy, "root_device", property(lambda strategy: torch.device("meta")))
    monkeypatch.setattr(SingleDeviceStrategy, "reduce", reduce)
    monkeypatch.setattr(MeanLoss, "compute", compute)
    monkeypatch.setattr(Accuracy, "compute", compute)
    monkeypatch.setattr(Confusion, "compute", lambda metric: torch.eye(metric.num_classes))
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda *_: None)
    monkeypatch.setattr(L.Trainer, "_teardown", lambda trainer: None)  # brings everything back


@pytest.mark.slow
@pytest.mark.usefixtures("other_device")
@pytest.mark.parametrize(
    "words",
    [
        ["model=mlp"],
        ["model=cnn", NOT_FUSED, "schedule=one_cycle"],
        ["model=conv_stack", NOT_FUSED, "trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=1"],
        ["model=neuron", NOT_FUSED, "trainer.precision=64-true"],
    ],
)
def test_a_run_on_a_device_leaves_no_tensor_on_the_cpu_and_no_step_synchronizes(
    words: list[str], tmp_path: Path
) -> None:
    result = run(run_config(compose_config([*WORDS, *words])), tmp_path, [], [])
    assert result is not None and len(result.history) == 2


@pytest.mark.slow
def test_a_run_on_a_device_resumes_within_an_epoch(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cfg = run_config(compose_config([*WORDS, "model=mlp", "checkpoint.every=2 steps"]))
    with pytest.raises(Broken):
        run(cfg, tmp_path, [], [], callbacks=[Break(9)])
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["within_epoch"] and "metrics.train/loss" in saved["metrics"][0]
    request.getfixturevalue("other_device")
    result = run(cfg, tmp_path, [], [], callbacks=[Break(0)])
    assert result is not None and len(result.history) == 2
