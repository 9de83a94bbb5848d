"""Of a PyTorch dataset counts what `__getitem__` returns, each time; what changes where it must not is refused."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import in_memory
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import datasets

from mnist_lab.data import ImageDataModule, from_datasets
from mnist_lab.data.dataset_images import WITH_TARGETS, DatasetImages
from mnist_lab.errors import UserError

N = 60


class Digits(Dataset[Any]):
    """Images that show their position, with all attributes by which labels could be guessed."""

    def __init__(self, answer: Callable[[int], Any] = lambda n: (n + 3) % 10) -> None:
        self.targets = self.labels = [n % 10 for n in range(N)]
        self.answer = answer

    def __len__(self) -> int:
        return N

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        if position >= N:
            raise IndexError(position)
        return torch.full((1, 4, 4), position, dtype=torch.uint8), self.answer(position)


class Wrapper(Dataset[Any]):
    """Passes attributes on, as wrappers do, and answers with other labels."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image, label = self.inner[position]
        return image, (label + 1) % 10


class Shifted(datasets.FakeData):  # type: ignore[misc]
    """torchvision's, with another `__getitem__`."""

    targets = (0,) * N

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.full((1, 4, 4), index, dtype=torch.uint8), (index + 3) % 10


PAIRS = {
    "targets and labels": Digits(),
    "a wrapper": Wrapper(Digits()),
    "a subset": Subset(Digits(), list(range(0, N, 7))),
    "several": ConcatDataset([Digits(), Digits(lambda n: n % 7)]),
    "tensors": TensorDataset(torch.zeros(N, 1, 4, 4, dtype=torch.uint8), torch.arange(N) % 9),
    "NumPy's numbers": Digits(lambda n: np.int32(n % 8)),
    "tensors of one number": Digits(lambda n: torch.tensor(n % 8)),
    "whole floats": Digits(lambda n: float(n % 8)),
    "a subclass of torchvision's": Shifted(N),
}


@pytest.mark.parametrize("loader", ["memory", "workers"])
@pytest.mark.parametrize("name", PAIRS)
def test_labels_are_those_that_the_dataset_returns(name: str, loader: str) -> None:
    pairs: Any = PAIRS[name]
    expected = [(int(pairs[n][0].max()), int(pairs[n][1])) for n in range(len(pairs))]
    data = module(pairs, loader, val="none")
    found = [
        (int(image.max() * 255 + 0.5), int(label))
        for images, labels in data.train_dataloader()
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(found) == sorted(expected)
    assert data.images is not None and data.images.test_labels.tolist() == [label for _, label in expected]


def module(train: Any, loader: str, test: Any = None, **options: Any) -> ImageDataModule:
    source = partial(from_datasets, train=train, test=test or train, classes=10)
    data = ImageDataModule("own", source, "/", (1, 4, 4), 10, loader=loader, workers=0, **options)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("label", ["3", 0.5, torch.tensor([0, 1]), None], ids=str)
def test_a_label_that_is_no_whole_number_is_refused(label: Any) -> None:
    with pytest.raises(UserError, match=r"Digits is no dataset of .image, label. by position"):
        from_datasets(Path(), False, Digits(lambda n: label), Digits(), 10)


@pytest.mark.parametrize("kind", WITH_TARGETS)
def test_labels_read_from_an_attribute_are_those_that_torchvision_returns(kind: Any) -> None:
    dataset = object.__new__(kind)
    dataset.data = np.zeros((4, 32, 32, 3), np.uint8) if "CIFAR" in kind.__name__ else torch.zeros(4, 28, 28).byte()
    dataset.targets, dataset.transform, dataset.target_transform = [3, 1, 2, 0], None, None
    assert DatasetImages(dataset).labels.tolist() == [dataset[n][1] for n in range(4)] == [3, 1, 2, 0]
    dataset.target_transform = lambda label: label + 4
    assert DatasetImages(dataset).labels.tolist() == [7, 5, 6, 4]


def noisy(answer: Callable[[], float]) -> Callable[[int], int]:
    """Labels of which about a tenth is another one each time."""
    return lambda n: 9 if answer() < 0.1 else n % 9


CHANCES: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "numpy": np.random.rand,
    "random": random.random,
    "of its own": np.random.default_rng(0).random,
}


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("loader", ["memory", "workers"])
def test_labels_that_change_when_they_are_read_again_are_refused(chance: str, loader: str) -> None:
    with pytest.raises(UserError, match=r"Digits gives item \d+ the label \d, and the label \d when it is read again"):
        list(module(Digits(noisy(CHANCES[chance])), loader, Digits(), val="none").train_dataloader())


class Changing(Digits):
    """Every tenth image is another one each time."""

    def __init__(self, chance: Callable[[], float]) -> None:
        super().__init__()
        self.chance = chance

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        image, label = super().__getitem__(position)
        return (image + int(99 * self.chance()) if position % 10 == 9 else image), label


@pytest.mark.parametrize("chance", CHANCES)
def test_augmentation_in_a_dataset_is_not_frozen_in_memory(chance: str) -> None:
    with pytest.raises(UserError, match=r"Changing gives another image each time .* Add data.loader=workers"):
        module(Changing(CHANCES[chance]), "memory", Digits())
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    data = module(Changing(CHANCES[chance]), "workers", Digits(), val="test")
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[2]
    assert np.random.get_state()[1].tolist() == state[1]  # type: ignore[index]
    assert len(data.train_index) == N


@pytest.mark.parametrize("loader", ["memory", "workers"])
def test_augmentation_in_a_dataset_is_not_applied_to_test_and_validation(loader: str) -> None:
    with pytest.raises(UserError, match=r"Changing gives another image each time .* test images must stay the same"):
        module(Digits(), loader, Changing(CHANCES["torch"]))
    if loader == "workers":
        for val in ("random", "last"):
            with pytest.raises(UserError, match=f"Changing .*: data.val={val} would validate on them"):
                module(Changing(CHANCES["torch"]), loader, Digits(), val=val, val_size=40)


def test_a_random_transform_of_a_torchvision_dataset_is_detected() -> None:
    dataset = object.__new__(datasets.MNIST)
    dataset.data, dataset.targets = torch.arange(16, dtype=torch.uint8).repeat(N, 1).view(N, 4, 4), torch.arange(N) % 10
    dataset.transform = dataset.target_transform = None
    assert in_memory(module(dataset, "memory", val_size=10).images.train_images).shape == (N, 1, 4, 4)  # type: ignore[union-attr]
    dataset.transform = lambda image: image.rotate(int(4 * torch.rand(())) * 90)
    with pytest.raises(UserError, match="MNIST gives another image each time that an item is read"):
        module(dataset, "memory", val_size=10)


def test_float_training_images_and_uint8_test_images_are_refused() -> None:
    class Finished(Digits):
        def __getitem__(self, position: int) -> tuple[Tensor, Any]:
            image, label = super().__getitem__(position)
            return image / 255, label

    with pytest.raises(UserError, match=r"Finished has torch.float32 training and torch.uint8 test images"):
        module(Finished(), "workers", Digits(), val="none")
