"""Settings of a process that make its steps cheaper and change no number that matters."""

from __future__ import annotations

import ctypes
import platform

import numpy as np
import torch

X86 = platform.machine() in ("x86_64", "AMD64")
BFLOAT16 = X86 and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
"""Whether the processor computes in bfloat16; False for processors that are not x86, about which torch says nothing."""


def keep_memory() -> None:
    """Keep the memory that each training step frees, for the next one.

    glibc returns large blocks to the system at once, and each of their 4 KiB pages costs a fault when it is touched
    again: a quarter of a small network's step.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # names of malloc.h
        mallopt(mmap_threshold, 2**25)  # bytes; glibc allows no more
        mallopt(trim_threshold, 2**29)


def flush_denormals() -> None:
    """Treat float32 numbers below 1.2e-38 as 0, as TensorFlow and XLA do.

    Adam's mean of a gradient that stays 0, as that of a pixel that stays dark, falls below this 830 steps later.
    Processors are slow with such numbers: a step of D's optimiser takes 250 to 300 µs with them and 180 without.

    A thread keeps the setting of the thread that started it. Call this before the first parallel operation, and only
    in a process of this program, not in one that calls `mnist_lab.train`.
    """
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)  # older NumPy warns if the first look at it finds no such numbers
    torch.set_flush_denormal(True)
