"""Convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mnist_lab.fast.layers import ConvPool2d, Layers, Linear
from mnist_lab.models.layers import ACTIVATIONS, MONOTONIC, dropout_layer, flat_size, init_weights


class CNN(nn.Module):
    """Blocks of convolution, max-pool, activation, dropout; dense layers, each with an activation; one output a class.

    The pool comes after an activation that isn't monotonic, and before all others, which is the same and faster.

    Args:
        input_shape: (channels, height, width) of an image.
        num_classes: number of outputs.
        filters: channels of the convolution; a list of them makes a block each.
        kernel_size: its side in pixels; there is no padding. A list has one a block.
        pool: side and stride of the max-pool in pixels.
        dropout: probability that a pooled value is dropped in training, in [0, 1).
        hidden: units of the dense layer, or of each; an empty list for none.
        activation: relu, leaky_relu, elu, gelu, silu, tanh or sigmoid.
        init: "glorot_uniform" or "pytorch".

    Raises:
        ValueError: there are not as many kernel sizes as filters.
        RuntimeError: nothing is left of an image after the blocks.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        filters: int | Sequence[int] = 30,
        kernel_size: int | Sequence[int] = 5,
        pool: int = 2,
        dropout: float = 0.2,
        hidden: int | Sequence[int] = 128,
        activation: str = "relu",
        init: str = "glorot_uniform",
    ) -> None:
        super().__init__()
        widths = [filters] if isinstance(filters, int) else list(filters)
        sides = [kernel_size] * len(widths) if isinstance(kernel_size, int) else list(kernel_size)
        if len(sides) != len(widths):
            raise ValueError(f"kernel_size has {len(sides)} entries, and filters {len(widths)}")
        layers: list[nn.Module] = []
        for (channels, width), side in zip(pairwise([input_shape[0], *widths]), sides, strict=True):
            activate = ACTIVATIONS[activation]()
            if activation in MONOTONIC:
                layers += [ConvPool2d(channels, width, side, pool), activate]
            else:
                layers += [nn.Conv2d(channels, width, side), activate, nn.MaxPool2d(pool)]
            layers += dropout_layer(dropout)
        features = nn.Sequential(*layers, nn.Flatten())
        sizes = [flat_size(features, tuple(input_shape)), *([hidden] if isinstance(hidden, int) else hidden)]
        dense: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            dense += [Linear(inputs, outputs), ACTIVATIONS[activation]()]
        self.layers = Layers(*features, *dense, Linear(sizes[-1], num_classes))
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (B, num_classes), of images, float32 (B, C, H, W)."""
        logits: Tensor = self.layers(images)
        return logits
