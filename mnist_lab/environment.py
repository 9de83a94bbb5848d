"""Where a result comes from: the machine, the versions of packages, the commit of the code."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mnist_lab import __version__
from mnist_lab.files import is_the_users
from mnist_lab.trust import targets

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy", "tensorboard")


@cache
def code_state() -> dict[str, Any]:
    """Return this package's version, its checkout's commit and whether files were changed; None outside a checkout."""
    here = Path(__file__).resolve()
    # A package installed inside another project's checkout is not part of that project.
    tracked = git(here.parent, "ls-files", "--error-unmatch", str(here)) is not None
    found = repository_of([here]) if tracked else {}
    return {"version": __version__, "commit": found.get("commit"), "changed": found.get("changed")}


def own_code(configs: Sequence[Any]) -> dict[str, Any]:
    """Return what a result records of the user's own modules: `own` and `own_repositories`; {} without such modules.

    Args:
        configs: whose `_target_`s name the modules.
    """
    modules = _own_files(configs)
    if not modules:
        return {}
    repositories = {name: repository_of(list(files.values())) for name, files in modules.items()}
    return {"own": own_modules(configs), "own_repositories": repositories}


def own_modules(configs: Sequence[Any]) -> dict[str, str]:
    """Return the SHA-256 of each file of the user's own modules.

    Args:
        configs: whose `_target_`s name those modules; what is installed with Python is not looked at.
    """
    files = {key: path for files in _own_files(configs).values() for key, path in files.items()}
    return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in files.items()}


def _own_files(configs: Sequence[Any]) -> dict[str, dict[str, Path]]:
    """Return the files of each of the user's own modules: by the module's name, and by the file's below its folder."""
    found: dict[str, dict[str, Path]] = {}
    for name in sorted({str(target).partition(".")[0] for target in targets(list(configs))}):
        files: dict[str, Path] = {}
        try:
            spec = find_spec(name)
        except ValueError:  # no module's name, or the script that runs
            script = getattr(sys.modules.get(name), "__file__", None)
            if script is not None and is_the_users(script):
                found[name] = {Path(script).name: Path(script).resolve()}
            continue
        for folder in map(Path, spec.submodule_search_locations or ()) if spec is not None else ():
            if is_the_users(folder / "any.py"):
                paths = (path for path in sorted(folder.rglob("*.py")) if path.is_file())  # no link of an editor's
                files |= {f"{name}/{path.relative_to(folder)}": path.resolve() for path in paths}
        if spec is not None and str(spec.origin).endswith(".py") and is_the_users(str(spec.origin)):
            files[f"{name}.py"] = Path(str(spec.origin)).resolve()
        if files:
            found[name] = files
    return found


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def processor() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def most_memory() -> float | None:
    """Return the peak memory of this process, in 10⁹ bytes; None where the system doesn't report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss, in bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
