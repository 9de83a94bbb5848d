"""The verb `dashboard`: TensorBoard on the runs below a folder."""

from __future__ import annotations


def dashboard(words: list[str]) -> None:
    """Stub."""
