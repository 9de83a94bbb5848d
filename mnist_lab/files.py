"""Files on disk: what they hold, and how to write them safely."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM),
    errno.ENAMETOOLONG,
)
"""The system's errors that are the disk's and not the program's: full, read-only, failing, gone, not to be written, a
name too long for it."""


def disk_fault(error: BaseException | None, folder: Path | None = None) -> OSError | None:
    """What the system said of the disk, where that is the cause of an error; libraries add errors of their own.

    Args:
        error: what was raised.
        folder: whose absence, or that of something in it, is a fault as well.
    """
    seen: set[int] = set()  # TensorBoard raises the same error again and again, until it is its own cause's cause
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and (error.errno in FAULTS or (folder is not None and _lost(error, folder))):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _lost(error: OSError, folder: Path) -> bool:
    if error.errno != errno.ENOENT:
        return False
    named = isinstance(error.filename, (str, bytes))
    return not folder.is_dir() or (named and Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder))


def cache_dir() -> Path:
    """The user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mnist_lab"


def digests(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, in hexadecimal.

    A file is read once: its digest is kept in the user's cache folder, and used for as long as the file's path, size,
    time of change and inode stay the same.
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
        with suppress(OSError):  # a home that can't be written to costs time, nothing else
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_whole(cache, json.dumps(known, indent=0))
    return found


MARK = "# the SHA-256 of the lines above: "


def marked(text: str) -> str:
    """A text of lines, with a last one that shows whether it is still the same."""
    return f"{text}{MARK}{hashlib.sha256(text.encode()).hexdigest()}\n"


def unchanged(text: str) -> bool:
    """Whether a text is as `marked` has given it, or has no mark."""
    above, mark, _ = text.rpartition(MARK)
    return not mark or text == marked(above)


def write_whole(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Writes a file whole or not at all: readers see the old content or the new, never a part. Text becomes UTF-8.

    Raises:
        OSError: the disk is full, or the folder isn't there.
    """
    if isinstance(content, str | bytes):
        content = [content.encode() if isinstance(content, str) else content]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
