"""Several mini-batches for each call of a LightningModule's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from mnist_lab.data import Batches


class Chunk(NamedTuple):
    """Several mini-batches in a row.

    Pixels become float32 only when their mini-batch is due, so that they are in the processor's cache when the network
    reads them.
    """

    pixels: Tensor
    """uint8 or finished float32 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    size: int
    """Images a mini-batch; the last one may have fewer."""
    first: int
    """The first mini-batch's number in its epoch, from 0."""
    prepare: Callable[[Tensor, int], Tensor]
    """`Batches.prepare`."""

    def mini_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each mini-batch: images, float32 (b, C, H, W), and labels, int64 (b,)."""
        parts = zip(self.pixels.split(self.size), self.labels.split(self.size), strict=True)
        for number, (pixels, labels) in enumerate(parts, self.first):
            yield self.prepare(pixels, number), labels


class Chunks(Batches):
    """The mini-batches of `Batches`, several of them in a `Chunk`, for a run of one process.

    Lightning's work for a training step takes 0.5 to 1 ms on one core, as long as the arithmetic of a small network's
    step. It is done once a chunk. One `index_select` gathers the images of a chunk; images in a row are not copied.

    Args:
        others: those of `Batches`.
        images_at_once: images a chunk, as many as make whole mini-batches, and at least one mini-batch.
    """

    def __init__(self, *others: Any, images_at_once: int) -> None:
        super().__init__(*others)
        self.steps = max(1, (16384 if self.sampler.in_a_row else images_at_once) // self.batch_size)

    def __iter__(self) -> Iterator[Chunk]:
        for pixels, labels in self._cut(self._start(), self.batch_size * self.steps):
            first = self._given
            self._given += -(-len(labels) // self.batch_size)
            yield Chunk(pixels, labels, self.batch_size, first, self.prepare)
