"""What one test leaves behind, or the way in which tests were started, changes no other test."""

from __future__ import annotations

import signal

import torch


def pytest_configure() -> None:
    """Let SIGINT be what it is for a person at a terminal, also where tests were started in the background; the same in
    the processes that share the tests.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_teardown() -> None:
    """ONNX Runtime's sessions leave denormal numbers off in the thread that opens them."""
    torch.set_flush_denormal(False)
