"""What a conversation needs of a terminal or a pipe: lines in, words and marks out, and Ctrl-C."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.text import Text

from sleepc.cli.display import err, number, out


def sleeps(count: int) -> str:
    """A number of sleeps in words.

    >>> sleeps(1), sleeps(1200)
    ('1 sleep', '1 200 sleeps')
    """
    return f"{number(count)} sleep{'' if count == 1 else 's'}"


def of_passes(mean: float | None) -> str:
    """What to say after a number of sleeps: how many passes one took; nothing where they run no block again.

    >>> of_passes(2.25), of_passes(None)
    (' of 2.25 passes', '')
    """
    return "" if mean is None else f" of {mean:.3g} passes"


class Marks:
    """An answer's words on stdout, with a dim mark where the model slept: between words, and on a terminal only."""

    def __init__(self) -> None:
        self.waiting = self.all = 0
        self.begun = False

    def add(self) -> None:
        """The model has slept."""
        self.waiting += 1
        self.all += 1

    def begin(self) -> None:
        """An answer begins."""
        self.waiting, self.all, self.begun = 0, 0, False

    def write(self, piece: str) -> None:
        """Write a piece of text; a mark goes before its first space, or before the answer."""
        if self.waiting and out.is_terminal:
            at = 0 if not self.begun else next((i for i, c in enumerate(piece) if c.isspace()), -1)
            if at >= 0:
                self._put(piece[:at])
                self._mark()
                piece = piece[at:]
        self._put(piece)

    def end(self) -> None:
        """The answer has ended."""
        if self.waiting and out.is_terminal:
            self._mark()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if self.all and not out.is_terminal:
            err.print(Text(f"· {sleeps(self.all)}", style="dim"))

    def _put(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self.begun = True

    def _mark(self) -> None:
        text = "· sleep" if self.waiting == 1 else f"· {sleeps(self.waiting)}"
        out.print(Text(f" {text}" if self.begun else f"{text} ", style="dim"), end="")
        self.waiting = 0


class Lines:
    """Messages from stdin: with a prompt and a history on a terminal, silently from a pipe."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text do not end a conversation
        if self.terminal:
            try:
                import readline  # noqa: F401  # gives input() its history and keys
            except ImportError:  # not on every system; input() works without
                return

    def read(self) -> str | None:
        """The next message, lines that end with a backslash joined with the next; None at the end of the input."""
        lines: list[str] = []
        while True:
            line = self._line("… " if lines else "> ")
            if line is None:
                return "\n".join(lines) if lines else None
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _line(self, prompt: str) -> str | None:
        if not self.terminal:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        if not sys.stdout.isatty():  # input() would write the prompt among the answers
            sys.stderr.write(prompt)
            sys.stderr.flush()
            prompt = ""
        try:
            return input(prompt)
        except EOFError:
            err.print()
            return None


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C only leaves word, so that a step comes to its end; a second one interrupts as ever.

    Yields a function: was it pressed?
    """
    pressed = False

    def press(signum: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def leaving() -> Iterator[None]:
    """Within it a request to end (SIGTERM, or SIGHUP from a terminal that closes) raises SystemExit."""

    def leave(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    kinds = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = [(kind, signal.signal(kind, leave)) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in before:
            signal.signal(kind, handler)
