"""`python -m mnist_lab dashboard`: TensorBoard on the runs, at the address that it prints, until Ctrl-C."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from time import monotonic, sleep

import pytest
from conftest import Command
from torch.utils.tensorboard import SummaryWriter


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder with what a run logs."""
    writer = SummaryWriter(tmp_path / "outputs/mlp-mnist/2026-11-21/tensorboard")
    writer.add_scalar("train/loss", 0.5, 1)
    writer.close()
    return tmp_path / "outputs"


@pytest.mark.slow
def test_the_dashboard_serves_tensorboard_and_ends_quietly(outputs: Path) -> None:
    probe = """
import atexit, runpy, sys
atexit.register(lambda: print("heavy" if {"torch", "tensorflow"} & sys.modules.keys() else "light"))
sys.argv = ["mnist_lab", "dashboard", "port=0"]
runpy.run_module("mnist_lab", run_name="__main__", alter_sys=True)
"""
    server = subprocess.Popen(
        [sys.executable, "-c", probe], cwd=outputs.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None and server.stderr is not None
        line = server.stdout.readline()
        assert server.stdout.readline() == "Ctrl-C ends it\n"
        found = re.fullmatch(r"TensorBoard on outputs at (http://127\.0\.0\.1:\d+/)\n", line)
        assert found is not None, line
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert "<title>TensorBoard</title>" in opener.open(found[1], timeout=30).read().decode()
        tags, end = "", monotonic() + 60
        while "train/loss" not in tags and monotonic() < end:
            tags = opener.open(found[1] + "data/plugin/scalars/tags", timeout=30).read().decode()
            sleep(0.2)
        assert "mlp-mnist/2026-11-21/tensorboard" in tags and "train/loss" in tags
        server.send_signal(signal.SIGINT)
        rest, errors = server.communicate(timeout=30)
        assert server.returncode == 0 and errors == ""
        assert rest.splitlines() == ["", "light"]
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dir=nowhere"], "there is no such folder"),
        (["dir=empty"], "no run in it"),
        (["port=70000"], "from 0 to 65535"),
        (["port=PORT"], "is in use: choose another one"),
        (["host=8.8.8.8"], "host=8.8.8.8"),
        (["open=yes"], "one of true, false"),
        (["prt=1"], "Did you mean port?"),
    ],
)
def test_a_mistake_is_told_in_a_line_or_two(words: list[str], said: str, outputs: Path, lab: Command) -> None:
    (outputs.parent / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = lab("dashboard", *(word.replace("PORT", str(taken.getsockname()[1])) for word in words))
    assert done.returncode == 2 and said in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) <= 2
