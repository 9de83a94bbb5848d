"""The words after a verb."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mnist_lab.errors import UserError, closest


def path_of(word: str | Path) -> Path:
    """The path that a word means: `~` is the user's home; `~name` stays as it is where there is no such user."""
    return Path(os.path.expanduser(word))  # noqa: PTH111 (pathlib's raises RuntimeError for a user that isn't there)


def is_there(word: str) -> bool:
    """Whether a word, though it may look like an option or a list, is the path of something that is there."""
    try:
        return path_of(word).exists()
    except OSError:  # longer than a path may be
        return False


def divide(words: Sequence[str], own: Mapping[str, str], usage: str) -> tuple[dict[str, str], list[str]]:
    """Divides `key=value` words into a verb's own options and all others.

    Args:
        words: what the user typed.
        own: the verb's options with their defaults.
        usage: shown with a word that is not understood.

    Returns:
        The options' values, and the words that are none of them, in their order.

    Raises:
        UserError: a word has no `=`.
    """
    options, others = dict(own), []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word}: not understood\n{usage}")
        if key in own:
            options[key] = value
        else:
            others.append(word)
    return options, others


def understood(words: Sequence[str], own: Mapping[str, str], usage: str) -> dict[str, str]:
    """A verb's own options, of words that may be nothing else.

    Args:
        words: what the user typed.
        own: the verb's options with their defaults.
        usage: shown with a word that is not understood.

    Raises:
        UserError: a word is none of the options.
    """
    options, others = divide(words, own, usage)
    if others:
        raise UserError(f"{others[0]}: not understood.{closest(others[0].partition('=')[0], list(own))}\n{usage}")
    return options
