"""From uint8 images in memory to float batches on the device."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_start_method
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mnist_lab.data.dataset_images import DatasetImages
from mnist_lab.processes import end_with
from mnist_lab.seeds import seed_of


class EpochOrder:
    """The order in which an epoch visits its images: it depends on the seed and the epoch, and on nothing else.

    Lightning finds it as the `sampler` of what it iterates over, and calls `set_epoch` before each epoch.

    Args:
        index: int64 (N,), positions of the images to visit.
        seed: of the shuffling; None keeps the order of `index`.
        fixed: whether all epochs are as the first.
    """

    def __init__(self, index: Tensor, seed: int | None, fixed: bool = False) -> None:
        self.index = index
        self.seed = seed
        self.fixed = fixed
        self.epoch = 0
        self.in_a_row = seed is None and len(index) > 0 and bool((index.diff() == 1).all())
        """Whether each position is the one before plus 1."""
        self._made: tuple[int, Tensor] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, whose order is asked for."""
        self.epoch = 0 if self.fixed else epoch

    def __call__(self) -> Tensor:
        """Return the positions in the order of the epoch: int64 (N,)."""
        if self.seed is None:
            return self.index
        if self._made is None or self._made[0] != self.epoch:
            generator = torch.Generator().manual_seed(seed_of("order", self.seed, self.epoch))
            self._made = self.epoch, self.index[torch.randperm(len(self.index), generator=generator)]
        return self._made[1]


class Batches:
    """An epoch of mini-batches, cut by index out of images in memory.

    Iterating yields `(images, labels)`: float32 (b, C, H, W) and int64 (b,), on the device. The last mini-batch holds
    the images that are left. Process `rank` of `world_size` gets its share of each, so `batch_size` counts the images
    of all processes together.

    Args:
        images: uint8 (N, C, H, W), on the device that computes; or on the host, and streamed to it.
        labels: int64 (N,), beside the images.
        order: which of them, in which order.
        batch_size: images a mini-batch, 1 or more.
        shift: float32 (C, 1, 1), subtracted from pixel values.
        divisor: float32 (C, 1, 1), divides what remains.
        device: the device that computes; None: where the images are.
        augment: changes float32 images at random, called as augment(images, generator); None: nothing does.
        augment_seed: of what it draws.
        rank: this process's number, from 0.
        world_size: how many processes share each mini-batch.
    """

    batch_sampler = None  # Lightning looks for `sampler` and this, as a DataLoader has them
    steps = 1
    """Mini-batches for each item that is yielded."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        order: EpochOrder,
        batch_size: int,
        shift: Tensor,
        divisor: Tensor,
        device: torch.device | None = None,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        augment_seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.labels = labels
        self.sampler = order
        self.batch_size = batch_size
        self.device = device or images.device
        self.shift = _operand(shift, 0.0, self.device)
        self.divisor = _operand(divisor, 1.0, self.device)
        self.augment = augment
        self.augment_seed = augment_seed
        self.rank = rank
        self.world_size = world_size
        self._given = 0
        self._skipped = 0

    def __len__(self) -> int:
        return -(-self.mini_batches // self.steps)

    @property
    def mini_batches(self) -> int:
        """Mini-batches an epoch."""
        return -(-len(self.sampler.index) // self.batch_size)

    def mini_batch_size(self, number: int) -> int:
        """Return the size of the mini-batch of this number, from 0, over all processes."""
        return min(self.batch_size, len(self.sampler.index) - number * self.batch_size)

    def labels_of(self, first: int, end: int) -> Tensor:
        """Return the labels of the mini-batches from number `first` to before `end`, over all processes: int64 (n,)."""
        positions = self.sampler()[first * self.batch_size : end * self.batch_size]
        return self.labels[positions.to(self.labels.device)]

    def __iter__(self) -> Iterator[Any]:
        for pixels, labels in self._cut(self._start(), self.batch_size):
            self._given += 1
            yield self.prepare(pixels, self._given - 1), labels

    def _cut(self, start: int, size: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Return pixels as they are kept, and labels, of each `size` images from mini-batch `start` on."""
        order = self.sampler()[start * self.batch_size :]
        if len(order) == 0:
            return []
        pairs: Iterable[tuple[Tensor, Tensor]]
        if self.sampler.in_a_row and self.world_size == 1:  # nothing has to be copied
            part = slice(int(order[0]), int(order[-1]) + 1)
            pairs = zip(self.images[part].split(size), self.labels[part].split(size), strict=True)
        else:
            shares = (several[self.rank :: self.world_size] for several in order.to(self.images.device).split(size))
            # index_select copies an image at a time, where indexing by a tensor goes value by value.
            pairs = ((self.images.index_select(0, i), self.labels.index_select(0, i)) for i in shares)
        return _streamed(pairs, self.device) if self.device != self.images.device else pairs

    def state_dict(self) -> dict[str, int]:
        """Return the number of mini-batches that were yielded in this epoch."""
        return {"mini_batches": self._given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Skip these mini-batches in the next epoch to begin."""
        self._skipped = state_dict["mini_batches"]

    def _start(self) -> int:
        """Return the number of mini-batches that an epoch which begins now skips."""
        self._given, self._skipped = self._skipped, 0
        return self._given

    def _seeded(self, device: torch.device, number: int) -> torch.Generator:
        """Random numbers that depend on the seed, the process, the epoch and a number, and on nothing else."""
        seed = seed_of("augment", self.augment_seed, self.rank, self.sampler.epoch, number)
        return torch.Generator(device).manual_seed(seed)

    def prepare(self, pixels: Tensor, number: int) -> Tensor:
        """uint8 or finished float32 (B, C, H, W), the mini-batch of this number → float32 (B, C, H, W), augmented.

        Only uint8 is scaled.
        """
        if pixels.is_floating_point():
            return pixels if self.augment is None else self.augment(pixels, self._seeded(self.device, number))
        if self.augment is not None:
            pixels = self.augment(pixels.float(), self._seeded(self.device, number))
        shifted = pixels if self.shift is None else pixels - self.shift
        return shifted.float() if self.divisor is None else shifted / self.divisor


class WorkerBatches(Batches):
    """The same batches, each image gone through a transform in processes beside the one that trains.

    Args:
        transform: uint8 (C, H, W) → uint8, scaled afterwards, or float32, which is not; None: nothing is done.
        workers: processes, 0 or more.
        others: those of `Batches`.
    """

    def __init__(self, *others: Any, transform: Callable[[Tensor], Tensor] | None, workers: int, **named: Any) -> None:
        super().__init__(*others, **named)
        self._dataset: Tensor | DatasetImages = self.images
        self._loader = DataLoader(
            _Transformed(self.images, self.labels, transform),
            batch_sampler=_Shares(self),
            num_workers=workers,
            worker_init_fn=_end_with_parent,
            multiprocessing_context=_start_method() if workers else None,
            generator=torch.Generator(),  # not PyTorch's own, which the dropout masks come from
            pin_memory=self.device.type == "cuda",
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, dataset = self._start(), self._dataset
        # Processes that start anew each epoch have random numbers that don't depend on the epochs before.
        self._loader.generator = self._seeded(torch.device("cpu"), -1)
        loader = iter(self._loader)
        for number in range(self.mini_batches):
            with self._own_chance(number):
                images, labels, positions, read = next(loader)
            if isinstance(dataset, DatasetImages):
                for position, label in zip(positions.tolist(), read.tolist(), strict=True):
                    dataset.require_label(position, label)
            if number < start:  # made all the same, for the random numbers that go into it
                continue
            if self.rank >= self.mini_batch_size(number):
                images, labels = images[:0], labels[:0]
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
            self._given += 1
            yield self.prepare(images, number), labels

    @contextmanager
    def _own_chance(self, number: int) -> Iterator[None]:
        """Without workers a transform draws its random numbers here: from their own seed, and not from dropout's."""
        if self._loader.num_workers:
            yield
            return
        with isolate_rng(include_cuda=False):
            # The numbers from 0 up are the augmentation's, and -1 is the workers'.
            seed = self._seeded(torch.device("cpu"), -2 - number).initial_seed()
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield


def _start_method() -> str:
    """Return the start method for worker processes.

    In a worker process of joblib the default is joblib's own method, which a `DataLoader` can't use.
    """
    known = get_all_start_methods()  # the system's default comes first
    return current if (current := get_start_method()) in known else known[0]


def _end_with_parent(worker: int) -> None:
    end_with(os.getppid())  # the run's process, or the server that it forks workers from


class _Shares:
    """The positions of each batch's images, this process's share of them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return self.batches.mini_batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches.sampler().split(self.batches.batch_size):
            share = batch[self.batches.rank :: self.batches.world_size]
            # DataLoader can't make an empty share: it gets one image, which is left out later.
            yield (share if len(share) > 0 else batch[:1]).tolist()


class _Transformed(Dataset[tuple[Tensor, Tensor, int, int]]):
    """Images by position, transformed: each with its label, its position, and the label that was read with it."""

    def __init__(
        self, images: Tensor | DatasetImages, labels: Tensor, transform: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int, int]:
        if isinstance(self.images, Tensor):
            image, label = self.images[position], -1
        else:
            image, label = self.images.item(position)
        return image if self.transform is None else self.transform(image), self.labels[position], position, label


def _operand(values: Tensor, neutral: float, device: torch.device) -> Tensor | float | None:
    """None for what changes nothing, a number for a single one, which is faster, and else the tensor on the device."""
    if bool((values == neutral).all()):
        return None
    return float(values) if values.numel() == 1 else values.to(device)


def _streamed(found: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same tensors on a CUDA device; the next ones are copied while it computes."""
    compute, copy = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    sent: tuple[Tensor, Tensor] | None = None
    for images, labels in found:
        with torch.cuda.stream(copy):
            following = (
                images.pin_memory().to(device, non_blocking=True),
                labels.pin_memory().to(device, non_blocking=True),
            )
        if sent is not None:
            yield sent
        compute.wait_stream(copy)
        for tensor in following:
            tensor.record_stream(compute)  # its memory is not given away while the computation may still read it
        sent = following
    if sent is not None:
        yield sent
