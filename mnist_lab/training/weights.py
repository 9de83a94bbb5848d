"""Weights as a network uses them and as a training goes on with them: callbacks may make these two differ."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mnist_lab.errors import UserError

ORIGINAL, MASK = "_orig", "_mask"
"""Endings of the two tensors that `torch.nn.utils.prune` keeps in place of a pruned one."""


def usable(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's weights and buffers as its layers use them: pruned weights masked."""
    found: dict[str, Tensor] = {}
    weights = module.state_dict()
    for name, value in weights.items():
        base = name.removesuffix(ORIGINAL)
        if name.endswith(MASK) and name.removesuffix(MASK) + ORIGINAL in weights:
            continue
        masked = name.endswith(ORIGINAL) and base + MASK in weights
        found[base if masked else name] = (value * weights[base + MASK] if masked else value).detach().clone()
    return found


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether two state dicts have the same names and, bit for bit, the same finite values."""

    def equal(one: Tensor, other: Tensor) -> bool:
        return one.data_ptr() == other.data_ptr() or torch.equal(one.cpu(), other.cpu())

    return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)


def restore(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set a module's weights to those of a checkpoint, and prune the tensors that were pruned then.

    Args:
        module: the one that the checkpoint was made of, as it was built: nothing in it is pruned yet, or all of it.
        weights: its `state_dict` then; a pruned tensor in two parts, as `torch.nn.utils.prune` has it.

    Raises:
        UserError: the module has other tensors than the checkpoint, as where a callback has added layers.
    """
    for name in weights:
        base = name.removesuffix(MASK)
        if not name.endswith(MASK) or base + ORIGINAL not in weights:
            continue
        path, _, tensor = base.rpartition(".")
        layer = module.get_submodule(path)
        if not hasattr(layer, tensor + MASK):
            prune.custom_from_mask(layer, tensor, weights[name].to(getattr(layer, tensor).device))
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise UserError(
            "the checkpoint has other tensors than the network has now: a callback has changed its layers, and such a "
            f"run can't be resumed ({' '.join(str(error).split())[:200]})"
        ) from error


def own_memory(module: nn.Module) -> None:
    """Move each parameter to memory of its own.

    Lightning's ModelPruning resets weights to their first values by sharing these values' memory with the network,
    whose next step would change them.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
