"""The networks and the programs that the verb `bench` measures, and the names of the files it writes."""

from __future__ import annotations

import ctypes
import signal
import sys

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


def end_with_parent() -> None:
    """Have Linux kill this process when its parent ends, even if the parent is killed.

    For `preexec_fn`: the programs that are measured import nothing for it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
