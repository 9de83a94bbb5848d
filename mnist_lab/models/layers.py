"""Parts that the networks share: activations by name, initial weights, and small helpers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mnist_lab.fast.layers import Dropout

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
MONOTONIC = ("relu", "leaky_relu", "elu", "tanh", "sigmoid")
"""Activations that never fall, so that a max-pool may come before them: the same values, for fewer evaluations."""


def init_weights(net: nn.Module, init: str) -> None:
    """Initialise the weights of every linear and convolutional layer of `net`, in place.

    Args:
        net: the network.
        init: "glorot_uniform", Keras' default: weights uniform in ±sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio 2010,
            eq. 16), biases zero; or "pytorch": as torch.nn made them.

    Raises:
        ValueError: `init` is neither.
    """
    if init == "pytorch":
        return
    if init != "glorot_uniform":
        raise ValueError(f"init must be glorot_uniform or pytorch, not {init}")
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def dropout_layer(rate: float) -> list[nn.Module]:
    """Return a list of one dropout layer; an empty list for a rate of 0."""
    return [Dropout(rate)] if rate > 0 else []


def flat_size(net: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Return the number of values that `net` gives for one image of `input_shape` (C, H, W)."""
    with torch.no_grad():
        output: Tensor = net(torch.zeros(1, *input_shape))
        return output.numel()
