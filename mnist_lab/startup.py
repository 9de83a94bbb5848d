"""The process of a command: its settings before anything heavy is imported, and its end."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
import warnings

from mnist_lab.torchmetrics_adapter import TorchmetricsWithoutSciPy

STARTED = time.perf_counter()
"""When the program started."""


def prepare_process() -> None:
    """Set what holds for every command. Call this before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported
        # OpenMP's threads wait for one another without leaving their cores, by default for milliseconds: beside another
        # run that is mostly for a thread which has none. Between a step's operations it takes less than 0.1 ms.
        os.environ.setdefault("GOMP_SPINCOUNT", "6000")
    sys.meta_path.insert(0, TorchmetricsWithoutSciPy())
    gc.disable()  # until all is imported, which leaves next to nothing to collect: looking for it would take 0.8 s
    atexit.register(gc.unfreeze)
    # A full disk stops the run in one line; the log and TensorBoard's thread, whose error its next event raises, would
    # show tracebacks besides.
    logging.raiseExceptions = False
    threading.excepthook = lambda end: None if isinstance(end.exc_value, OSError) else threading.__excepthook__(end)
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's: read_image says it in its own words
    for stream in (sys.stdout, sys.stderr):  # file names may hold any characters, and a log file's encoding lack some
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def collect_garbage_again() -> None:
    """Turn the garbage collector on once everything is imported; what exists by then is never looked at."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def leave() -> None:
    """End the program with exit status 0, without taking apart what was imported: that takes 1.3 s and 0.1 GB."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        return  # a thread is still at work, and the program ends in the usual order
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: there is nothing left for Ctrl-C to stop
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
