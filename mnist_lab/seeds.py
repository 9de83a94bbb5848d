"""Where random numbers start from."""

from __future__ import annotations

from hashlib import blake2b


def seed_of(kind: str, *numbers: int) -> int:
    """A seed of one kind of chance, which shares nothing with another kind's or with other numbers'.

    Without it, seed 0 would start the order of the batches and the dropout masks at the same number, and seed 1 in
    epoch 2 could be seed 2 in epoch 1.

    Args:
        kind: what it is for: order, dropout, augment, split.
        numbers: what else it depends on: the config's seed, an epoch, a process.

    Returns:
        For `torch.Generator.manual_seed`: 0 to 2⁶⁴ - 1.
    """
    facts = "/".join((kind, *map(str, numbers)))
    return int.from_bytes(blake2b(facts.encode(), digest_size=8).digest())
