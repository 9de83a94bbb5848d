"""One neuron."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnist_lab.models.layers import init_weights


class Neuron(nn.Module):
    """One sigmoid neuron: the probability that an image shows `digit`.

    It gives two logits, 0 and the neuron's weighted sum z, for "not the digit" and "the digit". Their softmax is the
    neuron's sigmoid, exp(z) / (1 + exp(z)), and their cross-entropy its binary cross-entropy, so that whatever is made
    for several classes works for this one as well.

    Args:
        input_shape: (channels, height, width) of an image, or any shape of inputs.
        digit: the class it learns to recognise; the data brings labels 1 for it and 0 for the rest.
        init: "glorot_uniform" or "pytorch".
    """

    def __init__(self, input_shape: Sequence[int], digit: int = 0, init: str = "glorot_uniform") -> None:
        super().__init__()
        self.digit = digit
        self.linear = nn.Linear(math.prod(input_shape), 1)
        init_weights(self, init)

    def extra_repr(self) -> str:
        """What it tells apart."""
        return f"digit={self.digit}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, (B, 2), of inputs, float (B, *input_shape)."""
        z: Tensor = self.linear(inputs.flatten(1))
        return torch.cat([torch.zeros_like(z), z], dim=1)

    def probability(self, inputs: Tensor) -> Tensor:
        """The neuron's output sigmoid(z), (B,), in (0, 1), of inputs, float (B, *input_shape)."""
        logits: Tensor = self(inputs)
        return logits.softmax(1)[:, 1]
