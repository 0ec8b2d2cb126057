"""What one test leaves behind, or the way in which tests were started, changes no other test."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
from torch.export import export

from tests.exports import once


def pytest_configure() -> None:
    """Let SIGINT be what it is for a person at a terminal, also where tests were started in the background; the same in
    the processes that share the tests.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.set_threshold(20_000, 10, 20)  # exports make many objects, few of them garbage: a tenth of the time went here


def pytest_collection_finish() -> None:
    """Half a million objects of packages and tests stay to the end: they are not looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def equal_models_are_exported_once() -> Iterator[None]:
    """Half of what the tests compute, else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sleepc.capture.export.export", once(export))
        yield
