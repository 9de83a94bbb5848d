"""The servers of `draw` and `dashboard` answer their own pages, and bound what a request may cost."""

import http.client
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from mnist_lab.errors import UserError
from mnist_lab.show import draw
from mnist_lab.show.dashboard import dashboard
from mnist_lab.show.draw import Handler, Server

FOREIGN = [
    {"Host": "evil.example"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    """The port of a server that answers meanwhile."""
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def ask(port: int, method: str, path: str, body: bytes | None = None, /, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.read()


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, int]]:
    """A server whose pictures are seen without a network."""
    server = Server("127.0.0.1", 0)
    server.page = b"drawing board"
    monkeypatch.setattr(server, "see", lambda picture: {"image": "seen"})
    with serving(server) as port:
        yield server, port


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_site_s_page_gets_no_answer(headers: dict[str, str], drawing: tuple[Server, int]) -> None:
    port = drawing[1]
    for method, path in (("POST", "/predict"), ("GET", "/")):
        status, body = ask(port, method, path, b"x" if method == "POST" else None, **headers)
        assert status == 403 and b"seen" not in body and b"drawing" not in body


def test_the_own_page_and_a_link_to_it_are_answered(drawing: tuple[Server, int]) -> None:
    port = drawing[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"{socket.gethostname()}:{port}"):
        own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert ask(port, "POST", "/predict", b"x", **own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(port, "GET", "/", **link)[0] == 200
    assert ask(port, "POST", "/predict", b"x", **link)[0] == 403


def asked_by(user: int, port: int) -> bytes:
    """What a process of another user is answered."""
    reader, writer = os.pipe()
    if (process := os.fork()) == 0:
        try:
            os.setuid(user)
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                os.write(writer, connection.recv(10_000))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(process, 0)
    return answer


@pytest.mark.skipif(not (sys.platform == "linux" and os.getuid() == 0), reason="only root can become another user")
def test_another_user_of_the_machine_gets_no_answer(drawing: tuple[Server, int]) -> None:
    assert b"drawing board" in asked_by(0, drawing[1])
    refused = asked_by(65534, drawing[1])
    assert b" 403 " in refused and b"drawing board" not in refused


def test_two_pictures_are_decoded_at_a_time(drawing: tuple[Server, int], monkeypatch: pytest.MonkeyPatch) -> None:
    server, port = drawing
    now, most = [0], [0]

    def see(picture: bytes) -> dict[str, Any]:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.02)
        now[0] -= 1
        return {}

    monkeypatch.setattr(server, "see", see)
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda _: ask(port, "POST", "/predict", b"x")[0], range(24)))
    assert found == [200] * 24 and most[0] == 2


def test_connections_are_bounded(drawing: tuple[Server, int]) -> None:
    port = drawing[1]
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(draw.CONNECTIONS)]
    for connection in idle:
        connection.sendall(b"GET / HTTP/1.1\r\n")
    time.sleep(0.3)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as one_more:
        one_more.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if one_more.recv(1) == b"":
            raise ConnectionResetError
    for connection in idle:
        connection.close()
    time.sleep(0.3)
    assert ask(port, "GET", "/")[0] == 200, "there is room again"


def test_a_body_that_trickles_is_not_waited_for(drawing: tuple[Server, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "timeout", 0.5)
    with socket.create_connection(("127.0.0.1", drawing[1]), timeout=10) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 8:
                slow.sendall(b"x")
                time.sleep(0.2)
        assert time.monotonic() - began < 5


def test_a_picture_of_more_than_four_megapixels_is_refused_unread() -> None:
    server = Server("127.0.0.1", 0)
    server.preparation = SimpleNamespace(kind="digit")  # type: ignore[assignment]
    file = io.BytesIO()
    Image.fromarray(np.zeros((2001, 2000), np.uint8)).save(file, "PNG")
    assert len(file.getvalue()) < 65_000
    with pytest.raises(UserError, match="4,000,000 pixels"):
        server.see(file.getvalue())
    server.server_close()


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run's events."""
    SummaryWriter(tmp_path / "outputs/run/tensorboard").close()
    (tmp_path / "outputs/run/config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


@pytest.mark.slow
def test_tensorboard_answers_its_own_pages(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program: Any = import_module("tensorboard.program")  # its package has a stand-in of that name

    servers: list[Any] = []

    class Kept(program.WerkzeugServer):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            servers.append(self)

    wait = time.sleep

    def asked(seconds: float) -> None:
        if seconds < 3600:  # TensorBoard's own
            return wait(seconds)
        port = servers[0].server_port
        for headers in FOREIGN:
            assert ask(port, "GET", "/data/environment", **headers)[0] == 403, headers
        assert ask(port, "GET", "/data/environment")[0] == 200
        assert b"TensorBoard" in ask(port, "GET", "/", Host=f"localhost:{port}")[1]
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "WerkzeugServer", Kept)
    monkeypatch.setattr("mnist_lab.show.dashboard.time.sleep", asked)
    dashboard(["port=0", "open=false"])
    assert len(servers) == 1
    servers[0].shutdown()


def test_tensorboard_gets_no_pipes_and_no_links_out_of_a_run(board: Path, tmp_path: Path) -> None:
    os.mkfifo(board / "run/tensorboard/events.out.tfevents.9.x")
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        dashboard(["port=0", "open=false"])
    (board / "run/tensorboard/events.out.tfevents.9.x").unlink()
    (board / "run/more").symlink_to(tmp_path)
    with pytest.raises(UserError, match="more is a link to"):
        dashboard(["port=0", "open=false"])
