"""The LightningDataModule: one data set, its parts, and the batches of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from mnist_lab.data.batches import Batches, EpochOrder, WorkerBatches
from mnist_lab.data.dataset_images import DatasetImages
from mnist_lab.data.download import DataUnavailableError
from mnist_lab.data.evaluation import evaluation_transform
from mnist_lab.data.image_set import ImageSet, Source, converted, stratified_part
from mnist_lab.data.sources import mnist_5k
from mnist_lab.errors import UserError
from mnist_lab.files import is_the_users
from mnist_lab.seeds import seed_of
from mnist_lab.words import path_of


class ImageDataModule(L.LightningDataModule):
    """Images held once in memory, as uint8, on the device that trains; every part of the data is a list of positions.

    Args:
        name: the data set asked for, as results call it.
        source: reads it: `source(root, download) -> ImageSet`.
        root: folder with the files; `~` is the user's home.
        shape: (channels, height, width) that the images must have, or are given by `resize` and `channels`.
        num_classes: how many classes they must have.
        batch_size: images a training step, over all processes together.
        eval_batch_size: images a validation or test step.
        val: where validation images come from: "random", "last", "test" or "none".
        val_size: how many for "random" and "last": a number, or a fraction of the training set.
        train_size: trains on that much of what is left, stratified: a number, a fraction, or None for all.
        loader: "memory" cuts batches out of memory; "workers" sends each image through `transform` in other processes.
        workers: how many of those, 0 or more.
        transform: of training images: uint8 (C, H, W) → uint8, which is scaled afterwards, or float32, which is not.
        eval_transform: the same of validation and test images; None: what of `transform` isn't random.
        augment: of training images, a batch at once on the device: called as augment(images, generator).
        scale: "unit" (pixels / 255), "standard" (mean 0 and deviation 1 a channel over the training set) or "none".
        resize: (height, width), or one number for both, to which all images are resized; None: they stay.
        channels: 1 (grey) or 3 (colour), to which all images are converted; None: they stay.
        one_vs_rest: a class to tell from all others (label 1 against 0); None for all classes.
        fallback: "mnist_5k" stands in for data that is neither here nor to be had; None makes that an error.
        split_seed: of the random validation part and the stratified part.
        order_seed: of the training images' order.
        augment_seed: of what `augment` and `transform` draw.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        root: str,
        shape: Sequence[int],
        num_classes: int,
        batch_size: int = 128,
        eval_batch_size: int = 400,
        val: str = "random",
        val_size: int | float = 5000,
        train_size: int | float | None = None,
        loader: str = "memory",
        workers: int = 2,
        transform: Callable[[Tensor], Tensor] | None = None,
        eval_transform: Callable[[Tensor], Tensor] | None = None,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        scale: str = "unit",
        resize: Sequence[int] | int | None = None,
        channels: int | None = None,
        one_vs_rest: int | None = None,
        fallback: str | None = None,
        split_seed: int = 0,
        order_seed: int = 0,
        augment_seed: int = 0,
    ) -> None:
        super().__init__()
        self.data_name = name
        self.source = source
        self.root = path_of(root)
        height, width = (resize, resize) if isinstance(resize, int) else resize or shape[1:]
        self.shape = (channels or shape[0], height, width)
        self.converted = resize is not None or channels is not None
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val = val
        self.val_size = val_size
        self.train_size = train_size
        self.loader = loader
        self.workers = workers
        self.transform = transform
        self.eval_transform = eval_transform
        self.augment = augment
        self.scale = scale
        self.one_vs_rest = one_vs_rest
        self.fallback = fallback
        self.split_seed = split_seed
        self.order_seed = order_seed
        self.augment_seed = augment_seed
        self.images: ImageSet | None = None
        self._ready = False
        self._placed: dict[tuple[str, torch.device], tuple[Tensor | DatasetImages, Tensor]] = {}
        self.make_batches: Callable[..., Batches] = Batches
        """Makes the batches of images in memory; called with the arguments of `Batches`."""
        self.finished = False
        """Whether images come as float32, which nothing scales."""
        self.fallback_reason: str | None = None
        """Why the fallback stands in, or None where the data is what was asked for."""

    def prepare_data(self) -> None:
        """Download missing files and read the images; where Lightning skips this call, `setup` reads them."""
        self.read(download=True)

    def read(self, download: bool) -> None:
        """Read the images, once, or what stands in for them.

        Args:
            download: whether missing files may be downloaded.

        Raises:
            UserError: the data can't be had or read.
        """
        if self.images is None:
            try:
                self.images = self.source(self.root, download)
            except DataUnavailableError as error:
                self._fall_back(error)
            except (OSError, LookupError, TypeError, ValueError) as error:
                own = [frame for frame in extract_tb(error.__traceback__) if is_the_users(frame.filename)]
                if not own:
                    raise
                where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
                raise UserError(f"data.source: {type(error).__name__}: {error} ({where})") from error
            if not isinstance(self.images, ImageSet):
                kind = type(self.images).__name__
                raise UserError(f"data.source gives {kind}, where a mnist_lab.data.ImageSet is needed")
            self.images = self._held(self.images)

    def _held(self, images: ImageSet) -> ImageSet:
        """Read datasets into memory, for loader=memory.

        Raises:
            UserError: a dataset gives other images or labels when it is read again, where they must stay the same.
        """
        train, test = images.train_images, images.test_images
        hints = {
            "train_images": "memory would keep one of them for all epochs. Add data.loader=workers",
            "test_images": "test images must stay the same. Let the test dataset give them without random changes",
        }
        if self.loader == "memory":
            parts = {"train_images": train, "test_images": test}
            read = {part: kept.read(hints[part]) for part, kept in parts.items() if isinstance(kept, DatasetImages)}
            return replace(images, **read)  # type: ignore[arg-type]
        if isinstance(test, DatasetImages):
            test.require_repeatable(range(len(test)), hints["test_images"])
        return images

    def use_fallback(self, reason: str) -> None:
        """Use the fallback data, without looking for the data that was asked for.

        Args:
            reason: why, in words for the user.
        """
        self.fallback_reason = reason
        self.images = mnist_5k(self.root, False)

    def setup(self, stage: str | None = None) -> None:
        """Read the images and divide them, once. Lightning calls this in every process, and before each stage.

        Raises:
            UserError: the data can't be had, is not of the configured shape, or can't be divided as configured.
        """
        if self._ready:
            return
        self.read(download=False)
        images = self.images
        assert images is not None
        if self.converted:
            parts = {part: converted(getattr(images, part), self.shape) for part in ("train_images", "test_images")}
            images = self.images = replace(images, **parts)  # type: ignore[arg-type]
        if tuple(images.train_images.shape[1:]) != self.shape:
            found = list(images.train_images.shape[1:])
            raise UserError(f"{images.name} has images of the shape {found}, and data.shape is {list(self.shape)}")
        if len(images.classes) != self.num_classes:
            raise UserError(
                f"{images.name} has {len(images.classes)} classes, and data.num_classes is {self.num_classes}"
            )
        for labels in (images.train_labels, images.test_labels):
            if len(labels) == 0:
                raise UserError(f"{images.name} has no {'test' if labels is images.test_labels else 'training'} images")
            if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise UserError(
                    f"{images.name} has labels from {int(labels.min())} to {int(labels.max())}, not 0 to "
                    f"{self.num_classes - 1}"
                )
        self.train_index, self.val_index = self._divide(images.train_labels)
        self.shift, self.divisor = self._scaling(images.train_images)
        self.finished = images.train_images[0].is_floating_point()
        if self.finished != images.test_images[0].is_floating_point():
            kinds = [images.train_images[0].dtype, images.test_images[0].dtype]
            raise UserError(f"{images.name} has {kinds[0]} training and {kinds[1]} test images: their scales differ")
        if isinstance(images.train_images, DatasetImages) and self.val in ("random", "last"):
            images.train_images.require_repeatable(
                self.val_index.tolist(),
                f"data.val={self.val} would validate on them. Use data.val=test or none; or data.transform, which only "
                "training images go through, for what is random",
            )
        self._ready = True

    @cached_property
    def evaluation(self) -> Callable[[Tensor], Tensor] | None:
        """Transform of validation and test images before they are scaled; None: there is none.

        Raises:
            UserError: that can't be told, see `mnist_lab.data.evaluation.evaluation_transform`.
        """
        return evaluation_transform(self.transform, self.eval_transform, self.shape, self.finished)

    @property
    def stand_in(self) -> str | None:
        """Note for the result where fallback data was used; None where the data is what was asked for."""
        if self.fallback_reason is None:
            return None
        assert self.images is not None
        return (
            f"NOT {self.data_name.upper()}: {self.images.name} stands in for it, with {len(self.train_index):,} "
            f"training and {len(self.images.test_labels):,} test images. {self.fallback_reason}."
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names in the order of the labels that batches carry."""
        assert self.images is not None
        if self.one_vs_rest is None:
            return self.images.classes
        name = self.images.classes[self.one_vs_rest]
        return (f"not {name}", name)

    @property
    def val_count(self) -> int:
        """Number of validation images."""
        assert self.images is not None
        return len(self.images.test_labels) if self.val == "test" else len(self.val_index)

    def train_dataloader(self) -> Batches:
        """Shuffled batches of the training part; the same ones each epoch where the Trainer is to overfit a few."""
        fixed = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        order = EpochOrder(self.train_index, self.order_seed, fixed)
        return self._batches("train", order, self.batch_size)

    def val_dataloader(self, whole: bool = False) -> Batches | list[Batches]:
        """Return batches of the validation part, in order; an empty list where there is none.

        Args:
            whole: all images in every process, instead of a share for each, one mini-batch at a time.
        """
        if self.val == "test":
            return self.test_dataloader(whole)
        if self.val == "none":
            return []
        order = EpochOrder(self.val_index, None)
        return self._batches("train", order, self.eval_batch_size, whole)

    def test_dataloader(self, whole: bool = False) -> Batches:
        """Return batches of the test set, in order.

        Args:
            whole: all images in every process, instead of a share for each, one mini-batch at a time.
        """
        assert self.images is not None
        order = EpochOrder(torch.arange(len(self.images.test_labels)), None)
        return self._batches("test", order, self.eval_batch_size, whole)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs for its network to be used without the training data, or trained further."""
        assert self.images is not None
        return {
            "digest": self.images.digest,
            "fallback": self.fallback_reason,
            "finished": self.finished,
            "shape": list(self.shape),
            "class_names": list(self.class_names),
            "shift": self.shift,
            "divisor": self.divisor,
        }

    def _batches(
        self, part: Literal["train", "test"], order: EpochOrder, batch_size: int, whole: bool = False
    ) -> Batches:
        device, rank, world_size = torch.device("cpu"), 0, 1
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            if not whole:
                rank, world_size = self.trainer.global_rank, self.trainer.world_size
        training = order.seed is not None
        augment = self.augment if training else None
        by_workers = self.loader == "workers" and training
        images, labels = self._place(part, torch.device("cpu") if by_workers else device)
        if not training and self.evaluation is not None and not isinstance(images, DatasetImages):
            images, labels = self._evaluated(part, order.index, device)
            order = EpochOrder(torch.arange(len(labels)), None)
        how = (order, batch_size, self.shift, self.divisor, device, augment, self.augment_seed)
        if by_workers or isinstance(images, DatasetImages):
            transform = self.transform if training else self.evaluation
            return WorkerBatches(images, labels, *how, rank, world_size, transform=transform, workers=self.workers)
        return (Batches if whole else self.make_batches)(images, labels, *how, rank, world_size)

    def _place(self, part: Literal["train", "test"], device: torch.device) -> tuple[Tensor | DatasetImages, Tensor]:
        """Return images and labels of a part on a device; they are moved there once, for all loaders.

        Where more than half of a GPU's free memory would be taken they stay on the host, and batches are streamed.
        """
        if (part, device) not in self._placed:
            found = self.images
            assert found is not None
            images, labels = (
                (found.train_images, found.train_labels) if part == "train" else (found.test_images, found.test_labels)
            )
            if self.one_vs_rest is not None:
                labels = (labels == self.one_vs_rest).long()
            if isinstance(images, DatasetImages):
                pass  # its own processes read it
            elif device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
                images, labels = images.to(device), labels.to(device)
            self._placed[part, device] = (images, labels)
        return self._placed[part, device]

    def _evaluated(self, part: Literal["train", "test"], index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images, transformed once by `evaluation`, and labels at some positions of a part, on a device."""
        key = f"evaluated {part}", device
        if key not in self._placed:
            images, labels = self._place(part, torch.device("cpu"))
            assert self.evaluation is not None
            found = torch.stack([self.evaluation(images[n]) for n in index.tolist()])
            self._placed[key] = found.to(device), labels[index].to(device)
        evaluated, labels = self._placed[key]
        assert isinstance(evaluated, Tensor)
        return evaluated, labels

    def _fall_back(self, error: DataUnavailableError) -> None:
        if self.fallback is None:
            raise UserError(
                f"{error}.\nThree ways out: put the files there; point data.root=DIR or MNIST_LAB_DATA to a "
                "folder that has them; or train on the 5,000 digits that are always here, with data=mnist_5k"
            ) from error
        self.use_fallback(str(error))

    def _divide(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of the training and the validation images: two disjoint int64 tensors."""
        total = len(labels)
        generator = torch.Generator().manual_seed(seed_of("split", self.split_seed))
        held_out = 0
        if self.val in ("random", "last"):
            held_out = self.val_size if isinstance(self.val_size, int) else round(self.val_size * total)
            if self.fallback_reason is not None and isinstance(self.val_size, int):
                held_out = total // 8  # the number was meant for a data set many times as large
            if not 0 < held_out < total:
                raise UserError(
                    f"data.val_size={self.val_size} is not allowed: of {total:,} training images at least one must be "
                    "left to train on, and one to validate on"
                )
        order = torch.randperm(total, generator=generator) if self.val == "random" else torch.arange(total)
        train, val = order[: total - held_out].sort().values, order[total - held_out :].sort().values
        if self.train_size is not None:
            size = self.train_size if isinstance(self.train_size, int) else round(self.train_size * len(train))
            if not 0 < size <= len(train):
                rest = f" after {held_out:,} were set aside for validation" if held_out else ""
                rest += f", of mnist_5k: {self.fallback_reason}" if self.fallback_reason else ""
                raise UserError(
                    f"data.train_size={self.train_size} is not allowed: there are {len(train):,} images{rest}"
                )
            train = train[stratified_part(labels[train], size, generator)]
        return train, val

    def _scaling(self, images: Tensor | DatasetImages) -> tuple[Tensor, Tensor]:
        """Return shift and divisor of pixel values: float32 (C, 1, 1) each."""
        channels = images.shape[1]
        if self.scale == "none":
            return torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1)
        if self.scale == "unit":
            return torch.zeros(channels, 1, 1), torch.full((channels, 1, 1), 255.0)
        if isinstance(images, DatasetImages):
            raise UserError("data.scale=standard needs all images at once: data.loader=memory, or data.scale=unit")
        values = torch.arange(256, dtype=torch.float64)
        mean, std = torch.empty(channels, 1, 1), torch.empty(channels, 1, 1)
        for c in range(channels):
            counts = torch.bincount(images[self.train_index, c].flatten(), minlength=256).double()
            average = (counts * values).sum() / counts.sum()
            spread = ((counts * (values - average) ** 2).sum() / counts.sum()).sqrt()
            mean[c], std[c] = average, spread if spread > 0 else 1.0
        return mean, std
