"""Numbers below 1e-38 count as 0 in ONNX Runtime's runs, and everywhere else are what they were."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LIBC = ctypes.CDLL(None)
SIZE = 64  # bytes; fenv_t has at most 32
# of fenv_t of Linux on x86-64: where MXCSR is, and the bits by which small results, and small operands, are 0
MXCSR, BITS = slice(28, 32), 1 << 15 | 1 << 6
KNOWN = sys.platform == "linux" and platform.machine() == "x86_64"  # ONNX Runtime does so on x86 only


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """What this thread computes within: the thread that asks is one of those that run a graph. ONNX Runtime sets this
    for its own threads, and for the thread that opens the first session of a process for ever; what else that computes
    would have other bits and other times.
    """
    before = ctypes.create_string_buffer(SIZE)
    LIBC.fegetenv(before)
    try:
        if KNOWN:
            within = bytearray(before.raw)
            within[MXCSR] = (int.from_bytes(within[MXCSR], "little") | BITS).to_bytes(4, "little")
            LIBC.fesetenv(bytes(within))
        yield
    finally:
        LIBC.fesetenv(before)
