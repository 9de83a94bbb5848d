"""The verb `draw`: a page on this machine to draw on while a run's network classifies the drawing."""

from __future__ import annotations

import base64
import io
import json
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mnist_lab.errors import UserError
from mnist_lab.rules import one_of, whole_number
from mnist_lab.run_folder import checkpoint_of, load_config
from mnist_lab.show.guard import objection
from mnist_lab.words import parse_options, path_of

if TYPE_CHECKING:
    from mnist_lab.trained import TrainedRun

USAGE = (
    "use: python -m mnist_lab draw run=DIR [checkpoint=last|best] [prepare=auto|digit|resize] [port=7860] "
    "[host=127.0.0.1]"
)
LARGEST_BODY = 1_000_000
"""Most bytes of a request: the page's own pictures have a hundredth of that."""
LARGEST_PICTURE = 4_000_000
"""Most pixels of a picture."""
CONNECTIONS = 32
"""Most connections at a time; a browser makes six."""
AT_ONCE = 2
"""Most pictures that are decoded at a time; the others wait."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def draw(words: list[str]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        words: `run=DIR`, and `checkpoint=`, `prepare=`, `port=` (0: any free one) and `host=`.

    Raises:
        UserError: there is no such run, a word is not understood, or the port can't be used.
    """
    defaults = {"run": "", "checkpoint": "", "prepare": "auto", "port": "7860", "host": "127.0.0.1"}
    options = parse_options(words, defaults, USAGE, needed=("run",))
    port = whole_number("port", options["port"], 0, 65535)
    one_of("auto", "digit", "resize").check("prepare", options["prepare"])
    run_dir = path_of(options["run"])
    cfg = load_config(run_dir, [])
    checkpoint_of(run_dir, options["checkpoint"] or cfg.test_checkpoint)
    server = Server(options["host"], port)
    try:
        from mnist_lab.trained import load_classifier

        server.serve(load_classifier(run_dir, options["checkpoint"] or None), options["prepare"])
    except KeyboardInterrupt:
        print(file=sys.stderr)
    finally:
        server.server_close()


class Server(ThreadingHTTPServer):
    """Answers `GET /` with the page, and `POST /predict`, whose body is an image file, with a network's prediction.

    Args:
        host: the address to listen on.
        port: 0 to 65535; 0: any free one.

    Raises:
        UserError: the port is taken, or the host is no address of this machine.
    """

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.seats, self._connections = threading.Semaphore(AT_ONCE), threading.Semaphore(CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (socket.gaierror, UnicodeError) as error:
            raise UserError(f"host={host}: there is no such address") from error
        except OSError as error:
            raise UserError(
                f"port={port} of {host} can't be used: {error.strerror}. Choose another with port=NUMBER, or port=0"
            ) from error

    def serve(self, trained: TrainedRun, prepare: str = "auto") -> None:
        """Print the page's address, and answer requests until interrupted.

        Args:
            trained: the run.
            prepare: "auto", "digit" or "resize", as `mnist_lab.show.predict.preparation` takes it.
        """
        from mnist_lab.show.predict import preparation

        self.trained = trained
        self.preparation = preparation(trained, prepare)
        names = json.dumps(trained.class_names).replace("<", "\\u003c")
        page = files("mnist_lab.show").joinpath("draw.html").read_text(encoding="utf-8")
        self.page = page.replace("/*CLASSES*/[]", names).encode()
        host = f"[{self.host}]" if ":" in self.host else self.host
        print(f"draw at   http://{host}:{self.server_port}/\nto end    Ctrl-C", flush=True)
        self.serve_forever()

    def see(self, picture: bytes) -> dict[str, Any]:
        """Return the network's prediction for a picture.

        Args:
            picture: the content of an image file.

        Returns:
            "probabilities", those of the classes in their order; "image", what the network saw, a PNG file as a data:
            URL; "inverted", whether the picture was dark on light.

        Raises:
            UserError: it is no image, or nothing is drawn in it.
        """
        from PIL import Image

        from mnist_lab.pictures import read_image
        from mnist_lab.show.prepare import DRAFT, prepare

        draft = DRAFT if self.preparation.kind == "digit" else None
        pixels, inverted = prepare(read_image(io.BytesIO(picture), draft, LARGEST_PICTURE), self.preparation)
        file = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG")
        return {
            "probabilities": self.trained.predict(pixels[None])[0].tolist(),
            "image": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
            "inverted": inverted,
        }

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread of its own, or close it where there are too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the browser closes before it has the answer."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Handles one connection's requests."""

    server: Server
    timeout = 30
    protocol_version = "HTTP/1.1"  # the page asks many times: one connection serves them all
    wbufsize = -1  # an answer leaves in one piece: a second would wait 40 ms for the first to be acknowledged

    def do_GET(self) -> None:
        """Send the page."""
        if not self._is_meant():
            return
        if self.path.partition("?")[0] == "/":
            self._answer(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, f"{self.path}: there is no such page")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Send what the network sees in the image file in the request's body."""
        if not self._is_meant():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/predict":
            self.send_error(HTTPStatus.NOT_FOUND, f"{self.path}: there is no such page")
        elif not (length.isascii() and length.isdigit()):
            self.send_error(HTTPStatus.LENGTH_REQUIRED, "the request doesn't say how long it is")
        elif len(length) > 9 or int(length) > LARGEST_BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"larger than {LARGEST_BODY:,} bytes")
        else:
            body = self._body(int(length))
            try:
                with self.server.seats:
                    seen = self.server.see(body)
                self._answer(HTTPStatus.OK, json.dumps(seen).encode(), "application/json")
            except UserError as error:
                reason = json.dumps({"error": str(error)}).encode()
                self._answer(HTTPStatus.UNPROCESSABLE_ENTITY, reason, "application/json")

    def _body(self, length: int) -> bytes:
        """Read a request's body, in no more than `timeout` seconds.

        Raises:
            TimeoutError: it takes longer.
        """
        body, end = b"", time.monotonic() + self.timeout
        while len(body) < length:
            self.connection.settimeout(max(0.001, end - time.monotonic()))
            part = self.rfile.read1(length - len(body))
            if not part:
                raise TimeoutError
            body += part
        self.connection.settimeout(self.timeout)
        return body

    def _is_meant(self) -> bool:
        """Refuse requests of other sites' pages, and of other users of this machine."""
        ports = self.client_address[1], self.server.server_port
        why = objection(self.command, self.headers, self.server.host, ports)  # type: ignore[arg-type]
        if why is not None:
            self.send_error(HTTPStatus.FORBIDDEN, why)
        return why is None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request, without reading the rest of it."""
        self.close_connection = True
        reason = message or HTTPStatus(code).phrase
        self._answer(code, json.dumps({"error": reason}).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        headers |= {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        headers |= {"X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""
