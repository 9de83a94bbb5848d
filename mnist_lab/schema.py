"""The types of what result.json and sweep.json hold, and the check of a file against them."""

from __future__ import annotations

from typing import Any

COUNT = "a whole number, 0 or more"
CLASS = {"name": str, "precision": (float, None), "recall": (float, None), "support": COUNT}
CODE = {"commit": (str, None), "changed": (bool, None)}
RESULT: dict[Any, Any] = {
    "name": str,
    "command": str,
    "overrides": [str],
    "config": {
        "trainer?": {
            "max_epochs?": (int, None),
            "max_steps?": (int, None),
            **{f"limit_{part}_batches?": (float, None) for part in ("train", "val", "test")},
            **dict.fromkeys(("fast_dev_run?", "overfit_batches?"), (bool, float, None)),
        },
        "data?": {"one_vs_rest?": (COUNT, None)},
        "monitor?": str,
        "mode?": (str, None),
    },
    "seed": COUNT,
    "started_at": str,
    "code": {"version": str, **CODE, "own?": {str: str}, "own_repositories?": {str: CODE}},
    "packages": {str: str},
    "machine": {
        **dict.fromkeys(("system", "processor", "accelerator", "precision?"), str),
        **dict.fromkeys(("cores", "threads", "processes"), COUNT),
        "accelerator_name": (str, None),
        **dict.fromkeys(("memory_gb?", "accelerator_memory_gb?"), (float, None)),
    },
    "data": {
        **dict.fromkeys(("requested", "name"), str),
        **dict.fromkeys(("fallback", "digest", "val_from", "test_digest?"), (str, None)),
        "files": {str: str},
        "classes": [(str, int)],
        **dict.fromkeys(("train", "val", "test"), (COUNT, None)),
        "test_counts?": ([COUNT], None),
    },
    "model": {"target": str, "parameters": COUNT, "trainable_parameters": COUNT},
    "history": [{"epoch": COUNT, "seconds": float, str: (float, None)}],
    "test": {
        "loss": (float, None),
        "acc": (float, None),
        "correct": (COUNT, None),
        "n": (COUNT, None),
        "checkpoint": str,
        "epoch?": COUNT,
        "metrics?": {str: (float, None)},
        "classes?": ([CLASS], None),
    },
    "seconds": dict.fromkeys(("start", "train", "test"), float),
    "notes": [str],
    "extras": {},
    "repeats?": (str, None),
    "ended?": ({"by": str, "epochs": COUNT, "steps": COUNT}, {str: None}),
    "module?": ({"target": str, "steps": str, "why": (str, None)}, {str: None}),
}
"""Type of each key of result.json; `?` marks keys that earlier versions lack. Other keys may be there, too.

A list holds the type of its items; a dictionary that of each key, and under `str` that of any other; a tuple has types
of which one is enough; `float` is any number.
"""
SWEEP: dict[Any, Any] = {
    "argv": [str],
    "cwd?": str,
    "storage": (str, None),
    "study": str,
    "objectives": [str],
    "directions": [str],
    "options": {"max_failures": (COUNT, None), "pruner": str, "patience": COUNT, "retries": COUNT},
    "axes": [[]],
    "side_by_side": COUNT,
    "config": {"data?": {}},
    "code": {str: str},
}
"""Type of each key of sweep.json, as in `RESULT`."""


def mismatch(value: Any, kind: Any, key: str = "") -> str | None:
    """Return which of a file's values is of another type than `kind` declares; None where none is.

    Args:
        value: a value of the file.
        kind: its type, declared as in `RESULT`.
        key: where it stands, with a point at its end.
    """
    if isinstance(kind, tuple):
        found = [mismatch(value, one, key) for one in kind]
        return None if None in found else found[0]
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(kind, dict) and isinstance(value, dict):
        known = {name.removesuffix("?"): one for name, one in kind.items() if name is not str}
        if missing := [name for name in kind if name is not str and not name.endswith("?") and name not in value]:
            return f"{key}{missing[0]} is missing"
        others = dict.fromkeys(value, kind[str]) if str in kind else {}
        parts = [(value[name], one, f"{key}{name}.") for name, one in (others | known).items() if name in value]
    elif isinstance(kind, list) and isinstance(value, list):
        parts = [(item, one, f"{key}{n}.") for n, item in enumerate(value) for one in kind]
    elif not _is(value, kind):
        names = {
            dict: "a section",
            list: "a list",
            str: "a text",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            type(None): "null",
        }
        what = COUNT if kind is COUNT else names.get(kind if isinstance(kind, type) else type(kind), "a tensor")
        return f"{key.rstrip('.') or 'the whole'} is not {what}"
    return next(filter(None, (mismatch(*part) for part in parts)), None)


def _is(value: Any, kind: Any) -> bool:
    if kind is COUNT:
        return type(value) is int and 0 <= value < 2**63
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e100
    return value is None if kind is None else type(value) is kind
