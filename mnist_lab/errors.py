"""The user's mistakes, apart from the program's bugs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from traceback import extract_tb

CONTROLS = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
"""Pattern of characters that a terminal obeys, other than line ends and tabs, that turn text round, or are none."""


class UserError(Exception):
    """A mistake that the user can mend: shown as its message alone, with exit status 2 and no traceback."""


class ProcessLost(Exception):
    """A process of a distributed run that has ended before its time: shown as its message alone, with exit status 1."""


class Diverged(UserError):
    """A training whose loss is infinite or no number: what comes after it means nothing."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the chain of errors that led to it, the latest first."""
    seen: set[int] = set()  # TensorBoard raises one error repeatedly, which makes a cycle of causes
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def interrupted(error: BaseException) -> bool:
    """Return whether Ctrl-C caused an error. OmegaConf's cleanup raises another one when a config is half built."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in causes(error))


def no_such(key: str, word: str, what: str, known: Sequence[str]) -> UserError:
    """Return the error that `key=word` names an unknown `what`."""
    return UserError(f"{key}={word}: there is no such {what}.{closest(word, known)}\nThey are: {', '.join(known)}")


def closest(word: str, candidates: Iterable[str]) -> str:
    """Return the candidate most like `word` as ` Did you mean ...?`; an empty string where none is like it.

    The first that begins with it is most like it, then one of the same letters.
    """
    candidates = list(candidates)
    matches = [name for name in candidates if word and name.startswith(word)]
    matches += [name for name in candidates if sorted(name) == sorted(word)]
    matches += difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f" Did you mean {matches[0]}?" if matches else ""


def printable(text: str) -> str:
    """Return a text with control characters as Python writes them, `\\x1b`: a terminal would obey them."""
    return re.sub(CONTROLS, lambda found: repr(found[0])[1:-1], text)


def one_line(error: Exception) -> str:
    """Return the message of Hydra or OmegaConf in one line of at most 1,000 characters."""
    words = re.sub(r"^Error parsing override '.*'", "", str(error)) or str(error.__cause__ or "")
    words = words or f"{type(error).__name__}: {extract_tb(error.__traceback__)[-1].line}"  # an assertion without text
    return " ".join(re.sub(r"See https?://\S+.*", "", words).split())[:1000]


def brief(error: BaseException) -> str:
    """Return an error's message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
