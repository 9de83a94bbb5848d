"""Files on disk: faults, digests, and writing them safely."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import site
import socket
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from mnist_lab.errors import UserError, causes, printable

FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM),
    errno.ENAMETOOLONG,
)
"""System errors that the disk causes and not the program: full, read-only, failing, gone, no permission to write, name
too long."""
_HERE = Path(__file__).resolve().parent
CONF_DIR = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"
"""The configs: inside the installed package (a wheel carries them there), beside it in a checkout."""
DEEPEST = 50
"""Most lists and sections in one another in a file."""
ASKED = "sweep.json"
"""File in a sweep's folder with the command, the config and the code digests of its trials."""


def is_the_users(path: str | Path) -> bool:
    """Return whether a file of code is the user's own: not Python's, an installed package's or this package's."""
    paths = sysconfig.get_paths()
    others = [paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    others += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent)]
    parents = Path(path).resolve().parents
    frozen = str(path).startswith("<")
    return not frozen and not any(Path(folder).resolve() in parents for folder in others)


def disk_fault(error: BaseException | None, folder: Path | None = None) -> OSError | None:
    """Return the disk fault that caused an error, found through the errors that libraries add; None if there is none.

    Args:
        error: what was raised.
        folder: a folder whose absence, or the absence of something in it, counts as a fault too.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and (cause.errno in FAULTS or (folder is not None and _lost(cause, folder))):
            return cause
    return None


def _lost(error: OSError, folder: Path) -> bool:
    if error.errno != errno.ENOENT:
        return False
    named = isinstance(error.filename, (str, bytes))
    return not folder.is_dir() or (named and Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder))


def cache_dir() -> Path:
    """Return the user's cache folder, for files that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnist_lab"


def digests(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file, in hexadecimal.

    A file is read only once: its digest is cached in the user's cache folder and used as long as the file's path, size,
    modification times and inode stay the same.

    Raises:
        OSError: a file can't be read.
    """
    cache = cache_dir() / "digests.json"
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    found, news = [], False
    for path in paths:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
        if not isinstance(known.get(key), str):
            with path.open("rb") as file:
                known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            news = True
        found.append(known[key])
    if news:
        with suppress(OSError):  # a home folder that can't be written to costs only time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_whole(cache, json.dumps(known, indent=0))
    return found


def check_contents(folder: Path) -> None:
    """Make sure that a folder, which somebody else may have made, holds nothing but files and folders.

    Writing through a link changes files elsewhere; reading a pipe or a device may never end. Links to what is in the
    folder may stay, and the folder itself may be a link. A folder `wandb` is W&B's own, with links to its cache.

    Raises:
        UserError: a link leads out of the folder, or something is neither a file nor a folder.
    """
    inside, folders = folder.resolve(), [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if not Path(os.path.realpath(entry.path)).is_relative_to(inside):
                        where = Path(entry.path).readlink()
                        raise UserError(
                            f"{entry.path} is a link to {where}, and a run's files lie in its folder: move them there"
                        )
                elif entry.is_dir():
                    folders += [entry.path] if entry.name != "wandb" else []
                elif not entry.is_file():
                    raise UserError(f"{entry.path} is neither a file nor a folder: remove it")


def read_text(path: Path, largest: int = 64 * 2**20) -> str:
    """Read a text file that somebody else may have written.

    Args:
        path: the file.
        largest: most bytes that it may have. The result of 10,000 epochs has 3 MB.

    Raises:
        UserError: it is a link, a pipe or a device, or has more bytes.
        OSError: it can't be read.
        ValueError: it is not UTF-8.
    """
    found = path.lstat()
    if not S_ISREG(found.st_mode):
        raise UserError(f"{path} is no file, but a link, a pipe or a device: it is not read")
    if found.st_size > largest:
        raise UserError(f"{path} has {found.st_size:,} bytes: no more than {largest:,} are read")
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that somebody else may have written, as `read_text` does. Return its values as `plain` does.

    Raises:
        ValueError: it is no JSON, or too deep.
    """
    try:
        return plain(json.loads(read_text(path)))
    except RecursionError:
        raise ValueError(f"it has more than {DEEPEST} lists in one another") from None


def plain(value: Any, depth: int = 0) -> Any:
    """Return the value of a JSON file, with None for NaN and infinities, and without a terminal's control characters.

    Raises:
        ValueError: lists and sections lie too deep in one another, or a number is too large.
    """
    if isinstance(value, dict | list) and depth > DEEPEST:
        raise ValueError(f"it has more than {DEEPEST} lists in one another")
    if isinstance(value, dict):
        return {printable(str(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("it has a number of more than 64 bits")
    return None if isinstance(value, float) and not math.isfinite(value) else value


MARK = "# the SHA-256 of the lines above: "


def marked(text: str) -> str:
    """Return a text with a last line added that shows later whether the text has changed."""
    return f"{text}{MARK}{hashlib.sha256(text.encode()).hexdigest()}\n"


def unchanged(text: str) -> bool:
    """Return whether a text is still as `marked` returned it, or has no mark."""
    above, mark, _ = text.rpartition(MARK)
    return not mark or text == marked(above)


def write_whole(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write a file as a whole or not at all: readers see the old content or the new, never a part.

    Args:
        path: the file.
        content: text, which is written as UTF-8; or bytes, whole or in parts.

    Raises:
        OSError: the disk is full, or the folder isn't there.
    """
    if isinstance(content, str | bytes):
        content = [content.encode() if isinstance(content, str) else content]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(content)
        Path(temporary).chmod(0o644)
        move(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def move(source: Path, target: Path) -> None:
    """Rename a file, in place of any file at `target`, and return when the disk has its content and its new name.

    Raises:
        OSError: the file can't be renamed, or the disk fails.
    """
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    source.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Return when the disk has the names in a folder: until then a power cut may undo a rename.

    Do nothing where the system or the file system can't sync folders, as Windows, or the folder is gone.

    Raises:
        OSError: the disk fails.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def is_sweep(folder: Path) -> bool:
    """Return whether a folder belongs to a sweep with a study."""
    return (folder / ASKED).is_file()


@contextmanager
def folder_lock(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder until the block or the process ends, however it ends: the system releases the lock.

    Args:
        folder: the folder of a sweep, a trial or a run.
        what: what the folder is, for the error that the next process gets.

    Raises:
        UserError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *folder.parents):  # what Hydra made, too
        sync_folder(path)
    lock, holder = FileLock(folder / ".held"), folder / ".holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text().strip() if holder.exists() else "another process"
        raise UserError(f"{what} is being worked on by {who}") from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_whole(holder, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a living process holds a folder."""
    from filelock import FileLock, Timeout

    if not (folder / ".held").exists():
        return False
    try:
        with FileLock(folder / ".held").acquire(timeout=0):
            return False
    except Timeout:
        return True
