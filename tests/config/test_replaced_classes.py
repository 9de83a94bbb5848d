"""A class of PyTorch's, torchvision's or one's own takes the place of a config's by one word, and works as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, result_in
from PIL import Image
from some import some

import mnist_lab
from mnist_lab.build import build_data
from mnist_lab.composing import compose_config, run_config
from mnist_lab.data import ImageDataModule
from mnist_lab.errors import UserError
from mnist_lab.show.export import export
from mnist_lab.show.predict import predict

WORDS = ["data=mnist_5k", "data.train_size=200", "data.val_size=100", "trainer.max_epochs=1", "logger=none"]
WORDS += ["report=false"]
RESNET = ["model._target_=torchvision.models.resnet18", "data.resize=[32,32]", "data.channels=3"]


@pytest.mark.parametrize(
    ("words", "section", "expected"),
    [
        (["loss._target_=torch.nn.MultiMarginLoss"], "loss", {}),
        (["loss._target_=torch.nn.MultiMarginLoss", "+loss.margin=2.0"], "loss", {"margin": 2.0}),
        (["loss={_target_: torch.nn.MultiMarginLoss, margin: 2.0}"], "loss", {"margin": 2.0}),
        (["loss._target_=torch.nn.NLLLoss", "loss.label_smoothing=0.1"], "loss", {"label_smoothing": 0.1}),
        (
            ["model=cnn", "optimizer=adam", "optimizer._target_=torch.optim.Adamax", "optimizer.lr=0.1"],
            "optimizer",
            {"_partial_": True, "lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-7, "weight_decay": 0.0},
        ),
        (RESNET, "model", {"num_classes": 10}),
    ],
)
def test_a_replaced_class_leaves_no_arguments_behind(
    words: list[str], section: str, expected: dict[str, object]
) -> None:
    found = dict(run_config(compose_config([*WORDS, *words]))[section])
    del found["_target_"]
    assert found == expected


def test_a_typed_argument_that_the_class_does_not_take_is_an_error(tmp_path: Path) -> None:
    words = ["loss._target_=torch.nn.NLLLoss", "loss.label_smoothing=0.1"]
    with pytest.raises(UserError, match=r"loss: torch\.nn\.NLLLoss can't be made: .*label_smoothing"):
        mnist_lab.train(*WORDS, *words, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_pytorch_loss_replaces_ours(tmp_path: Path) -> None:
    result = mnist_lab.train(*WORDS, "loss._target_=torch.nn.MultiMarginLoss", run_dir=tmp_path / "run").result
    assert result.config["loss"] == {"_target_": "torch.nn.MultiMarginLoss"}
    first = result.history[0]["train/loss"]
    assert first is not None and 0 < first < 1, "a margin loss of ten classes begins near 0.9"


@pytest.mark.slow
def test_a_command_may_give_a_whole_group(lab: Command, tmp_path: Path) -> None:
    done = lab(*WORDS, "loss={_target_: torch.nn.MultiMarginLoss, margin: 2.0}", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert result_in(tmp_path / "run").config["loss"] == {"_target_": "torch.nn.MultiMarginLoss", "margin": 2.0}


@pytest.mark.slow
def test_a_torchvision_network_trains_on_resized_colour_images(tmp_path: Path) -> None:
    words = [*WORDS, *RESNET, "data.batch_size=50", "data.eval_batch_size=100"]
    run = mnist_lab.train(*words, run_dir=tmp_path / "run")
    assert run.result.model["target"] == "torchvision.models.resnet18"
    assert run.shape == (3, 32, 32)
    assert run.predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)
    Image.fromarray(np.tile(np.array([0, 255, 0], np.uint8).repeat(20), (60, 1))).save(tmp_path / "one.png")
    predict([f"run={run.run_dir}", f"images={tmp_path / 'one.png'}"])
    export([f"run={run.run_dir}", "format=torch_export"])
    (exported,) = (run.run_dir / "export").glob("*.pt2")
    assert torch.export.load(exported).module()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        (["data.resize=[32,32]", "data.channels=3"], (3, 32, 32)),
        (["data.resize=14"], (1, 14, 14)),
        (["data.channels=3"], (3, 28, 28)),
        (["data.channels=1"], (1, 28, 28)),
        ([], (1, 28, 28)),
    ],
)
def test_images_have_the_configured_size_and_channels(words: list[str], shape: tuple[int, ...]) -> None:
    cfg = compose_config([*WORDS, *words])
    assert tuple(cfg.model.input_shape) == tuple(cfg.data.shape) == shape, "a network of ours takes them"
    data = build_data(run_config(cfg))
    assert isinstance(data, ImageDataModule)
    data.prepare_data()
    data.setup()
    assert data.images is not None
    images = data.images.train_images
    assert isinstance(images, torch.Tensor) and tuple(images.shape[1:]) == shape and images.dtype == torch.uint8
    means = images.float().mean((0, 2, 3))
    assert np.allclose(means, 33.3, atol=1.5), f"as bright as MNIST in each channel: {means}"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.resize=[32]", r"data.resize=\[32\] is not allowed"),
        ("data.resize=0", "data.resize=0 is not allowed"),
        ("data.channels=2", r"data.channels=2 is not allowed: it must be 1 \(grey\) or 3 \(colour\)"),
    ],
)
def test_a_wrong_image_size_is_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config([word])


@pytest.mark.parametrize(
    ("words", "here"),
    some(
        [
            ("ckpt_path=logs/last.ckpt", "resume RUN"),
            ("+ckpt_path=logs/last.ckpt", "resume RUN"),
            ("hparams_search=mnist_optuna", "-m sweep=tpe"),
            ("data.num_workers=4 data.pin_memory=true", "data.workers=N"),
            ("data.data_dir=x", "data.root=DIR"),
            ("model.optimizer.lr=0.1", "Did you mean optimizer.lr"),
            ("model.scheduler.factor=0.1", "schedule.OPTION"),
            ("callbacks.early_stopping.patience=3", "Add callbacks=early_stopping"),
            ("logger=null", "such as none"),
            ("logger=[]", "such as logger=none"),
            ("logger=[tensorboard,cvs]", "Did you mean csv"),
            ("model=[mlp,cnn]", "-m model=mlp,cnn"),
            ("paths.data_dir=data", "data.root"),
            ("task_name=mine", "name=NAME"),
            ("optimized_metric=val/acc", "sweep.objective"),
            ("debug=default", "trainer=debug"),
            ("epochs=3", "trainer.max_epochs"),
            ("train=false", "test run=RUN"),
        ],
        6,
    ),
)
def test_words_of_other_frameworks_are_answered_with_ours(words: str, here: str) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(words.split())
    assert here in str(raised.value)


class Early(ImageDataModule):
    """Written before there were `resize` and `channels`: its arguments are a list of its own."""

    def __init__(
        self,
        *,
        name: str,
        source: Any,
        root: str,
        shape: Any,
        num_classes: int,
        batch_size: int,
        eval_batch_size: int,
        val: str,
        val_size: int,
        train_size: int,
        loader: str,
        workers: int,
        scale: str,
        split_seed: int,
        order_seed: int,
        augment_seed: int,
    ) -> None:
        super().__init__(name, source, root, shape, num_classes, batch_size, val=val, val_size=val_size)


def test_a_data_module_made_of_ours_gets_no_null_that_it_does_not_take() -> None:
    cfg = compose_config([*WORDS, "data.train_size=100", f"data._target_={__name__}.Early"])
    assert isinstance(build_data(run_config(cfg)), Early)
    with pytest.raises(UserError, match="resize"):
        build_data(run_config(compose_config([*WORDS, f"data._target_={__name__}.Early", "data.resize=14"])))
