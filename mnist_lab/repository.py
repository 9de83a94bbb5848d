"""The git repository that code lies in: its commit, and whether the code is as that commit has it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def git(folder: Path, *words: str) -> str | None:
    """Return what a git command prints in a folder.

    Return None if it fails: no git, no repository, or one that git does not read because another user owns it.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def repository_of(files: Sequence[Path]) -> dict[str, Any]:
    """Return the repository that some files lie in.

    Args:
        files: a module, or those of a package.

    Returns:
        root: the path of the repository; commit: that of HEAD; changed: whether a tracked file of the repository has
        changes, or one of `files` is not tracked. Each is None where git does not tell it.
    """
    folder = files[0].parent
    root = git(folder, "rev-parse", "--show-toplevel")
    status = git(folder, "status", "--porcelain", "--untracked-files=no")
    tracked = git(folder, "ls-files", "--error-unmatch", "--", *map(str, files)) is not None
    return {
        "root": root,
        "commit": git(folder, "rev-parse", "--verify", "HEAD"),
        "changed": None if root is None or status is None else status != "" or not tracked,
    }
