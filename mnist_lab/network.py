"""Requirements for a user's own network: it returns logits, and can train on the run's mini-batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from mnist_lab.errors import UserError


def logits_of(output: Any) -> Tensor:
    """Return the logits among a network's output.

    Args:
        output: a tensor; an object or a mapping with `logits`; or a tuple or list whose first element is the logits.

    Raises:
        UserError: it is something else.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor):
        first = output[0] if isinstance(output, Sequence) and output and not isinstance(output, str) else None
        found = getattr(output, "logits", first)
    if not isinstance(found, Tensor):
        what = type(output).__name__
        what += f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise UserError(
            f"model: the network gives {what}, and needed are logits: a tensor, `.logits`, ['logits'] or the first "
            "of a tuple"
        )
    return found


def _replace_output(net: nn.Module, inputs: Any, output: Any) -> Tensor:
    return logits_of(output)


@torch.no_grad()
def give_logits(net: nn.Module, images: Tensor) -> Tensor:
    """Run a network once, and make it return its logits alone if it returns them among others.

    A forward hook replaces the network's output from then on, so that whoever calls it gets a tensor. A network that
    returns a tensor is left as it is.

    Args:
        net: the network, in any mode, which stays.
        images: float32 (B, C, H, W).

    Returns:
        What it gives in evaluation mode, float32 (B, classes).

    Raises:
        UserError: there are no logits in what it gives.
        Exception: the network's own.
    """
    training = net.training
    net.eval()
    try:
        output = net(images)
    finally:
        net.train(training)
    outputs = [output]
    if not type(net).__module__.startswith("mnist_lab."):
        with suppress(
            Exception
        ):  # while it trains it may give more, as torchvision's GoogLeNet; or fail, and say so then
            outputs.append(_train_step(net, images))
    if not all(isinstance(found, Tensor) for found in outputs):
        net.register_forward_hook(_replace_output)
    return logits_of(output)


@torch.no_grad()
def _train_step(net: nn.Module, images: Tensor) -> Any:
    """Return what a copy of the network gives in training mode. Random numbers go on as before."""
    with isolate_rng(include_cuda=False):
        return copy.deepcopy(net).train()(images)


def fault_of_one_image(net: nn.Module, shape: Sequence[int]) -> str | None:
    """Return why a network can train on two images but not on one, as with batch normalisation; None if it can.

    Args:
        net: the network.
        shape: (C, H, W) of the images.
    """
    try:
        _train_step(net, torch.zeros(2, *shape))
    except Exception:  # it can't be copied, or can't be trained on such images at all: the training will tell
        return None
    try:
        _train_step(net, torch.zeros(1, *shape))
    except Exception as error:
        return " ".join(str(error).split())[:300]
    return None
