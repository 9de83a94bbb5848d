"""`FastClassifier` makes the steps of `Classifier`, bit for bit; `Classifier` makes those of a plain PyTorch loop."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from torch import Tensor

import mnist_lab
from mnist_lab.build import build, build_data, build_module
from mnist_lab.composing import compose_config, run_config
from mnist_lab.data import Batches, ImageDataModule
from mnist_lab.fast.process import BFLOAT16
from mnist_lab.result import Result
from mnist_lab.seeds import seed_of

SHORT = (
    *("data=mnist_5k", "data.val=random", "data.val_size=200", "data.train_size=400", "data.batch_size=64"),
    *("trainer.max_epochs=2", "report=false", "logger=none", "trainer=cpu"),
)
SEVERAL: dict[str, list[str]] = {
    "mlp, dropout, RMSprop": ["model=mlp"],
    "mlp_784_32, SGD": ["model=mlp_784_32"],
    "mlp_512, AdamW, cosine": ["model=mlp_512", "optimizer=adamw", "schedule=cosine"],
    "mlp_1000, Adam, step": ["model=mlp_1000", "optimizer=adam", "schedule=step"],
    "cnn, momentum, one cycle": [
        "model=cnn",
        "model.filters=8",
        "optimizer=sgd",
        "optimizer.momentum=0.9",
        "schedule=one_cycle",
    ],
    "conv_stack, plateau": ["model=conv_stack", "model.layers=[8,pool]", "model.hidden=16", "schedule=plateau"],
    "neuron": ["model=neuron"],
    "class weights": ["model=mlp_784_32", "+loss.weight={_target_: torch.tensor, data: [1,1,1,1,1,1,1,1,1,20.0]}"],
    "augmentation": ["model=mlp_512", "augment=affine"],
    "one image in the last mini-batch": ["model=mlp_784_32", "data.train_size=385"],
    "schedule by epoch": [
        "model=mlp_784_32",
        *(
            "+schedule._target_=torch.optim.lr_scheduler.ExponentialLR",
            "+schedule._partial_=true",
            "+schedule.gamma=0.5",
        ),
    ],
    "repeated operations": ["model=mlp_784_32", "model.hidden=[32]", "data.batch_size=16", "trainer.max_epochs=6"],
}
SINGLE: dict[str, tuple[list[str], str]] = {
    "clipping": (["trainer.gradient_clip_val=0.01"], "trainer.gradient_clip_val"),
    "accumulation": (["trainer.accumulate_grad_batches=4"], "trainer.accumulate_grad_batches"),
    "a limit of steps": (["trainer.max_steps=10"], "trainer.max_steps"),
    "a callback": (
        ["+callbacks.lr_monitor={_target_: lightning.pytorch.callbacks.LearningRateMonitor}", "logger=tensorboard"],
        "callbacks.lr_monitor",
    ),
    "workers": (["data.loader=workers", "data.workers=0"], "data.loader=workers"),
}


def trained(folder: Path, name: str, *words: str) -> tuple[Result, dict[str, Tensor]]:
    """Train in this process. Return the result and the weights."""
    result = mnist_lab.train(*SHORT, *words, f"module={name}", run_dir=folder / name).result
    assert result is not None
    saved = torch.load(folder / name / "checkpoints/last.ckpt", weights_only=True)
    return result, saved["state_dict"]


def assert_same(one: tuple[Result, dict[str, Tensor]], other: tuple[Result, dict[str, Tensor]]) -> None:
    for name, weights in one[1].items():
        assert torch.equal(weights, other[1][name]), name
    rows = zip([*one[0].history, one[0].test["metrics"]], [*other[0].history, other[0].test["metrics"]], strict=True)
    for row, expected in rows:
        assert row.keys() == expected.keys()
        for key in row.keys() - {"seconds"}:
            if key.endswith("loss"):
                assert row[key] == pytest.approx(expected[key], abs=1e-6)
            else:
                assert row[key] == expected[key], key


@pytest.mark.slow
@pytest.mark.parametrize("words", SEVERAL.values(), ids=SEVERAL)
def test_several_steps_at_a_time_are_the_steps_of_the_textbook(words: list[str], tmp_path: Path) -> None:
    fast, textbook = (trained(tmp_path, name, *words) for name in ("classifier", "textbook"))
    assert fast[0].module["steps"] == "several at a time" and fast[0].module["why"] is None
    assert textbook[0].module == {
        "target": "mnist_lab.training.classifier.Classifier",
        "steps": "one at a time",
        "why": None,
    }
    assert_same(fast, textbook)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "why"), SINGLE.values(), ids=SINGLE)
def test_steps_are_made_one_at_a_time_where_something_follows_or_limits_them(
    words: list[str], why: str, tmp_path: Path
) -> None:
    fast, textbook = (trained(tmp_path, name, "model=mlp_784_32", *words) for name in ("classifier", "textbook"))
    assert fast[0].module["steps"] == "one at a time" and fast[0].module["why"].startswith(why)
    assert_same(fast, textbook)


@pytest.mark.skipif(not BFLOAT16, reason="this processor has no arithmetic for bfloat16")
def test_several_steps_in_bfloat16_are_the_steps_of_the_textbook(tmp_path: Path) -> None:
    words = ["model=mlp", "trainer.precision=bf16-mixed"]
    assert_same(*(trained(tmp_path, name, *words) for name in ("classifier", "textbook")))


@pytest.mark.slow
def test_a_subclass_of_ones_own_makes_single_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_classifier.py").write_text(
        "from mnist_lab.fast import FastClassifier\n\n\nclass Mine(FastClassifier):\n"
        "    def on_before_optimizer_step(self, optimizer):\n        self.seen = getattr(self, 'seen', 0) + 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["model=mlp_784_32", "module._target_=own_classifier.Mine"]
    result = mnist_lab.train(*SHORT, *words, run_dir=tmp_path / "run").result
    assert result is not None and result.module["target"] == "own_classifier.Mine"
    assert result.module["steps"] == "one at a time" and "Mine" in result.module["why"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_textbook_makes_the_steps_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    _, weights = trained(tmp_path, "textbook", f"model={name}", "optimizer=adam")
    cfg = run_config(compose_config([*SHORT, f"model={name}", "optimizer=adam"]))
    data: Any = build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    torch.manual_seed(cfg.seeds.weights)
    net = build(cfg, "model").train()
    optimizer = build(cfg, "optimizer")(net.parameters())
    torch.manual_seed(seed_of("dropout", cfg.seeds.dropout, 0))
    images, labels = data.images.train_images, data.images.train_labels
    for epoch in range(2):
        generator = torch.Generator().manual_seed(seed_of("order", cfg.seeds.order, epoch))
        order = data.train_index[torch.randperm(len(data.train_index), generator=generator)]
        for part in order.split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[part] / 255), labels[part]).backward()
            optimizer.step()
    for key, weight in net.state_dict().items():
        assert torch.equal(weight, weights[f"net.{key}"]), key


STOP = """
import os, signal
from lightning.pytorch.callbacks import Callback

class Stop(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""


TARGETS = {"classifier": "mnist_lab.fast.FastClassifier", "textbook": "mnist_lab.training.Classifier"}


def exchange(config: Path, first: str, then: str) -> None:
    """Name the other classifier in a run's config."""
    content = config.read_text()
    assert TARGETS[first] in content
    content = content.replace(TARGETS[first], TARGETS[then])
    config.write_text("".join(content.splitlines(keepends=True)[:-1]))  # without the mark of who wrote it


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("classifier", "textbook"), ("textbook", "classifier")])
def test_either_classifier_resumes_a_checkpoint_of_the_other(
    first: str, then: str, lab: Command, tmp_path: Path
) -> None:
    small = ["model=conv_stack", "model.layers=[4,pool]", "model.hidden=16"]  # its chunks are of 2,048 images
    words = [*small, "data.train_size=2500", "schedule=cosine", "trainer.max_epochs=3"]
    whole = trained(tmp_path, first, *words)
    (tmp_path / "own_stop.py").write_text(STOP)
    stop = "+callbacks.stop._target_=own_stop.Stop"
    path = {"PYTHONPATH": str(tmp_path)}
    stopped = lab(*SHORT, *words, f"module={first}", stop, "hydra.run.dir=run", **path)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    steps = {"classifier": "several steps at a time", "textbook": "one step at a time"}
    assert steps[first] in stopped.stdout.splitlines()[1]
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["within_epoch"] and 0 < saved["progress"][0] < saved["progress"][1] == 40
    exchange(tmp_path / "run/config.yaml", first, then)
    (tmp_path / "own_stop.py").write_text("from lightning.pytorch.callbacks import Callback as Stop\n")
    done = lab("resume", "run", **path, MNIST_LAB_TRUST="own_stop")
    assert done.returncode == 0, done.stderr
    result = Result.load(tmp_path / "run")
    assert result.module["steps"] == {"classifier": "several at a time", "textbook": "one at a time"}[then]
    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert_same((result, weights), whole)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["classifier", "textbook"])
@pytest.mark.parametrize("first", ["classifier", "textbook"])
def test_a_plateau_schedule_continues_where_a_run_was_resumed(
    first: str, then: str, lab: Command, tmp_path: Path
) -> None:
    """Lightning steps a plateau schedule after the epoch's checkpoint is written."""
    words = ["model=mlp_784_32", "schedule=plateau", "schedule.patience=0", "schedule.min_delta=1"]
    whole = trained(tmp_path, first, *words, "trainer.max_epochs=4")
    assert [row["lr"] for row in whole[0].history] == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    mnist_lab.train(*SHORT, *words, f"module={first}", run_dir=tmp_path / "run")
    exchange(tmp_path / "run/config.yaml", first, then)
    done = lab("resume", "run", "trainer.max_epochs=4")
    assert done.returncode == 0, done.stderr
    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert_same((Result.load(tmp_path / "run"), weights), whole)


def test_a_module_of_ones_own_is_built_from_the_configs_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module.py").write_text(
        "import lightning as L\n\n\nclass Own(L.LightningModule):\n"
        "    def __init__(self, net, optimizer, width, loss=None):\n        super().__init__()\n"
        "        self.net, self.make, self.width, self.loss = net, optimizer, width, loss\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = run_config(compose_config(["data=mnist_5k", "module._target_=own_module.Own", "+module.width=7"]))
    data = build_data(cfg)
    assert isinstance(data, ImageDataModule)
    module: Any = build_module(cfg, data)
    assert module.width == 7 and module.loss is None and type(module.net).__name__ == "MLP"
    assert isinstance(module.make(module.net.parameters()), torch.optim.Optimizer)
    data.prepare_data()
    data.setup("fit")
    assert isinstance(data.train_dataloader(), Batches)
