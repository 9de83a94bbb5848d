"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mnist_lab.fast.layers import Layers, Linear
from mnist_lab.models.layers import ACTIVATIONS, dropout_layer, init_weights


class MLP(nn.Module):
    """Flatten, then dense layers, each with an activation and dropout, then one output a class.

    Args:
        input_shape: (channels, height, width) of an image.
        num_classes: number of outputs.
        hidden: units of each hidden layer.
        activation: relu, leaky_relu, elu, gelu, silu, tanh or sigmoid.
        dropout: probability that a hidden unit is dropped in training, in [0, 1).
        init: "glorot_uniform" or "pytorch".
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] | int,
        activation: str = "relu",
        dropout: float = 0.0,
        init: str = "glorot_uniform",
    ) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *([hidden] if isinstance(hidden, int) else hidden)]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [Linear(inputs, outputs), ACTIVATIONS[activation](), *dropout_layer(dropout)]
        self.layers = Layers(*layers, Linear(sizes[-1], num_classes))
        init_weights(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (B, num_classes), of images, float32 (B, C, H, W)."""
        logits: Tensor = self.layers(images)
        return logits
