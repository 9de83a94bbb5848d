"""The verb `dashboard`: TensorBoard on all runs below a folder."""

from __future__ import annotations

import errno
import io
import os
import socket
import sys
import time
import webbrowser
from contextlib import redirect_stderr
from types import ModuleType

from mnist_lab.errors import UserError, printable
from mnist_lab.files import check_contents
from mnist_lab.rules import one_of, whole_number
from mnist_lab.show.guard import guarded
from mnist_lab.words import parse_options, path_of

USAGE = "use: python -m mnist_lab dashboard [dir=outputs] [port=6006] [host=127.0.0.1] [open=true|false]"


def dashboard(words: list[str]) -> None:
    """Serve TensorBoard until Ctrl-C, and open it in a browser if there is a screen.

    Args:
        words: `dir=FOLDER` (outputs), `port=NUMBER` (6006; 0: any free one), `host=ADDRESS` (127.0.0.1, which only
            this machine can reach) and `open=true` or `false`.

    Raises:
        UserError: a word is not understood, there is nothing to show, or the port is taken.
    """
    defaults = {"dir": "outputs", "port": "6006", "host": "127.0.0.1", "open": "true"}
    options = parse_options(words, defaults, USAGE)
    folder, host = path_of(options["dir"]), options["host"]
    port = whole_number("port", options["port"], 0, 65535)
    one_of("true", "false").check("open", options["open"])
    if not folder.is_dir():
        raise UserError(f"dir={folder}: there is no such folder. A run makes it: python -m mnist_lab model=mlp")
    if not (logged := list(folder.rglob("*tfevents*"))):
        raise UserError(f"dir={folder}: no run in it has logged for TensorBoard. One that does: python -m mnist_lab")

    for parent in {path.parent for path in (*logged, *folder.rglob("config.yaml"))}:
        check_contents(parent)  # TensorBoard follows links, and waits for pipes
    try:  # if the port is taken, TensorBoard's server would end the program
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port={port} is in use: choose another one, or port=0 for any that is free") from None
        raise UserError(f"host={host} port={port}: {error.strerror}") from None

    # TensorBoard would import TensorFlow if it is installed, as in mnist_lab/build.py.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from tensorboard.program import TensorBoard, WerkzeugServer

    board = TensorBoard(server_class=lambda application, flags: WerkzeugServer(guarded(application, host), flags))
    of_every_epoch = "--samples_per_plugin=images=1000,pr_curves=1000"  # instead of ten and a hundred of them
    board.configure(("", f"--logdir={folder}", f"--port={port}", f"--host={host}", of_every_epoch))
    with redirect_stderr(io.StringIO()):  # it prints advice on flags that this command doesn't have
        url = board.launch()
    print(printable(f"TensorBoard on {folder} at {url}\nCtrl-C ends it"), flush=True)
    # Without a screen Python would start a browser in the terminal.
    has_screen = sys.platform in ("win32", "darwin") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if options["open"] == "true" and has_screen:
        webbrowser.open(url)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()
