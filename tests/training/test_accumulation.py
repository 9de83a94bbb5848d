"""A step of several mini-batches, processes or unequal parts is that of one mini-batch with all their images."""

from pathlib import Path

import pytest
import torch
from conftest import Command
from torch import Tensor

from mnist_lab import train
from mnist_lab.build import build, build_tested
from mnist_lab.data import EpochOrder
from mnist_lab.result import Result

WORDS = [
    "model=mlp_784_32",
    "model.hidden=[16]",
    "data=mnist_5k",
    "data.val=none",
    "trainer.max_epochs=2",
    "optimizer.lr=0.5",
]
WORDS += ["optimizer.momentum=0.9", "trainer.accelerator=cpu", "report=false", "logger=none"]
CLASSES = ["+loss.weight._target_=torch.tensor", "+loss.weight.data=[0.0,0.1,3,1,1,20,1,1,0.5,7]"]


def weights_in(folder: Path) -> Tensor:
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.flatten() for value in saved.values()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "size", "group", "loss"),
    [
        pytest.param(640, 128, 4, [], id="a last group of one"),
        pytest.param(700, 100, 3, CLASSES, id="a last group of one, unequal, weights of classes"),
        pytest.param(650, 128, 4, [], id="a small last mini-batch"),
        pytest.param(650, 128, 4, CLASSES, id="a small last mini-batch, weights of classes"),
        pytest.param(650, 128, 4, ["+loss.ignore_index=3"], id="a small last mini-batch, a class ignored"),
        pytest.param(90, 1, 8, CLASSES, id="single images, weights of classes"),
        pytest.param(90, 1, 8, ["+loss.ignore_index=3"], id="single images, a class ignored"),
    ],
)
def test_accumulated_gradients_are_those_of_one_large_batch(
    images: int, size: int, group: int, loss: list[str], tmp_path: Path
) -> None:
    words = [*WORDS, *loss, f"data.train_size={images}", "optimizer.lr=0.05"]
    one = train(*words, f"data.batch_size={size * group}", run_dir=tmp_path / "one").result
    more = [f"data.batch_size={size}", f"trainer.accumulate_grad_batches={group}"]
    several = train(*words, *more, run_dir=tmp_path / "several").result
    assert (weights_in(tmp_path / "one") - weights_in(tmp_path / "several")).abs().max() < 2e-6
    assert several.ended == one.ended
    for whole, parts in zip(one.history, several.history, strict=True):
        assert parts["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_accumulate_the_gradients_of_one_large_batch(lab: Command, tmp_path: Path) -> None:
    words = [*WORDS, *CLASSES, "data.train_size=650", "optimizer.lr=0.05"]
    more = ["data.batch_size=127", "trainer.accumulate_grad_batches=4", "trainer=ddp", "trainer.devices=2"]
    several = [*words, "data.batch_size=508", "hydra.run.dir=whole"]
    assert lab(*several).returncode == 0
    done = lab(*words, *more, "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert (weights_in(tmp_path / "whole") - weights_in(tmp_path / "two")).abs().max() < 2e-6
    assert Result.load(tmp_path / "two").ended["steps"] == Result.load(tmp_path / "whole").ended["steps"]


def test_steps_of_accumulated_gradients_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """Of mini-batches of 60, 60 and 30 images the first step has two, the second one."""
    words = [*WORDS, "data.train_size=150", "data.batch_size=60", "trainer.accumulate_grad_batches=2"]
    words += ["optimizer.momentum=0", "trainer.max_epochs=1"]
    run = train(*words, run_dir=tmp_path / "run")
    data = build_tested(run.cfg, tmp_path / "run")
    assert data.images is not None and isinstance(data.images.train_images, Tensor)
    order = EpochOrder(data.train_index, 0)()
    images, labels = data.images.train_images[order].float() / 255, data.images.train_labels[order]
    torch.manual_seed(0)
    net = build(run.cfg, "model")
    for part in (slice(0, 120), slice(120, 150)):
        loss = torch.nn.functional.cross_entropy(net(images[part]), labels[part])
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(net.parameters(), gradients, strict=True):
                weight -= 0.5 * gradient
    plain = torch.cat([weight.detach().flatten() for weight in net.parameters()])
    assert (plain - weights_in(tmp_path / "run")).abs().max() < 1e-6
