"""How a command ends before its end: Ctrl-C (SIGINT), or from outside (SIGTERM, or SIGHUP of a terminal that closes)."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REQUESTS = (signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))
AGAIN = 0.01  # seconds until a signal that got lost is sent again
STARTS_OVER = "nothing half-written was left; the same command starts over"


class Ended(SystemExit):
    """The command was ended by a signal; `said` is what a person should know, "" if that was said already."""

    def __init__(self, signum: int, said: str = STARTS_OVER) -> None:
        self.signum, self.said = signum, said
        super().__init__(128 + signum)

    def __str__(self) -> str:
        how = "interrupted" if self.signum == signal.SIGINT else f"ended by {signal.Signals(self.signum).name}"
        return f"{how}: {self.said}"


ENDS = (KeyboardInterrupt, Ended)  # what a signal raises in the middle of something


def signal_of(end: BaseException) -> int:
    """Which signal it was."""
    return end.signum if isinstance(end, Ended) else signal.SIGINT


@contextmanager
def _handled(handler: Callable[[int, object], None], kinds: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Signals go to `handler`, but those that are ignored (nohup, a job in the background of a script) stay so."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may have handlers
        yield
        return
    # getsignal is None for handlers that Python did not set, and cannot set again.
    before = [(kind, old) for kind in kinds if (old := signal.getsignal(kind)) not in (signal.SIG_IGN, None)]
    for kind, _ in before:
        signal.signal(kind, handler)
    try:
        yield
    finally:
        with _held_back(kinds):
            for kind, old in before:
                signal.signal(kind, old)


@contextmanager
def _held_back(kinds: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Signals come when it ends. One that came between two calls of signal.signal was lost in two of five runs of the
    tests of chat (docs/log.md).
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on every system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kinds)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _sent_again() -> Iterator[None]:
    """A signal that came while something was being freed is sent again: what its handler raises there is not raised
    further, and the command would go on (seen with weak references of PyTorch's).
    """
    before = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, ENDS):
            threading.Timer(AGAIN, os.kill, (os.getpid(), signal_of(lost.exc_value))).start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def endable() -> Iterator[None]:
    """Within it a request to end raises Ended, so that what was begun is cleared away, as after Ctrl-C."""

    def end(signum: int, frame: object) -> None:
        raise Ended(signum)

    with _handled(end, REQUESTS), _sent_again():
        yield


@contextmanager
def stopping(told: Callable[[], None] = lambda: None) -> Iterator[Callable[[], int]]:
    """Within it the first signal only leaves a note (and calls `told`), so that a step comes to its end; the second one
    raises as ever: KeyboardInterrupt or Ended.

    Yields a function: the signal that came, or 0.
    """
    came = 0

    def leave_word(signum: int, frame: object) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt if signum == signal.SIGINT else Ended(signum)
        came = signum
        told()

    with _handled(leave_word, (signal.SIGINT, *REQUESTS)):
        yield lambda: came
