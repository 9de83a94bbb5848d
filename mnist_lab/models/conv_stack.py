"""Stacks of convolutions with batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from mnist_lab.fast.layers import Linear, channels_last
from mnist_lab.models.layers import ACTIVATIONS, MONOTONIC, dropout_layer, flat_size, init_weights


class ConvStack(nn.Module):
    """Convolutions, each with batch normalisation and an activation; max-pools between; dense layers; outputs.

    After Simonyan, Zisserman 2014 (VGG), with the batch normalisation of Ioffe, Szegedy 2015, for small images: nothing
    is padded. Channels lie last in memory, where PyTorch's normalisation and pool are fastest.

    Args:
        input_shape: (channels, height, width) of an image.
        num_classes: number of outputs.
        layers: filters of each convolution, and "pool" for each max-pool, 2×2 pixels with stride 2.
        kernel_size: side of the convolutions in pixels.
        hidden: units of the dense layer, or of each, normalised as well; an empty list for none.
        dropout: probability that a value is dropped in training before the outputs, in [0, 1).
        activation: relu, leaky_relu, elu, gelu, silu, tanh or sigmoid.
        init: "pytorch" or "glorot_uniform".

    Raises:
        RuntimeError: nothing is left of an image after the layers.
        ValueError: a layer is neither a number nor "pool".
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        layers: Sequence[int | Literal["pool"]],
        kernel_size: int = 3,
        hidden: int | Sequence[int] = 128,
        dropout: float = 0.0,
        activation: str = "relu",
        init: str = "pytorch",
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = input_shape[0]
        for layer in layers:
            if isinstance(layer, int):
                convolution = nn.Conv2d(channels, layer, kernel_size, bias=False)  # the normalisation has one
                parts += [convolution, nn.BatchNorm2d(layer), ACTIVATIONS[activation]()]
                channels = layer
            elif layer == "pool" and activation in MONOTONIC and parts:  # before the activation: the same, for less
                parts.insert(-1, nn.MaxPool2d(2))
            elif layer == "pool":
                parts.append(nn.MaxPool2d(2))
            else:
                raise ValueError(f"layers holds {layer!r}, which is neither a number of filters nor pool")
        features = nn.Sequential(*parts, nn.Flatten())
        features.eval()  # to count is not to learn
        sizes = [flat_size(features, tuple(input_shape)), *([hidden] if isinstance(hidden, int) else hidden)]
        features.train()
        dense: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            dense += [Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*features, *dense, *dropout_layer(dropout), Linear(sizes[-1], num_classes))
        init_weights(self, init)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (B, num_classes), of images, float32 (B, C, H, W)."""
        logits: Tensor = self.layers(channels_last(images))
        return logits
