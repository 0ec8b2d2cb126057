"""Tests press Ctrl-C. Started in the background they find it ignored, and so do all processes that they start."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let SIGINT be what it is for a person at a terminal; also in the processes that share the tests."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
