"""`draw`: a page on this machine that shows what the network makes of each stroke, and answers to nobody else."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import warm
from conftest import Command
from PIL import Image

from mnist_lab.data import mnist_5k
from mnist_lab.trained import load_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@contextmanager
def drawing(cnn_run: Path, *more: str) -> Iterator[tuple[str, int]]:
    """Host and port of a running `draw`, which Ctrl-C ends quietly."""
    with TemporaryDirectory() as folder:
        shown = Path(folder) / "shown"
        server = warm.start(["draw", f"run={cnn_run}", "port=0", *more], Path(folder), shown)
        try:
            found, out = None, Path(folder) / "shown.out"
            for _ in range(1200):
                if found is not None or not server.is_alive():
                    break
                time.sleep(0.05)
                found = re.match(r".*http://([\d.]+|\[[\d:]+\]):(\d+)/.*\n", out.read_text() if out.exists() else "")
            assert found is not None and server.pid is not None
            yield found[1], int(found[2])
            os.kill(server.pid, signal.SIGINT)
            server.join(30)
            assert server.exitcode == 0 and Path(f"{shown}.err").read_text().strip() == ""
        finally:
            server.kill()
            server.join(10)


@pytest.fixture(scope="module")
def address(cnn_run: Path) -> Iterator[tuple[str, int]]:
    with drawing(cnn_run) as found:
        yield found


def ask(
    address: tuple[str, int], method: str, path: str, body: bytes | None = None, /, **headers: str
) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_image_is_answered_with_its_probabilities_and_what_was_seen(cnn_run: Path, address: tuple[str, int]) -> None:
    found = mnist_5k(Path(), False)
    assert isinstance(found.test_images, torch.Tensor)
    image = found.test_images[0, 0].numpy()
    status, body, headers = ask(address, "POST", "/predict", png(image))
    answer = json.loads(body)
    assert status == 200 and headers["Content-Type"] == "application/json"
    expected = load_run(cnn_run, device="cpu").predict(image[None])[0].tolist()
    assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert answer["image"].startswith("data:image/png;base64,") and answer["inverted"] is False


def test_the_page_is_whole_and_asks_no_other_machine(address: tuple[str, int]) -> None:
    status, body, headers = ask(address, "GET", "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    page = body.decode()
    assert '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]' in page
    assert not re.search(r"(?:src|href)=\"?(?!data:)\w|https?://|@import", page)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6")
def test_the_drawing_page_is_served_over_ipv6(cnn_run: Path) -> None:
    with drawing(cnn_run, "host=::1") as (host, port):
        assert host == "[::1]"
        assert ask((host[1:-1], port), "GET", "/")[0] == 200


def test_a_body_that_is_no_drawing_is_refused_in_json(address: tuple[str, int]) -> None:
    refused = {
        404: ask(address, "GET", "/other"),
        403: ask(address, "GET", "/", Host="evil.example:7860"),
        411: ask(address, "POST", "/predict", None, **{"Content-Length": "many"}),
        413: ask(address, "POST", "/predict", None, **{"Content-Length": "1000001"}),
        422: ask(address, "POST", "/predict", b"no image"),
        501: ask(address, "DELETE", "/predict"),
    }
    for status, (found, body, headers) in refused.items():
        assert found == status
        assert headers["Content-Type"] == "application/json" and json.loads(body)["error"]
    assert ask(address, "POST", "/predict", b"x", Host="evil.example")[0] == 403
    status, body, _ = ask(address, "POST", "/predict", png(np.zeros((280, 280), np.uint8)))
    assert status == 422 and "nothing is drawn" in json.loads(body)["error"]
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert ask(address, "GET", "/", Host=host)[0] == 200


def test_a_port_in_use_and_other_mistakes_of_draw_are_one_line(
    cnn_run: Path, address: tuple[str, int], lab: Command
) -> None:
    for words, part in (
        ([f"run={cnn_run}", f"port={address[1]}"], "can't be used"),
        ([f"run={cnn_run}", "port=70000"], "from 0 to 65535"),
        ([f"run={cnn_run}", "host=no.such.host.invalid"], "no such address"),
        ([f"run={cnn_run}", "prot=1"], "Did you mean port?"),
        ([], "which run?"),
        (["run=nowhere"], "there is no such folder"),
    ):
        done = lab("draw", *words)
        assert done.returncode == 2 and part in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_strokes_move_the_bars_and_clear_takes_them_back(device: str, address: tuple[str, int]) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    playwright.expect.set_options(timeout=60_000)  # milliseconds: other tests are at work beside this one
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(**(phone if device == "phone" else {})).new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(f"http://{address[0]}:{address[1]}/")
        box = page.locator("canvas").bounding_box()

        def at(x: float, y: float) -> tuple[float, float]:
            return box["x"] + x * box["width"], box["y"] + y * box["height"]

        def touch(kind: str, *place: float) -> None:
            points = [{"x": place[0], "y": place[1]}] if place else []
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        if device == "phone":
            session = page.context.new_cdp_session(page)
            touch("touchStart", *at(0.5, 0.2))
            for y in range(25, 85, 5):
                touch("touchMove", *at(0.5, y / 100))
        else:
            page.mouse.move(*at(0.5, 0.2))
            page.mouse.down()
            page.mouse.move(*at(0.5, 0.8), steps=12)
        playwright.expect(page.locator("#class")).to_have_text("1")  # still drawing
        assert page.locator("li.best span").first.inner_text() == "1"
        bars = page.locator("li span:last-child").all_inner_texts()
        assert len(bars) == 10 and sum(float(bar.split()[0]) for bar in bars) == pytest.approx(100, abs=0.6)
        assert page.locator("#seen").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [28, 28]
        if device == "phone":
            touch("touchEnd")
            assert page.evaluate("scrollY") == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            page.locator("#clear").tap()
        else:
            page.mouse.up()
            page.locator("#clear").focus()
            page.keyboard.press("Enter")
        playwright.expect(page.locator("#class")).to_have_text("–")
        assert page.locator("#seen").is_hidden() and page.locator("#clear").is_disabled()
        assert problems == []
        browser.close()
