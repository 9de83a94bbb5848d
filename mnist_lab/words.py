"""The words after a verb."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mnist_lab.errors import UserError, closest


def path_of(word: str | Path) -> Path:
    """Return the path that a word means: `~` is the user's home; `~name` stays as it is where there is no such user."""
    return Path(os.path.expanduser(word))  # noqa: PTH111 (pathlib's raises RuntimeError for a user that isn't there)


def is_there(word: str) -> bool:
    """Return whether a word, though it may look like an option or a list, is the path of something that is there."""
    try:
        return path_of(word).exists()
    except OSError:  # longer than a path may be
        return False


def folder_of(words: Sequence[str], usage: str) -> Path:
    """Return the folder that a verb's first word names, as DIR or as run=DIR.

    Raises:
        UserError: it names none, but an option, or there is no word.
    """
    word = words[0] if words and is_there(words[0]) else "".join(words[:1]).removeprefix("run=")
    if not word or ("=" in word and not is_there(word)) or word.startswith("-"):
        raise UserError(usage)
    return path_of(word)


def divide(
    words: Sequence[str], own: Mapping[str, str], usage: str, needed: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Divide `key=value` words into a verb's own options and all others.

    Args:
        words: what the user typed.
        own: the verb's options with their defaults.
        usage: shown with a word that is not understood.
        needed: options that must be given.

    Returns:
        The options' values, and the words that are none of them, in their order.

    Raises:
        UserError: a word has no `=`, but for the first, which may be the folder that `run=` names; or an option is
            missing.
    """
    options, others = dict(own), []
    for n, word in enumerate(words):
        key, equals, value = word.partition("=")
        if n == 0 and "run" in own and (not equals or is_there(word)):
            key, equals, value = "run", "=", word  # the folder alone, as other verbs take it
        if not equals:
            raise UserError(f"{word}: not understood\n{usage}")
        if key in own:
            options[key] = value
        else:
            others.append(word)
    for key in needed:
        if not options[key]:
            raise UserError(f"which {key}? {usage}")
    return options, others


def parse_options(
    words: Sequence[str], own: Mapping[str, str], usage: str, needed: Sequence[str] = ()
) -> dict[str, str]:
    """Return a verb's own options, where no other words are allowed. Arguments and errors are those of `divide`.

    Raises:
        UserError: a word is none of the options.
    """
    options, others = divide(words, own, usage, needed)
    if others:
        raise UserError(f"{others[0]}: not understood.{closest(others[0].partition('=')[0], list(own))}\n{usage}")
    return options
