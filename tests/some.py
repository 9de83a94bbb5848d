"""Parameters of which the default test run tries some, and the whole run all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], quick: int | Callable[[Any], bool]) -> list[Any]:
    """Return the parameters of a test, and mark slow what the default run leaves out.

    Args:
        values: one value for each case, or a tuple of several.
        quick: how many of the first cases the default run tries, or whether it tries a case.
    """
    cases = list(values)
    tried = [n < quick if isinstance(quick, int) else quick(case) for n, case in enumerate(cases)]
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if one else pytest.mark.slow)
        for case, one in zip(cases, tried, strict=True)
    ]
