"""The study of a sweep on disk: what was asked for, the trials, and which process holds them."""

from __future__ import annotations

import errno
import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_lab.environment import own_modules
from mnist_lab.errors import UserError
from mnist_lab.files import ASKED, read_json, sync_folder, write_whole
from mnist_lab.schema import SWEEP, mismatch
from mnist_lab.targets import with_current_names
from mnist_lab.trust import is_sealed, seal, trusts

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
"""File in a sweep's folder with Optuna's storage of the trials, unless `sweep.storage` names another."""
GENERATION = 10
"""Trials a generation of NSGA-II: with Optuna's 50, a sweep of fewer would be random."""
STATES = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def load_asked(folder: Path) -> dict[str, Any]:
    """Read what was asked for from a sweep's folder.

    Raises:
        UserError: it is no sweep's folder, or the file is damaged.
    """
    try:
        asked = read_json(folder / ASKED)
        if (wrong := mismatch(asked, SWEEP)) is not None:
            raise ValueError(wrong)
    except FileNotFoundError:
        raise UserError(f"{folder} is no sweep: it has no {ASKED}") from None
    except ValueError as error:
        raise UserError(f"{folder / ASKED} is damaged: {error}") from error
    found: dict[str, Any] = with_current_names(asked)
    return found


def is_own(asked: dict[str, Any]) -> bool:
    """Return whether this user started a sweep, or trusts whoever did."""
    return is_sealed(json.dumps(asked["argv"]), asked.get("seal")) or trusts("sweep")


def save_asked(folder: Path, asked: dict[str, Any], own: bool) -> None:
    """Write what was asked for, whole or not at all, and sealed if this user started the sweep.

    Args:
        folder: the sweep's folder.
        asked: what was asked for, as `load_asked` returns it.
        own: whether this user started the sweep.
    """
    sealed = asked | {"seal": seal(json.dumps(asked["argv"])) if own else None}
    write_whole(folder / ASKED, json.dumps(sealed, indent=2, ensure_ascii=False) + "\n")


@cache
def open_study(folder: Path) -> optuna.Study:
    """Return the study of a sweep's folder, one object a process, created if it isn't there yet.

    Raises:
        UserError: the folder is no sweep's, or its storage can't be used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = load_asked(folder)
    again = asked["storage"] is not None  # another sweep may be making a new database's tables just now
    while True:
        try:
            return optuna.create_study(
                storage=storage_of(folder, asked["storage"]),
                study_name=asked["study"],
                directions=asked["directions"],
                load_if_exists=True,
            )
        except Exception as error:  # each kind of database has its own errors
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if again:
                again = False
                time.sleep(1)
                continue
            where = folder / JOURNAL if asked["storage"] is None else f"sweep.storage={asked['storage']}"
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{where} is damaged or can't be used: {why}") from error


def storage_of(folder: Path, url: str | None) -> Any:
    """Optuna's storage: a journal in the sweep's folder, or the database that a URL names."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from mnist_lab.sweep.journal import WholeLines

    if url is not None:
        return url
    path = folder / JOURNAL
    backend = JournalFileBackend(str(path), lock_obj=WholeLines(path))  # makes the file
    sync_folder(folder)
    return JournalStorage(backend)


def sampler_of(name: str, seed: int, trials: int) -> BaseSampler:
    """Optuna's sampler of this name.

    Args:
        name: random, tpe, cmaes, qmc or nsga2.
        seed: `sweep.seed`.
        trials: number of trials that exist already, so that the sampler continues with other random numbers.
    """
    from optuna import samplers

    sequence, seed = seed, seed + 1000 * trials
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=seed)
    if name == "qmc":  # one sequence, whose position the study knows
        with warnings.catch_warnings(action="ignore"):  # Optuna calls it experimental
            rest = samplers.RandomSampler(seed=seed)
            return samplers.QMCSampler(seed=sequence, scramble=True, independent_sampler=rest)
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=GENERATION)
    others = {"random": samplers.RandomSampler, "tpe": samplers.TPESampler}
    sampler: BaseSampler = others[name](seed=seed)
    return sampler


def pruner_of(name: str, patience: int) -> optuna.pruners.BasePruner:
    """Optuna's pruner of this name.

    Args:
        name: none, median (which waits until four trials are complete) or halving.
        patience: epochs before which no trial is ended.
    """
    from optuna import pruners

    if name == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=patience)
    if name == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=max(1, patience))
    return pruners.NopPruner()


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials, by number."""
    return study.get_trials(deepcopy=False)


def code_digests(configs: Sequence[Any] = ()) -> dict[str, str]:
    """Return the SHA-256 of each file that can change a trial's result: this package's, and the user's own modules.

    Args:
        configs: whose `_target_`s name those modules; what is installed with Python is not looked at.
    """
    package = Path(__file__).resolve().parent.parent
    own = [
        *package.glob("*.py"),
        *(path for part in ("data", "fast", "models", "training") for path in (package / part).glob("*.py")),
    ]
    found = {str(path.relative_to(package)): path for path in sorted(own)}
    return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in found.items()} | own_modules(configs)


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Return the differences between two nested dictionaries, one line per key."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(name for name in now if name not in before)]
        return [
            line
            for name in keys
            for line in differences(
                before.get(name, "(nothing)"), now.get(name, "(nothing)"), f"{key}.{name}".lstrip(".")
            )
        ]
    return [] if before == now else [f"{key}: {before} → {now}"]
