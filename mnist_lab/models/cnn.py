"""Convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mnist_lab.models.layers import (
    ACTIVATIONS,
    MONOTONIC,
    ConvPool2d,
    Linear,
    dropout_layer,
    flat_size,
    init_weights,
)


class CNN(nn.Module):
    """Convolution, max-pool, activation, dropout, dense layer, activation, one output a class.

    The pool comes after an activation that isn't monotonic, and before all others, which is the same and faster.

    Args:
        input_shape: (channels, height, width) of an image.
        num_classes: number of outputs.
        filters: channels of the convolution.
        kernel_size: its side in pixels; there is no padding.
        pool: side and stride of the max-pool in pixels.
        dropout: probability that a pooled value is dropped in training, in [0, 1).
        hidden: units of the dense layer.
        activation: relu, leaky_relu, elu, gelu, silu, tanh or sigmoid.
        init: "glorot_uniform" or "pytorch".

    Raises:
        RuntimeError: nothing is left of an image after the convolution and the pool.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        filters: int = 30,
        kernel_size: int = 5,
        pool: int = 2,
        dropout: float = 0.2,
        hidden: int = 128,
        activation: str = "relu",
        init: str = "glorot_uniform",
    ) -> None:
        super().__init__()
        channels, activate = input_shape[0], ACTIVATIONS[activation]()
        if activation in MONOTONIC:
            convolve = [ConvPool2d(channels, filters, kernel_size, pool), activate]
        else:
            convolve = [nn.Conv2d(channels, filters, kernel_size), activate, nn.MaxPool2d(pool)]
        features = nn.Sequential(
            *convolve,
            *dropout_layer(dropout),
            nn.Flatten(),
        )
        self.layers = nn.Sequential(
            *features,
            Linear(flat_size(features, tuple(input_shape)), hidden),
            ACTIVATIONS[activation](),
            Linear(hidden, num_classes),
        )
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (B, num_classes), of images, float32 (B, C, H, W)."""
        logits: Tensor = self.layers(images)
        return logits
