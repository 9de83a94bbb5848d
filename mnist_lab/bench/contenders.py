"""The networks and the programs that the verb `bench` measures, how it runs them, and the files that it writes."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NETWORKS = ("A3", "B", "C", "D")
CONTENDERS = {
    "ours": "python -m mnist_lab",
    "our_loop": "a hand-written loop around our network, batches and optimiser",
    "pytorch": "hand-written PyTorch loop",
    "keras_tensorflow": "Keras on TensorFlow",
    "keras_jax": "Keras on JAX",
    "lightning": "Lightning with torchvision's DataLoader",
}
RECORD = "the public record recipe"
PEERS = {**{name: words for name, words in CONTENDERS.items() if not name.startswith("our")}, "record": RECORD}
MEASURED = ("measurements.csv", "race.csv")
BEST_OF = ("pytorch", "keras_tensorflow", "keras_jax")
NEEDS = {"keras_tensorflow": ("keras", "tensorflow"), "keras_jax": ("keras", "jax")}


@contextmanager
def running(words: list[str], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run `python -m WORDS` in a process that ends with the block; on Linux also with this process, if it is killed.

    Args:
        words: module and arguments.
        how: arguments of `subprocess.Popen`.
    """

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    # Python drops an exception that a signal handler raises during a fork: deliver signals afterwards.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process = subprocess.Popen([sys.executable, "-m", *words], preexec_fn=prepare, **how)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield process
        finally:
            process.kill()
            process.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
