"""The user's mistakes, apart from the program's bugs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: shown as its message alone, with exit status 2 and no traceback."""


class Lost(Exception):
    """A process of a distributed run that has ended before its time: shown as its message alone, with exit status 1."""


class Diverged(UserError):
    """A training whose loss is infinite or no number: what comes after it means nothing."""


class DiskError(UserError):
    """A disk that is full, read-only, failing or gone. What was whole on it before is whole still."""


def closest(word: str, candidates: Iterable[str]) -> str:
    """The candidate most like `word` as ` Did you mean ...?`, or an empty string where none is like it."""
    matches = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]}?" if matches else ""
