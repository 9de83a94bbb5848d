"""From uint8 images in memory to float batches on the device."""

from __future__ import annotations

from collections.abc import Iterator

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


class Batches:
    """An epoch of batches, made by index from images that already are where they are needed.

    Iterating gives `(images, labels)`: float32 (B, C, H, W) and int64 (B,). The last batch holds what is left. Of each
    batch, process `rank` of `world_size` gets its share, so that `batch_size` is that of all of them together.

    Args:
        images: uint8 (N, C, H, W), on the device that computes.
        labels: int64 (N,), on the same device.
        order: which of them, in which order.
        batch_size: images a batch, 1 or more.
        shift: float32 (C, 1, 1), subtracted from pixel values.
        divisor: float32 (C, 1, 1), divides what remains.
        rank: this process's number, from 0.
        world_size: how many processes share each batch.
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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.labels = labels
        self.sampler = order
        self.batch_size = batch_size
        self.shift = shift
        self.divisor = divisor
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-len(self.sampler.index) // self.batch_size)

    def batch_length(self, batch_idx: int) -> int:
        """How many images the batch of this number, from 0, has over all processes."""
        return min(self.batch_size, len(self.sampler.index) - batch_idx * self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.sampler().to(self.images.device)
        scaled = bool((self.shift != 0).any()), bool((self.divisor != 1).any())
        for batch in torch.split(order, self.batch_size):
            mine = batch[self.rank :: self.world_size]
            images = self.images[mine].float()
            if scaled[0]:
                images -= self.shift
            if scaled[1]:
                images /= self.divisor
            yield images, self.labels[mine]
