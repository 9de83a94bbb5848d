"""Augmentation: each training image its own way, by the seed and the epoch; images that are tested stay as they are."""

import math
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from mnist_lab.data import Augment, Batches, EpochOrder, ImageDataModule, ImageSet, from_datasets, mnist_5k
from mnist_lab.fast.chunks import Chunks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dot(x: float, y: float, height: int = 41, width: int = 41, n: int = 64) -> Tensor:
    """n images of a soft dot around (x, y), pixels from the middle of the image."""
    ys = torch.arange(height)[:, None] - (height - 1) / 2 - y
    xs = torch.arange(width) - (width - 1) / 2 - x
    return torch.exp(-(ys**2 + xs**2) / 8).expand(n, 1, height, width)


def middle(images: Tensor) -> Tensor:
    """Where the mass of each image is: (n, 2), x and y in pixels from the middle of the image."""
    height, width = images.shape[2:]
    mass = images.sum((1, 2, 3))
    x = (images.sum((1, 2)) * (torch.arange(width) - (width - 1) / 2)).sum(1) / mass
    y = (images.sum((1, 3)) * (torch.arange(height) - (height - 1) / 2)).sum(1) / mass
    return torch.stack([x, y], 1)


def test_augmentation_without_amounts_changes_nothing() -> None:
    images = torch.rand(5, 3, 8, 9)
    assert torch.equal(Augment()(images, generator()), images)


@given(st.integers(0, 2**31))
def test_each_image_is_augmented_in_its_own_way_by_the_seed(seed: int) -> None:
    images = dot(3, 2, n=8)
    full = Augment(shift=2, rotate=10, scale=0.1, elastic=1, erase=0.5)
    first, again, other = (full(images, generator(s)) for s in (seed, seed, seed + 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 8
    assert first.shape == images.shape and first.dtype == torch.float32


@given(shift=st.floats(0.5, 8), height=st.integers(35, 45), width=st.integers(35, 45), seed=st.integers(0, 2**31))
def test_a_shift_is_in_pixels_and_at_most_as_configured(shift: float, height: int, width: int, seed: int) -> None:
    moved = middle(Augment(shift=shift)(dot(0, 0, height, width), generator(seed)))
    assert moved.abs().max() <= shift + 0.05
    assert moved.abs().max() > shift / 2 and moved.min() < 0 < moved.max()
    assert abs(float(torch.corrcoef(moved.T)[0, 1])) < 0.7, "each axis for itself"


@given(degrees=st.floats(5, 180), height=st.integers(35, 60), width=st.integers(35, 60), seed=st.integers(0, 2**31))
def test_a_rotation_is_in_degrees_about_the_centre(degrees: float, height: int, width: int, seed: int) -> None:
    turned = middle(Augment(rotate=degrees)(dot(9, 0, height, width), generator(seed)))
    torch.testing.assert_close(turned.norm(dim=1), torch.full((64,), 9.0), atol=0.1, rtol=0)
    angles = torch.atan2(turned[:, 1], turned[:, 0]).abs() * 180 / math.pi
    assert angles.max() <= degrees + 0.5 and angles.max() > degrees / 2


@given(scale=st.floats(0.1, 0.4), seed=st.integers(0, 2**31))
def test_a_scale_change_is_a_fraction(scale: float, seed: int) -> None:
    sizes = (Augment(scale=scale)(dot(0, 0), generator(seed)).sum((1, 2, 3)) / dot(0, 0).sum((1, 2, 3))).sqrt()
    assert 1 - scale - 0.02 <= sizes.min() < 1 < sizes.max() <= 1 + scale + 0.02


def test_elastic_deformation_has_its_standard_deviation_in_pixels() -> None:
    ramp = torch.arange(28.0).expand(2000, 1, 28, 28)
    inside = (Augment(elastic=0.5)(ramp, generator()) - ramp)[:, :, 8:20, 8:20]
    at_points = inside.std(0).max()  # between the points of the grid it is less, down to a half of the variance a side
    assert 0.4 < at_points < 0.55 and abs(float(inside.mean())) < 0.02


@settings(max_examples=20)
@given(erase=st.floats(0.1, 1.0), seed=st.integers(0, 2**31))
def test_a_rectangle_is_erased_with_its_probability(erase: float, seed: int) -> None:
    erased = Augment(erase=erase)(torch.ones(600, 2, 40, 60), generator(seed)) == 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    share = erased.flatten(1).any(1).double().mean()
    assert abs(float(share) - erase) < 5 * math.sqrt(0.25 / 600)
    rows, columns = erased[:, 0].any(2).sum(1), erased[:, 0].any(1).sum(1)
    assert 10 < rows.max() <= 17 and 15 < columns.max() <= 25, "up to four tenths"
    assert torch.equal(erased[:, 0].sum((1, 2)), rows * columns), "a rectangle"


def module(**options: Any) -> ImageDataModule:
    data = ImageDataModule("mnist_5k", mnist_5k, "/", (1, 28, 28), 10, val_size=500, **options)
    data.prepare_data()
    data.setup()
    return data


def pixels(batches: Any) -> Tensor:
    chunked = isinstance(batches, Chunks)
    pairs = (pair for chunk in batches for pair in chunk.mini_batches()) if chunked else batches
    return torch.cat([images for images, _ in pairs])


def test_training_images_are_augmented_anew_each_epoch_and_others_never() -> None:
    plain, changed = module(), module(augment=Augment(shift=2))
    train, again = changed.train_dataloader(), module(augment=Augment(shift=2)).train_dataloader()
    assert not torch.equal(pixels(train), pixels(plain.train_dataloader()))
    assert torch.equal(pixels(train), pixels(again)), "of the same seed and epoch"
    first = {tuple(image.flatten().tolist()) for image in pixels(train)}
    train.sampler.set_epoch(1)
    assert len(first & {tuple(image.flatten().tolist()) for image in pixels(train)}) < 50
    for part in ("val_dataloader", "test_dataloader"):
        assert torch.equal(pixels(getattr(changed, part)()), pixels(getattr(plain, part)()))


def test_an_image_is_augmented_anew_in_each_mini_batch_and_process() -> None:
    images = torch.rand(1, 1, 28, 28).mul(255).byte().expand(8, 1, 28, 28).contiguous()
    zero, one, found = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), []
    for rank in range(2):
        order = EpochOrder(torch.arange(8), 0)
        how: dict[str, Any] = {"augment": Augment(shift=2), "rank": rank, "world_size": 2}
        share = Batches(images, torch.zeros(8).long(), order, 4, zero, one, **how)
        found += [tuple(image.flatten().tolist()) for image in pixels(share)]
    assert len(found) == len(set(found)) == 8


def test_a_chunk_has_the_same_augmented_mini_batches() -> None:
    one, several = module(augment=Augment(shift=2)), module(augment=Augment(shift=2))
    several.make_batches = partial(Chunks, images_at_once=1000)
    assert len(several.train_dataloader()) == 4 and len(one.train_dataloader()) == 28
    assert torch.equal(pixels(one.train_dataloader()), pixels(several.train_dataloader()))


def halve(image: Tensor) -> Tensor:
    return image // 2


def to_float(image: Tensor) -> Tensor:
    return image.float() + 1000


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_load_the_same_images_in_the_same_order(workers: int) -> None:
    memory = module()
    loaded = module(loader="workers", workers=workers).train_dataloader()
    torch.testing.assert_close(pixels(loaded), pixels(memory.train_dataloader()), rtol=0, atol=0)
    loaded.sampler.set_epoch(1)
    again = memory.train_dataloader()
    again.sampler.set_epoch(1)
    torch.testing.assert_close(pixels(loaded), pixels(again), rtol=0, atol=0)


def test_workers_start_where_joblib_has_set_a_start_method_of_its_own() -> None:
    pytest.importorskip("joblib.externals.loky")
    multiprocessing.set_start_method("loky", force=True)  # as in each process of hydra/launcher=joblib
    try:
        loaded = pixels(module(loader="workers", workers=1).train_dataloader())
    finally:
        multiprocessing.set_start_method(None, force=True)
    torch.testing.assert_close(loaded, pixels(module().train_dataloader()), rtol=0, atol=0)


def noise(image: Tensor) -> Tensor:
    return image + torch.rand(())


@pytest.mark.slow
def test_random_numbers_of_a_transform_depend_on_the_seed_and_the_epoch() -> None:
    first = module(loader="workers", workers=2, transform=noise).train_dataloader()
    one = pixels(first)
    assert torch.equal(pixels(first), one)
    first.sampler.set_epoch(1)
    assert not torch.equal(pixels(first), one)


def test_without_workers_a_transform_has_its_own_random_numbers() -> None:
    options: dict[str, Any] = {"loader": "workers", "workers": 0, "transform": noise, "batch_size": 1000}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = pixels(module(**options).train_dataloader())
    assert torch.equal(torch.get_rng_state(), before), "the network's chance is where it was"
    torch.manual_seed(1)
    resumed = module(**options).train_dataloader()
    assert torch.equal(pixels(resumed), one)
    resumed.load_state_dict({"mini_batches": 2})
    assert torch.equal(pixels(resumed), one[2000:]), "from the middle of an epoch"
    assert not torch.equal(pixels(module(**options, augment_seed=1).train_dataloader()), one)


def test_a_transform_and_the_augmentation_share_no_random_numbers() -> None:
    drawn: dict[str, torch.Tensor] = {}

    def transform(image: torch.Tensor) -> torch.Tensor:
        drawn.setdefault("transform", torch.rand(4))
        return image

    def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn.setdefault("augment", torch.rand(4, generator=generator))
        return images

    pixels(module(loader="workers", workers=0, transform=transform, augment=augment).train_dataloader())
    assert not torch.isclose(drawn["transform"], drawn["augment"]).any()


@pytest.mark.parametrize("augment", [Augment(shift=2, rotate=20, scale=0.1), Augment(elastic=1), Augment(erase=1)])
def test_augmentation_is_the_same_in_every_precision(augment: Augment) -> None:
    images = torch.rand(20, 1, 100, 100)
    changed = augment(images, generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, generator()), changed)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            assert torch.equal(augment(images, generator()), changed)
        finally:
            torch.set_default_dtype(torch.float32)


def test_uint8_from_a_transform_is_scaled_and_float_is_not() -> None:
    bright = pixels(module(loader="workers", workers=0, transform=halve).train_dataloader())
    assert bright.max() == 127 / 255
    floats = pixels(module(loader="workers", workers=0, transform=to_float).train_dataloader())
    assert floats.min() == 1000 and floats.max() == 1255


class Grey(torch.utils.data.Dataset[Any]):
    targets = (0, 1) * 20

    def __len__(self) -> int:
        return 40

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return torch.full((1, 4, 4), 200, dtype=torch.uint8), position % 2


@pytest.mark.parametrize(
    ("transform", "expected"), [(halve, [100, 100, 100]), (v2.RandomInvert(0.999_999), [55, 200, 200])]
)
def test_all_images_are_prepared_and_only_training_images_augmented(transform: Any, expected: list[int]) -> None:
    source = partial(from_datasets, train=Grey(), test=Grey(), classes=2)
    how: dict[str, Any] = {"loader": "workers", "workers": 0, "transform": transform}
    data = ImageDataModule("grey", source, "/", (1, 4, 4), 2, val_size=10, **how)
    data.setup()
    parts = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert [round(float(pixels(part).max()) * 255) for part in parts] == expected


def test_augmentation_needs_no_more_memory_than_images_and_a_batch(tmp_path: Path) -> None:
    """Whatever the number of images, an epoch of batches makes nothing of their size."""
    for n in (2_000, 20_000):
        images = torch.zeros(n, 1, 28, 28, dtype=torch.uint8)
        labels = torch.zeros(n, dtype=torch.int64)

        def source(root: Path, download: bool, images: Tensor = images, labels: Tensor = labels) -> ImageSet:
            return ImageSet("many", images, labels, images[:10], labels[:10], ("a", "b"), {})

        data = ImageDataModule("many", source, "/", (1, 28, 28), 2, val="none")
        data.make_batches = partial(Chunks, images_at_once=1024)
        data.prepare_data()
        data.setup()
        batches = data.train_dataloader()
        assert isinstance(batches, Batches) and batches.images.data_ptr() == images.data_ptr()
        assert max(batch.pixels.nbytes for batch in batches) == 1024 * 784
