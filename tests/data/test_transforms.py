"""Evaluation applies what of `data.transform` is preparation, not what is random; what can't be told is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from conftest import Command, in_memory
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from mnist_lab import load_run
from mnist_lab.data import Batches, ImageDataModule, mnist_5k
from mnist_lab.data.evaluation import evaluation_transform
from mnist_lab.errors import UserError
from mnist_lab.result import Result
from mnist_lab.show.portable import read_onnx, with_scaling_alone

SHAPE = (3, 12, 12)
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
MEAN_AND_STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
NORMALIZE = v2.Normalize(*MEAN_AND_STD)
IMAGE = torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def normalized(image: Tensor) -> Tensor:
    return (image / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)


def halve(image: Tensor) -> Tensor:
    return image // 2


def speckle(image: Tensor) -> Tensor:
    return torch.where(torch.rand(image.shape) < 0.1, 0, image)


PREPARATION: dict[str, tuple[Any, Tensor]] = {
    "deterministic": (v2.Compose([TO_FLOAT, NORMALIZE]), normalized(IMAGE)),
    "random before": (v2.Compose([v2.RandomCrop(12, padding=2), TO_FLOAT, NORMALIZE]), normalized(IMAGE)),
    "random within": (v2.Compose([TO_FLOAT, v2.RandomHorizontalFlip(), NORMALIZE]), normalized(IMAGE)),
    "random after": (v2.Compose([v2.Compose([TO_FLOAT, NORMALIZE]), v2.RandomErasing(p=0.01)]), normalized(IMAGE)),
    "PyTorch's": (nn.Sequential(v2.ColorJitter(0.5), TO_FLOAT, NORMALIZE), normalized(IMAGE)),
    "through Pillow": (
        v1.Compose([v1.ToPILImage(), v1.RandomRotation(20), v1.ToTensor(), v1.Normalize(*MEAN_AND_STD)]),
        normalized(IMAGE),
    ),
    "a group of random ones": (
        v2.Compose([v2.RandomApply([v2.GaussianBlur(3), v2.RandomChoice([v2.AugMix(), v2.RandAugment()])]), TO_FLOAT]),
        IMAGE / 255,
    ),
    "one's own": (halve, IMAGE // 2),
    "random by name, not in effect": (v2.RandomInvert(p=1.0), 255 - IMAGE),
    "random alone": (v2.RandomAutocontrast(), IMAGE),
    "a rare one": (v2.RandomVerticalFlip(p=0.001), IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", PREPARATION)
def test_evaluation_applies_only_deterministic_transforms(name: str) -> None:
    transform, expected = PREPARATION[name]
    state = torch.get_rng_state()
    chosen = evaluation_transform(transform, None, SHAPE, False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(chosen(IMAGE) if chosen else IMAGE, expected)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (v2.Compose([TO_FLOAT, speckle]), "speckle is random.* data.eval_transform"),
        (speckle, "speckle is random"),
        (nn.Sequential(TO_FLOAT, nn.Dropout()), "Dropout is random"),
        (v2.RandomApply([TO_FLOAT]), "RandomApply is random"),
        (v2.RandomOrder([TO_FLOAT, v2.RandomInvert()]), "RandomOrder is random"),
        (
            v2.RandomCrop(10),
            r"gives uint8 \[3, 10, 10\], and data.transform without what is random.* uint8 \[3, 12, 12\]",
        ),
    ],
)
def test_an_unclear_transform_is_refused_unless_eval_transform_is_given(transform: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        evaluation_transform(transform, None, SHAPE, False)
    assert "\n" not in str(raised.value)
    given = {10: v2.CenterCrop(10)}.get(
        getattr(transform, "size", [0])[0], TO_FLOAT if transform is not speckle else halve
    )
    assert evaluation_transform(transform, given, SHAPE, False) is given


@pytest.mark.parametrize(
    ("transform", "given", "said"),
    [
        (v2.Compose([TO_FLOAT, NORMALIZE]), halve, r"gives float32 .* data.eval_transform uint8"),
        (None, TO_FLOAT, "data.eval_transform without data.transform"),
        (v1.ToTensor(), None, r"data.transform \(ToTensor\) takes no tensors.* torchvision.transforms.v2.ToDtype"),
        (v1.Compose([v1.ToTensor(), NORMALIZE]), None, "in its place use"),
        (v2.ToPILImage(), None, "data.transform gives Image, and must give a tensor, uint8 or float32"),
        (lambda image: image.double(), None, r"gives float64 \[3, 12, 12\]"),
        (lambda image: image[0], None, r"gives uint8 \[12, 12\]"),
    ],
)
def test_a_transform_that_does_not_fit_is_refused_in_a_line(transform: Any, given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        evaluation_transform(transform, given, SHAPE, False)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("val", ["random", "test"])
def test_train_val_and_test_images_are_on_one_scale(val: str) -> None:
    transform = v2.Compose([TO_FLOAT, v2.Normalize([0.13], [0.31])])
    how: dict[str, Any] = {"transform": transform, "loader": "workers", "workers": 0, "val_size": 500, "val": val}
    data = ImageDataModule("mnist_5k", mnist_5k, "/", (1, 28, 28), 10, **how)
    data.prepare_data()
    data.setup()
    assert data.images is not None
    train, test = in_memory(data.images.train_images), in_memory(data.images.test_images)
    validated = test if val == "test" else train[data.val_index]
    labels = data.images.test_labels if val == "test" else data.images.train_labels[data.val_index]
    for batches, raw, truth in (
        (data.val_dataloader(), validated, labels),
        (data.test_dataloader(), test, data.images.test_labels),
    ):
        assert isinstance(batches, Batches)
        pairs = list(batches)
        torch.testing.assert_close(torch.cat([images for images, _ in pairs]), (raw / 255 - 0.13) / 0.31)
        assert torch.equal(torch.cat([labels for _, labels in pairs]), truth)


TO_FLOAT_CONFIG = (
    "{_target_:torchvision.transforms.v2.ToDtype,dtype:{_target_:hydra.utils.get_object,path:torch.float32},scale:true}"
)
NORMALIZE_CONFIG = "{_target_:torchvision.transforms.v2.Normalize,mean:[0.1307],std:[0.3081]}"
CROP_CONFIG = "{_target_:torchvision.transforms.v2.RandomCrop,size:28,padding:1}"


@pytest.mark.slow
def test_a_normalized_runs_numbers_are_those_of_a_plain_loop(lab: Command, tmp_path: Path) -> None:
    parts = ",".join([CROP_CONFIG, TO_FLOAT_CONFIG, NORMALIZE_CONFIG])
    words = ["data=mnist_5k", "model=mlp", "model.hidden=[32]", "data.val=random", "data.train_size=1000"]
    words += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "data.loader=workers", "data.workers=0", "logger=none"]
    words += [f"data.transform={{_target_:torchvision.transforms.v2.Compose,transforms:[{parts}]}}"]
    assert (done := lab(*words, "hydra.run.dir=run")).returncode == 0, done.stderr
    result, run, data = Result.load(tmp_path / "run"), load_run(tmp_path / "run", device="cpu"), mnist_5k()
    images = in_memory(data.test_images)
    with torch.no_grad():
        logits = run.net((images / 255 - 0.1307) / 0.3081)
    assert result.test["acc"] == (logits.argmax(1) == data.test_labels).sum().item() / 1000
    assert result.test["loss"] == pytest.approx(nn.functional.cross_entropy(logits, data.test_labels).item(), abs=1e-5)
    torch.testing.assert_close(run.predict(images), logits.softmax(1))
    assert (done := lab("test", "run")).returncode == 0 and done.stdout.count(f"{result.test['acc']:.2%}") == 2, (
        done.stdout
    )
    assert (done := lab("export", "run", "format=safetensors")).returncode == 0, done.stdout + done.stderr
    assert "the same class for 1,000 of 1,000" in done.stdout
    Image.fromarray(images[3, 0].numpy()).save(tmp_path / "x.png")
    seen = json.loads(lab("predict", "run", "images=x.png", "--json").stdout)
    assert seen["probability"] == pytest.approx(float(logits[3].softmax(0).max()), abs=1e-5)


def test_an_exported_file_contains_the_scaling_and_names_what_it_lacks(cnn_run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    run = load_run(cnn_run, device="cpu")
    images = in_memory(mnist_5k().test_images)[:50]
    scaled = replace(run, evaluation=v2.Compose([TO_FLOAT, v2.Normalize([0.2], [0.4])]))
    alone = with_scaling_alone(scaled)
    assert alone.evaluation is None
    torch.testing.assert_close(alone.predict(images), scaled.predict(images))
    assert not torch.allclose(run.predict(images), scaled.predict(images), atol=1e-3)
    for more in (v2.CenterCrop(20), v2.RandomPosterize(2, p=1.0), v2.Compose([v2.CenterCrop(20), v2.Pad(4)])):
        with pytest.raises(UserError, match="does more than to scale"):
            with_scaling_alone(replace(run, evaluation=more))


@pytest.mark.slow
def test_an_exported_model_takes_the_same_pixels_to_the_same_answer(cnn_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from dataclasses import replace

    from mnist_lab.show.portable import facts, write_onnx

    run = replace(load_run(cnn_run, device="cpu"), evaluation=v2.Compose([TO_FLOAT, v2.Normalize([0.2], [0.4])]))
    alone = with_scaling_alone(run)
    write_onnx(alone, facts(alone), tmp_path / "x.onnx")
    images = in_memory(mnist_5k().test_images)[:50]
    np.testing.assert_allclose(read_onnx(tmp_path / "x.onnx")(images), run.predict(images), atol=1e-5)


def test_eval_transform_without_transform_is_refused_before_torch_is_imported(lab: Command) -> None:
    done = lab("data.eval_transform={_target_: own.scale}")
    assert done.returncode == 2 and "data.eval_transform without data.transform" in done.stderr, done.stderr
