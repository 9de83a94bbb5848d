"""The parts of the data, the order of its batches, and what becomes of pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import in_memory
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mnist_lab.data import Batches, EpochOrder, ImageDataModule, ImageSet
from mnist_lab.data.image_set import stratified_part
from mnist_lab.errors import UserError
from mnist_lab.fast.chunks import Chunks


def small(root: Path, download: bool) -> ImageSet:
    """120 images of 3 classes in the ratio 3:2:1, each pixel with the image's number, and 30 test images."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2] * 20)
    images = torch.arange(120, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return ImageSet("small", images, labels, images[:30] + 130, labels[:30], ("a", "b", "c"), {})


def module(**options: Any) -> ImageDataModule:
    data = ImageDataModule("small", small, "/", (1, 2, 2), 3, **{"batch_size": 32, "val_size": 20, **options})
    data.prepare_data()
    data.setup()
    return data


def numbers(batches: Any) -> list[int]:
    return [round(float(image[0, 0, 0]) * 255) for images, _ in batches for image in images]


@given(
    n=st.integers(1, 200),
    batch_size=st.integers(1, 80),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    world_size=st.integers(1, 4),
)
def test_an_epoch_visits_each_image_once_over_all_processes(
    n: int, batch_size: int, seed: int, epoch: int, world_size: int
) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        order = EpochOrder(torch.arange(n), seed)
        order.set_epoch(epoch)
        zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        images = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
        batches = Batches(images, torch.arange(n), order, batch_size, zero, one, rank=rank, world_size=world_size)
        found = [labels for _, labels in batches]
        assert len(found) == len(batches) == -(-n // batch_size)
        seen += [int(i) for labels in found for i in labels]
    assert sorted(seen) == list(range(n))


@given(
    index=st.lists(st.integers(0, 59), max_size=60)
    | st.builds(lambda a, n: [*range(a, a + n)], *[st.integers(0, 30)] * 2),
    batch_size=st.integers(1, 80),
    steps=st.integers(1, 5),
    given=st.integers(0, 3),
)
def test_batches_follow_the_order_and_copy_no_consecutive_images(
    index: list[int], batch_size: int, steps: int, given: int
) -> None:
    images, labels = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(60)
    order, zero = EpochOrder(torch.tensor(index, dtype=torch.int64), None), torch.zeros(1, 1, 1)
    left = index[given * batch_size :]
    pairs = Batches(images, labels, order, batch_size, zero, zero + 1)
    chunks = Chunks(images, labels, order, batch_size, zero, zero + 1, images_at_once=steps * batch_size)
    for batches in (pairs, chunks):
        batches.load_state_dict({"mini_batches": given})
    found = list(chunks)
    assert [int(i) for _, part in pairs for i in part] == left
    assert [int(i) for batch in found for i in batch.labels] == left
    assert [int(i) for batch in found for images, _ in batch.mini_batches() for i in images] == left
    assert [batch.first for batch in found] == [*range(given, -(-len(index) // batch_size), chunks.steps)]
    if left and left == [*range(left[0], left[0] + len(left))] and len(left) == len(index):
        assert found[0].pixels.data_ptr() == images[left[0]].data_ptr()


def test_the_order_depends_on_the_seed_and_the_epoch_alone() -> None:
    def order(seed: int, epoch: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        it = EpochOrder(torch.arange(1000), seed)
        it.set_epoch(epoch)
        return it()

    assert torch.equal(order(0, 0, noise=1), order(0, 0, noise=2))
    assert not torch.equal(order(0, 0, 1), order(0, 1, 1))
    assert not torch.equal(order(0, 1, 1), order(1, 0, 1))


def test_lightning_gives_each_epoch_its_own_order() -> None:
    import lightning as L

    class Seen(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.epochs: list[list[int]] = [[], []]

        def training_step(self, batch: list[Tensor]) -> Tensor:
            images, _ = batch
            self.epochs[self.current_epoch] += [round(v * 255) for v in images[:, 0, 0, 0].tolist()]
            loss: Tensor = self.layer(images[:, 0, 0]).sum()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    seen = Seen()
    seen.layer = torch.nn.Linear(2, 1)
    trainer = L.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(seen, datamodule=module(val="none"))
    assert sorted(seen.epochs[0]) == sorted(seen.epochs[1]) == list(range(120))
    assert seen.epochs[0] != seen.epochs[1]


def test_random_validation_images_are_seeded_and_not_trained_on() -> None:
    one, again, other = module(), module(), module(split_seed=1)
    assert torch.equal(one.val_index, again.val_index)
    assert not torch.equal(one.val_index, other.val_index)
    assert sorted([*one.train_index.tolist(), *one.val_index.tolist()]) == list(range(120))
    assert one.val_count == 20


def test_val_last_validates_on_the_last_images() -> None:
    data = module(val="last", val_size=0.1)
    assert data.val_index.tolist() == list(range(108, 120))
    assert data.train_index.tolist() == list(range(108))
    assert numbers(data.val_dataloader()) == list(range(108, 120))


def test_val_may_be_the_test_set_or_none() -> None:
    assert numbers(module(val="test").val_dataloader()) == list(range(130, 160))
    assert module(val="none").val_dataloader() == []
    assert len(module(val="none").train_index) == 120


@given(size=st.integers(0, 120), seed=st.integers(0, 2**32 - 1))
def test_a_stratified_split_keeps_the_share_of_each_class(size: int, seed: int) -> None:
    labels = small(Path(), False).train_labels
    chosen = stratified_part(labels, size, torch.Generator().manual_seed(seed))
    assert len(set(chosen.tolist())) == size
    counts = torch.bincount(labels[chosen], minlength=3)
    assert all(abs(int(c) - size * share) <= 1 for c, share in zip(counts, (1 / 2, 1 / 3, 1 / 6), strict=True))


def test_train_size_is_a_number_or_a_fraction_of_the_images_left_by_validation() -> None:
    assert len(module(train_size=60).train_index) == 60
    assert len(module(train_size=0.5).train_index) == 50
    assert len(module(train_size=1.0).train_index) == 100
    with pytest.raises(UserError, match="there are 100 images after 20 were set aside"):
        module(train_size=101)
    with pytest.raises(UserError, match="at least one must be left"):
        module(val_size=120)


def test_train_size_keeps_a_random_share_of_each_class() -> None:
    kept, again, other = (module(val="none", train_size=60, split_seed=seed) for seed in (0, 0, 1))
    assert kept.images is not None
    assert torch.bincount(kept.images.train_labels[kept.train_index]).tolist() == [30, 20, 10]
    assert torch.equal(kept.train_index, again.train_index) and not torch.equal(kept.train_index, other.train_index)
    assert kept.train_index.max() > 60, "not the first ones"


def test_each_scale_gives_the_documented_range() -> None:
    unit, _ = next(iter(module(val="none").train_dataloader()))
    assert unit.dtype == torch.float32 and unit.max() <= 119 / 255
    raw = torch.cat([images for images, _ in list(module(val="none", scale="none").train_dataloader())])
    assert raw.max() == 119 and raw.min() == 0
    standard = torch.cat([images for images, _ in list(module(val="none", scale="standard").train_dataloader())])
    assert abs(float(standard.mean())) < 1e-6 and abs(float(standard.std(correction=0)) - 1) < 1e-6
    validated = module(val="last", scale="standard")  # by the pixels of what trains alone: 0 to 99
    assert (validated.shift.item(), validated.divisor.item()) == pytest.approx((49.5, (9999 / 12) ** 0.5))


@given(st.integers(0, 255))
def test_unit_scale_is_pixels_divided_by_255_to_the_last_bit(value: int) -> None:
    images = torch.full((1, 1, 1, 1), value, dtype=torch.uint8)
    order = EpochOrder(torch.arange(1), None)
    batches = Batches(images, torch.zeros(1).long(), order, 1, torch.zeros(1, 1, 1), torch.full((1, 1, 1), 255.0))
    ((scaled, _),) = batches
    assert scaled.item() == (torch.tensor(float(value)) / 255).item()


def test_one_vs_rest_gives_two_classes() -> None:
    data = module(one_vs_rest=2, val="none")
    assert data.class_names == ("not c", "c")
    assert sum(int(labels.sum()) for _, labels in data.train_dataloader()) == 20


def test_images_are_in_memory_once_as_bytes() -> None:
    data = module()
    batches = data.train_dataloader()
    assert data.images is not None
    assert batches.images.data_ptr() == in_memory(data.images.train_images).data_ptr()
    assert batches.images.dtype == torch.uint8
    validation = data.val_dataloader()
    assert isinstance(validation, Batches) and validation.images is batches.images
