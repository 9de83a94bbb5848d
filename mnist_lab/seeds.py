"""Seeds for the different kinds of randomness."""

from __future__ import annotations

from hashlib import blake2b


def seed_of(kind: str, *numbers: int) -> int:
    """Return a seed for one kind of randomness, independent of the seeds of other kinds and other numbers.

    Without it, seed 0 would give the order of the batches and the dropout masks the same random numbers, and seed 1 in
    epoch 2 could equal seed 2 in epoch 1.

    Args:
        kind: what the seed is for: order, dropout, augment, split.
        numbers: what else the seed depends on: the config's seed, an epoch, a process.

    Returns:
        A seed for `torch.Generator.manual_seed`, 0 to 2⁶⁴ - 1.
    """
    facts = "/".join((kind, *map(str, numbers)))
    return int.from_bytes(blake2b(facts.encode(), digest_size=8).digest())
