"""From uint8 images in memory to float batches on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class EpochOrder:
    """The order in which an epoch visits its images: it depends on the seed and the epoch, and on nothing else.

    Lightning finds it as the `sampler` of what it iterates over, and calls `set_epoch` before each epoch.

    Args:
        index: int64 (N,), positions of the images to visit.
        seed: of the shuffling; None keeps the order of `index`.
    """

    def __init__(self, index: Tensor, seed: int | None) -> None:
        self.index = index
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of this epoch, counted from 0."""
        self.epoch = epoch

    def __call__(self) -> Tensor:
        """The positions in the order of the epoch: int64 (N,)."""
        if self.seed is None:
            return self.index
        # Seeds of different runs must not meet: seed 1 in epoch 2 is not seed 2 in epoch 1.
        generator = torch.Generator().manual_seed(self.seed * 2**20 + self.epoch)
        return self.index[torch.randperm(len(self.index), generator=generator)]


class Batch(NamedTuple):
    """One mini-batch, or several on end: what one call of a training step gets.

    A call costs Lightning as much time as a small network's whole step, so it is worth making few.
    """

    images: Tensor
    """float32 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    sizes: list[int]
    """How many images each mini-batch has; their sum is B."""

    def mini_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of each mini-batch."""
        return zip(self.images.split(self.sizes), self.labels.split(self.sizes), strict=True)


class Batches:
    """An epoch of batches, made by index from images in memory.

    Iterating gives a `Batch` for each `steps` mini-batches. The last mini-batch holds what is left. Of each, process
    `rank` of `world_size` gets its share, so that `batch_size` is that of all of them together.

    Args:
        images: uint8 (N, C, H, W), on the device that computes; or on the host, and streamed to it.
        labels: int64 (N,), beside the images.
        order: which of them, in which order.
        batch_size: images a mini-batch, 1 or more.
        shift: float32 (C, 1, 1), subtracted from pixel values.
        divisor: float32 (C, 1, 1), divides what remains.
        device: the device that computes; None: where the images are.
        steps: mini-batches a `Batch`, 1 or more.
        rank: this process's number, from 0.
        world_size: how many processes share each mini-batch.
    """

    batch_sampler = None  # Lightning looks for `sampler` and this, as a DataLoader has them

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        order: EpochOrder,
        batch_size: int,
        shift: Tensor,
        divisor: Tensor,
        device: torch.device | None = None,
        steps: int = 1,
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
        self.steps = steps
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-self.mini_batches // self.steps)

    @property
    def mini_batches(self) -> int:
        """How many mini-batches an epoch has."""
        return -(-len(self.sampler.index) // self.batch_size)

    def mini_batch_size(self, number: int) -> int:
        """How many images the mini-batch of this number, from 0, has over all processes."""
        return min(self.batch_size, len(self.sampler.index) - number * self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self.sampler().to(self.images.device)
        sizes = []
        index = []
        for several in order.split(self.batch_size * self.steps):
            mine = [batch[self.rank :: self.world_size] for batch in several.split(self.batch_size)]
            index.append(several if self.world_size == 1 else torch.cat(mine))
            sizes.append([len(part) for part in mine])
        # index_select copies an image at a time, where indexing by a tensor goes value by value.
        found = ((self.images.index_select(0, i), self.labels.index_select(0, i)) for i in index)
        if self.device != self.images.device:
            found = _streamed(found, self.device)
        for (images, labels), parts in zip(found, sizes, strict=True):
            shifted = images if self.shift is None else images - self.shift
            yield Batch(shifted.float() if self.divisor is None else shifted / self.divisor, labels, parts)


def _operand(values: Tensor, neutral: float, device: torch.device) -> Tensor | float | None:
    """None for what changes nothing, a number for a single one, which is faster, and else the tensor on the device."""
    if bool((values == neutral).all()):
        return None
    return float(values) if values.numel() == 1 else values.to(device)


def _streamed(found: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The same tensors on a CUDA device: while it works on some, the next are gathered and on their way."""
    compute, copy = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    sent: tuple[Tensor, ...] | None = None
    for tensors in found:
        with torch.cuda.stream(copy):
            following = tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)
        if sent is not None:
            yield sent
        compute.wait_stream(copy)
        for tensor in following:
            tensor.record_stream(compute)  # its memory is not given away while the computation may still read it
        sent = following
    if sent is not None:
        yield sent
