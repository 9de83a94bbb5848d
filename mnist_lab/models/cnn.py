"""Convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mnist_lab.models.layers import ACTIVATIONS, dropout_layer, flat_size, init_weights


class CNN(nn.Module):
    """Convolution, activation, max-pool, dropout, dense layer, activation, one output a class.

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
        features = nn.Sequential(
            nn.Conv2d(input_shape[0], filters, kernel_size),
            ACTIVATIONS[activation](),
            nn.MaxPool2d(pool),
            *dropout_layer(dropout),
            nn.Flatten(),
        )
        self.layers = nn.Sequential(
            *features,
            nn.Linear(flat_size(features, tuple(input_shape)), hidden),
            ACTIVATIONS[activation](),
            nn.Linear(hidden, num_classes),
        )
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (B, num_classes), of images, float32 (B, C, H, W)."""
        logits: Tensor = self.layers(images)
        return logits
