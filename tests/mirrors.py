"""Web servers that answer downloads well or badly."""

import gzip
import hashlib
import http.server
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mnist_lab.data import Archive, fetch
from mnist_lab.data.download import Limits

PIXELS = bytes(range(256)) * 400
PACKED = gzip.compress(PIXELS, 0, mtime=0)
SOON = Limits(patience=0.5, pauses=(0.0, 0.0, 0.0))
WITHOUT_PROXY = {"http_proxy": "", "https_proxy": "", "no_proxy": "*"}
PUBLISHED = Path(os.environ.get("MNIST_LAB_DATA", "/nowhere")) / "mirror"


class Request(http.server.BaseHTTPRequestHandler):
    """One request, which the server's next behaviour answers."""

    server: "Mirror"

    def do_GET(self) -> None:
        start = self.headers.get("Range", "")
        self.server.asked.append((self.path, start))
        behaviours = self.server.behaviours
        behave = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        behave(self, self.server.content)

    def answer(self, status: int, length: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in [("Content-Length", str(length)), *headers]:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


Behaviour = Callable[[Request, bytes], None]


class Mirror(http.server.ThreadingHTTPServer):
    """Serves one file, at any path, on this machine alone. Each request takes the next behaviour; the last one stays.

    Attributes:
        asked: the path and the Range of each request.
        sent: bytes of the file that were sent, all together.
    """

    daemon_threads = True

    def __init__(self, content: bytes, *behaviours: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.content, self.behaviours = content, list(behaviours)
        self.asked: list[tuple[str, str]] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}/a.gz"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        pass

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


def cut(most: int) -> Behaviour:
    """Answers as a good server does, and breaks off after so many bytes."""

    def behave(request: Request, content: bytes) -> None:
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if start >= len(content):
            request.answer(416, 0)
            return
        rest = content[start:]
        where = [("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")] if start else []
        request.answer(206 if start else 200, len(rest), *where)
        request.wfile.write(rest[:most])
        request.server.sent += len(rest[:most])

    return behave


whole = cut(2**40)


def status(code: int, *headers: tuple[str, str]) -> Behaviour:
    return lambda request, _: request.answer(code, 0, *headers)


def without_ranges(request: Request, content: bytes) -> None:
    request.answer(200, len(content))
    request.wfile.write(content)


def without_length(request: Request, content: bytes) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(content)


def other_range(request: Request, content: bytes) -> None:
    request.answer(206, 10, ("Content-Range", f"bytes 0-9/{len(content)}"))
    request.wfile.write(content[:10])


def tampered(request: Request, content: bytes) -> None:
    without_ranges(request, content[:-1] + b"!")


def login_page(request: Request, _: bytes) -> None:
    without_ranges(request, b"<html>Welcome to the hotel's network")


def hang(request: Request, _: bytes) -> None:
    time.sleep(3)


def hang_in_the_middle(request: Request, content: bytes) -> None:
    cut(1000)(request, content)
    time.sleep(3)


def drip(request: Request, content: bytes) -> None:
    request.answer(200, len(content))
    for n in range(60):
        request.wfile.write(content[n : n + 1])
        time.sleep(0.05)


def drip_headers(request: Request, _: bytes) -> None:
    for letter in "HTTP/1.0 200 OK\r\nX-Slow: " + 30 * "slow":
        request.wfile.write(letter.encode())
        time.sleep(0.02)


def endless(request: Request, _: bytes) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(10_000))


def no_http(request: Request, _: bytes) -> None:
    request.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def redirect_to(where: str) -> Behaviour:
    return status(302, ("Location", where))


def archive(folder: Path, *urls: str, packed: bytes = PACKED, name: str = "a.gz") -> Archive:
    digest = hashlib.md5(packed).hexdigest()
    return Archive(folder / "Set/raw" / name, urls, digest, {"a": folder / "Set/raw/a"})


def got(folder: Path, *urls: str, limits: Limits = SOON) -> bytes:
    """What is there after a fetch; and nothing is there that is of no use later."""
    fetch("set", [archive(folder, *urls)], folder, True, limits)
    assert sorted(p.name for p in (folder / "Set/raw").iterdir()) == ["a", "a.gz"]
    return (folder / "Set/raw/a").read_bytes()
