"""An archive of a data set: unpacked whole or not at all, and never to more than a data set has."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mnist_lab.errors import UserError
from mnist_lab.files import write_whole


@dataclass(frozen=True)
class Archive:
    """A file to download, and its members.

    Attributes:
        path: where it is stored and stays. Its ending decides the format: .zip, .tar.gz, or else .gz.
        urls: its addresses (http, https or file), tried in this order.
        md5: its published digest, in hexadecimal.
        members: the members to unpack: each one's name, and the file that it becomes. A member that ends in .gz is
            unpacked twice. A .gz file has one member, whatever its name.
    """

    path: Path
    urls: Sequence[str]
    md5: str
    members: Mapping[str, Path]


def unpack(archive: Archive, largest: int) -> None:
    """Unpack the members that are not there yet.

    Raises:
        UserError: the archive has no such member, is damaged, or a member has more bytes than `largest`.
    """
    wanted = {member: path for member, path in archive.members.items() if not path.exists()}
    try:
        for member, stream in _members(archive.path, wanted):
            path = wanted[member]
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{path.name}.*"):  # left by a process that was killed
                left.unlink()
            write_whole(path, _bounded(stream, largest, f"{member or path.name} of {archive.path}"))
    except (gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{archive.path} can't be unpacked: {error}") from error
    for member, path in wanted.items():
        if not path.exists():
            raise UserError(f"{archive.path} has no {member}")


def _members(path: Path, names: Collection[str]) -> Iterator[tuple[str, IO[bytes] | gzip.GzipFile]]:
    """Yield the members of these names, opened one after the other. Paths in the archive are never used as targets."""
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as zipped:
            for name in set(names).intersection(zipped.namelist()):
                with zipped.open(name) as stream:
                    yield name, gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else stream
    elif path.name.endswith(".tar.gz"):
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                if member.isreg() and member.name in names and (content := tar.extractfile(member)):
                    yield member.name, content
    else:
        with gzip.open(path) as unpacked:
            yield from ((name, unpacked) for name in names)


def _bounded(stream: IO[bytes] | gzip.GzipFile, largest: int, what: str) -> Iterator[bytes]:
    """Yield the bytes of a stream, of which `largest` are allowed.

    Raises:
        UserError: there are more.
    """
    size = 0
    while chunk := stream.read(2**20):
        size += len(chunk)
        if size > largest:
            raise UserError(f"{what} unpacks to more than {largest:,} bytes, which no data set has")
        yield chunk
