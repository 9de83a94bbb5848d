"""Safe downloads: no file is used before its digest is checked, and no file is ever left incomplete under its name.

`fetch` makes sure that a data set's files are there. A source of your own can call it with its own archives.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPException, IncompleteRead
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from mnist_lab.data.archive import Archive, unpack
from mnist_lab.errors import UserError
from mnist_lab.files import move


class DataUnavailableError(Exception):
    """Files that are missing and could not be downloaded."""


@dataclass(frozen=True)
class Limits:
    """When to give up a download.

    Attributes:
        patience: seconds to wait for a connection and for bytes; twice as long for an answer.
        slowest: lowest average bytes per second that are accepted, over each `patience` seconds.
        pauses: seconds to wait before each new attempt at the mirrors whose failure may be temporary. They start again
            from the first whenever a MiB has arrived.
        largest: most bytes of an archive, and of a file unpacked from one. EMNIST's archive, the largest, has 0.56 GB.
        longest: seconds that an attempt may take, and after which there is no further one. The next command goes on
            with what has arrived.
    """

    patience: float = 10.0
    slowest: float = 1000.0
    pauses: Sequence[float] = (1.0, 3.0, 9.0)
    largest: int = 2**30
    longest: float = 3600.0


def fetch(name: str, archives: Sequence[Archive], root: Path, download: bool, limits: Limits | None = None) -> None:
    """Make sure that all members of all archives are there, each complete and as published.

    Of several processes, one downloads and the others wait for it. Partial downloads are resumed. MNIST_LAB_MIRROR is
    tried first if it is set: at that address, an archive is looked for at its path relative to `root`, as in a data
    folder that is served, and then by its name alone.

    Args:
        name: the data set's name, for the user.
        archives: the data set's archives; those whose members are all there are not downloaded.
        root: the data sets' folder.
        download: whether missing files may be downloaded.
        limits: when to give up a download; None: the defaults of `Limits`.

    Raises:
        DataUnavailableError: no member is there, and an archive can't be downloaded; says which, and why from each
            address.
        UserError: some members are there and the others can't be downloaded, an archive that was there before is
            damaged, `root` can't be written to, or MNIST_LAB_MIRROR is no address.
    """
    limits = limits or Limits()
    paths = [path for archive in archives for path in archive.members.values()]
    if all(path.exists() for path in paths):
        return
    try:
        if not download:
            raise DataUnavailableError("downloading is left to the first process")
        first = archives[0].path
        with _alone(first.with_name(f"{first.name}.lock"), name):
            wanted = [a for a in archives if not all(path.exists() for path in a.members.values())]
            failing: set[str] = set()
            for archive in wanted:
                _download(archive, name, root, failing, limits)
            for archive in wanted:  # last, so that a data set is there as a whole or not at all
                unpack(archive, limits.largest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            for archive in archives:  # what others on the disk may need
                archive.path.with_name(f"{archive.path.name}.part").unlink(missing_ok=True)
        reason = error.strerror or error
        raise UserError(f"data.root={root} can't be written to: {reason}. Choose another with data.root=DIR") from error
    except DataUnavailableError as error:
        missing = [path for path in paths if not path.exists()]
        if len(missing) < len(paths):
            raise UserError(
                f"{missing[0]} is missing, though other files of {name} are there, and can't be downloaded: {error}"
            ) from error
        raise DataUnavailableError(f"{name} is not in {root}, and can't be downloaded: {error}") from error


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Hold a lock, which the system releases however this process ends. Its file and empty folders are removed."""
    from filelock import FileLock, Timeout

    existing = next(folder for folder in lock.parents if folder.exists())
    held, timeout = FileLock(lock), 0
    while not held.is_locked:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=timeout)
        except Timeout:
            print(f"waiting for another process, which is downloading {name} to {lock.parent}", file=sys.stderr)
            timeout = -1  # for as long as it takes
        except FileNotFoundError:
            pass  # its last holder has removed even the folder
    try:
        yield
    finally:
        with suppress(OSError):  # Windows can't remove an open file
            lock.unlink()
        held.release()
        folder = lock.parent
        with suppress(OSError):  # it isn't empty
            while folder != existing:
                folder.rmdir()
                folder = folder.parent


class _FailedError(Exception):
    """A mirror failed to deliver a file.

    Args:
        reason: why, for the user.
        may_pass: whether another attempt may succeed.
        status: the HTTP status, if it answered with one.
    """

    def __init__(self, reason: str, may_pass: bool, status: int = 0) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.status = status


def _download(archive: Archive, name: str, root: Path, failing: set[str], limits: Limits) -> None:
    """Download an archive, unless it is there.

    Args:
        archive: the archive.
        name: the data set's name.
        root: the data sets' folder.
        failing: mirrors that have failed before and are tried last; those that fail now are added.
        limits: when to give up.
    """
    if archive.path.exists() and _md5(archive.path) == archive.md5:
        return
    part = archive.path.with_name(f"{archive.path.name}.part")
    reasons: dict[str, str] = {}
    urls = sorted(_addresses(archive, root), key=lambda url: url.rpartition("/")[0] in failing)
    pauses, end = list(limits.pauses), time.monotonic() + limits.longest
    while urls:
        before, again = _size(part), []
        for url in urls:
            try:
                _receive(url, part, archive.md5, limits)
            except _FailedError as failure:
                mirror = url.rpartition("/")[0]
                failing.add(mirror)
                reasons[mirror] = str(failure)
                if failure.may_pass:
                    again.append(url)
                if _size(part) == 0:
                    part.unlink(missing_ok=True)
            else:
                move(part, archive.path)
                return
        if _size(part) - before >= 2**20:
            pauses = list(limits.pauses)
        urls = again if pauses and time.monotonic() < end else []
        if urls:
            time.sleep(pauses.pop(0))
    reason = "; ".join(f"{mirror}/: {reason}" for mirror, reason in reasons.items())
    if archive.path.exists():
        raise UserError(
            f"{archive.path}, the download of {name}, is damaged or incomplete, and can't be downloaded again: {reason}"
        )
    raise DataUnavailableError(f"{archive.path.name} from {reason}")


def _addresses(archive: Archive, root: Path) -> list[str]:
    """Return the addresses of an archive, in the order in which they are tried."""
    mirror = os.environ.get("MNIST_LAB_MIRROR", "").rstrip("/")
    if not mirror:
        return list(archive.urls)
    if urlsplit(mirror).scheme not in ("http", "https", "file"):
        raise UserError(f"MNIST_LAB_MIRROR={mirror} is not allowed: it must begin with http://, https:// or file://")
    names = (archive.path.relative_to(root).as_posix(), archive.path.name)
    return list(dict.fromkeys([*(f"{mirror}/{quote(name)}" for name in names), *archive.urls]))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _receive(url: str, part: Path, md5: str, limits: Limits) -> None:
    """Download the rest of a file into `part`.

    Raises:
        _FailedError: the file is incomplete, or not what was published; in the second case `part` is removed.
    """
    start = _size(part)
    if start and _md5(part) == md5:
        return
    headers = {"User-Agent": "mnist_lab"} | ({"Range": f"bytes={start}-"} if start else {})
    with closing(_arriving(request.Request(url, headers=headers), limits.patience)) as arriving:
        try:
            status, length = next(arriving)
        except _FailedError as failure:
            if failure.status == 416:  # `part` is longer than the file
                part.unlink(missing_ok=True)
            raise
        start = start if status == 206 else 0
        total = None if length is None else start + length
        if total is not None and total > limits.largest:
            raise _FailedError(f"it has {total:,} bytes, more than {limits.largest:,}", may_pass=False)
        _keep(arriving, part, start, total, limits)
    if total is not None and _size(part) < total:
        raise _FailedError(f"broke off after {_size(part):,} of {total:,} bytes", may_pass=True)
    if (found := _md5(part)) != md5:
        part.unlink()
        # If it came in two parts, either may be wrong; if its length is unknown, it may be incomplete: worth a retry.
        raise _FailedError(f"its MD5 is {found}, not the published {md5}", may_pass=start > 0 or total is None)


def _keep(arriving: Iterator[bytes], part: Path, start: int, total: int | None, limits: Limits) -> None:
    """Write bytes to `part`, from position `start`, as they arrive."""
    with part.open("ab" if start else "wb") as file, ExitStack() as stack:
        show: Callable[[int], None] | None = None
        began = since = time.monotonic()
        lately, size = 0, start
        for chunk in arriving:
            file.write(chunk)
            size, lately, now = size + len(chunk), lately + len(chunk), time.monotonic()
            if size > limits.largest:
                file.truncate(0)
                raise _FailedError(f"it has more than {limits.largest:,} bytes", may_pass=False)
            if now - began > limits.longest:
                raise _FailedError(f"sent only {size - start:,} bytes in {now - began:.0f} s", may_pass=False)
            if now - since >= limits.patience:
                if lately < limits.slowest * (now - since):
                    raise _FailedError(f"sent only {lately:,} bytes in {now - since:.0f} s", may_pass=True)
                since, lately = now, 0
            if show is None and now - began > 2:
                show = stack.enter_context(_progress(part.stem, total))
            if show is not None:
                show(size)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on the terminal while a download lasts."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as p:
        task = p.add_task(name, total=total)
        yield lambda size: p.update(task, completed=size)


def _arriving(asked: request.Request, patience: float) -> Generator[Any, None, None]:
    """Yield what a server sends: its status and the number of bytes to come, or None; then the bytes.

    A thread receives them, and is abandoned if it hangs: looking up a name has no time limit, nor does a server that
    sends its headers byte by byte.
    """
    arrived: queue.Queue[Any] = queue.Queue(maxsize=16)
    gone = threading.Event()
    opener = request.OpenerDirector()  # unlike `urlopen`, it has no way to ftp and data addresses
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.FileHandler,
        request.UnknownHandler,
        request.HTTPRedirectHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())

    def receive() -> None:
        try:
            response: Any = opener.open(asked, timeout=patience)
            with response:
                length = getattr(response, "length", None)  # of HTTP; a file ends where it ends
                arrived.put((response.status, length))
                while not gone.is_set():
                    chunk = response.read1(2**16)
                    arrived.put(chunk)
                    if not chunk:
                        break
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=receive, daemon=True).start()
    try:
        while (item := arrived.get(timeout=2 * patience)) != b"":
            if isinstance(item, Exception):
                raise item
            yield item
    except queue.Empty:
        raise _FailedError(f"no answer for {2 * patience:g} s", may_pass=False) from None
    except TimeoutError as error:
        raise _FailedError(f"nothing came for {patience:g} s", may_pass=True) from error
    except HTTPError as error:
        with error:
            reason = f"HTTP {error.code} {error.msg.strip().splitlines()[0]}"
        raise _FailedError(reason, error.code >= 500 or error.code in (408, 416, 429), error.code) from error
    except URLError as error:  # no connection
        raise _FailedError(_reason(error.reason), isinstance(error.reason, ConnectionResetError)) from error
    except (OSError, HTTPException, ValueError) as error:
        passing = isinstance(error, ConnectionError | IncompleteRead | BadStatusLine)
        raise _FailedError(_reason(error), passing) from error
    finally:
        gone.set()
        with suppress(queue.Empty):
            while True:
                arrived.get_nowait()


def _reason(error: object) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
