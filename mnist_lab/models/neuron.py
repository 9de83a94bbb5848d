"""One neuron, and the callback that shows what it computes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from mnist_lab.models.layers import init_weights

log = logging.getLogger(__name__)


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
        """Return the digit, for the representation of the module."""
        return f"digit={self.digit}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, (B, 2), of inputs, float (B, *input_shape)."""
        z: Tensor = self.linear(inputs.flatten(1))
        return torch.cat([torch.zeros_like(z), z], dim=1)

    def probability(self, inputs: Tensor) -> Tensor:
        """Return the neuron's output sigmoid(z), (B,), in (0, 1), of inputs, float (B, *input_shape)."""
        logits: Tensor = self(inputs)
        return logits.softmax(1)[:, 1]


class NeuronForwardPass(Callback):
    """Log what one neuron computes, with all digits, before any training: article A1.

    Args:
        weights: of the neuron.
        bias: of the neuron.
        inputs: as many as weights.

    Raises:
        ValueError: inputs and weights differ in number.
    """

    def __init__(self, weights: Sequence[float], bias: float, inputs: Sequence[float]) -> None:
        if len(weights) != len(inputs):
            raise ValueError(f"a neuron with {len(weights)} weights can't take {len(inputs)} inputs")
        self.weights, self.bias, self.inputs = list(weights), bias, list(inputs)
        self.output = self._forward()
        """The neuron's output, in (0, 1), in double precision."""

    def _forward(self) -> float:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            neuron = Neuron([len(self.weights)]).double()
            neuron.linear.weight.copy_(torch.tensor([self.weights], dtype=torch.float64))
            neuron.linear.bias.fill_(self.bias)
            return neuron.probability(torch.tensor([self.inputs], dtype=torch.float64)).item()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the output."""
        if trainer.is_global_zero:
            log.info(
                f"one neuron: weights {self.weights}, bias {self.bias}, inputs {self.inputs} → sigmoid {self.output!r}"
            )
