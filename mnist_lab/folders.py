"""The folder of a run or a sweep: checked before, locked during the work, removed where nothing in it is of use."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from mnist_lab.errors import UserError
from mnist_lab.files import disk_fault, folder_lock, is_locked, is_sweep
from mnist_lab.processes import helping, is_helper_process


def check_folder(key: str, folder: str, fresh: bool) -> Path:
    """Check that a folder can be written to, before anything is done for it.

    Args:
        key: the option that names it.
        folder: its path.
        fresh: whether it must be new or empty, as a run's must.

    Returns:
        The deepest existing folder on the way to it, or itself.

    Raises:
        UserError: it can't be.
    """
    existing = Path(folder).absolute()
    if not folder or (fresh and existing.is_dir() and any(existing.iterdir()) and not is_helper_process()):
        more = f"\nTo go on with that sweep: python -m mnist_lab resume {quote(folder)}" if is_sweep(existing) else ""
        raise UserError(f"{key}={folder} is not allowed: a run needs a new or an empty folder of its own{more}")
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{key}={folder} can't be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder} can't be made: {existing} is not writable. Choose another folder")
    return existing


def has_progress(folder: Path) -> bool:
    """Return whether a folder is that of a sweep, or has a run that has finished an epoch or has a checkpoint."""
    return is_sweep(folder) or any(path for name in ("history.csv", "last.ckpt") for path in folder.rglob(name))


@contextmanager
def run_folder(folder: Path, until: Path | None) -> Iterator[None]:
    """Make and lock the folder of a run, write its log, and remove it where the run fails before it has progress.

    A helper process shares the folder of the first: it only keeps silent.

    Args:
        folder: of the run, absolute.
        until: as for `remove_on_failure`.

    Raises:
        UserError: another process is at work on the folder, or its disk is full, read-only, failing or gone.
    """
    from mnist_lab.terminal import logged

    if is_helper_process():  # started beside the first by torchrun or SLURM: that one has the folder
        with helping():
            yield
        return
    with remove_on_failure(folder, until), folder_lock(folder, str(folder)), logged(folder / "run.log"):
        yield


@contextmanager
def remove_on_failure(folder: Path, until: Path | None) -> Iterator[None]:
    """Remove a folder again where the block fails, unless a run or a sweep in it can be resumed.

    Args:
        folder: of the run or the sweep, absolute.
        until: the deepest folder that existed before the command, which stays; None: nothing is removed.

    Raises:
        UserError: the disk was the cause. The message says what to do.
    """
    from mnist_lab.terminal import relative, to_go_on

    try:
        yield
    except Exception as error:
        fault = None if isinstance(error, UserError) else disk_fault(error, folder)
        if fault is None and not isinstance(error, UserError):
            raise
        gone = fault is not None and fault.errno == errno.ENOENT and not folder.is_dir()
        go_on = to_go_on(folder) if is_sweep(folder.parent) or has_progress(folder) else "run the command again"
        if until is not None:
            remove_folder(folder, until)
        if fault is None:
            raise
        if gone:
            raise UserError(f"{relative(folder)} has been taken away: there is nothing left to go on with") from error
        mend = "free some space" if fault.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        where = relative(Path(os.fsdecode(fault.filename))) if fault.filename else relative(folder)
        raise UserError(f"{where}: {fault.strerror}. To go on, {mend}, then: {go_on}") from error


def remove_folder(folder: Path, until: Path) -> None:
    """Remove the folder of a run without progress, and the folders above it that are empty then.

    Leave a folder that another process has locked, which began there at the same moment.

    Args:
        folder: of the run or the sweep.
        until: the deepest folder that existed before the command, which stays.
    """
    if has_progress(folder) or is_locked(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for parent in folder.parents:
        if parent == until or not parent.is_relative_to(until):
            break
        if not parent.exists():
            continue
        if [path.name for path in parent.iterdir()] == ["multirun.yaml"]:
            (parent / "multirun.yaml").unlink()
        if any(parent.iterdir()):
            break
        parent.rmdir()
