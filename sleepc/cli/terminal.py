"""What a conversation needs of a terminal or a pipe: lines in, words and marks out."""

from __future__ import annotations

import sys

from rich.text import Text

from sleepc.cli.display import err, out, sleeps, write_words
from sleepc.cli.input_text import settle_input


def of_passes(mean: float | None) -> str:
    """What to say after a number of sleeps: how many passes one took; nothing if they run no block again.

    >>> of_passes(2.25), of_passes(None)
    (' of 2.25 passes', '')
    """
    return "" if mean is None else f" of {mean:.3g} passes"


class SleepMarks:
    """An answer's words on stdout, with a dim mark where the model slept: between words, and on a terminal only."""

    def __init__(self) -> None:
        self.waiting = 0  # sleeps that were not told yet
        self.begun = False

    def add(self) -> None:
        """The model has slept."""
        self.waiting += 1

    def begin(self) -> None:
        """An answer begins."""
        self.begun = False

    def write(self, piece: str) -> None:
        """Write a piece of text; a mark goes before its first space, or before the answer."""
        if piece and self.waiting and out.is_terminal:  # a message that is being read has no words: one mark for it
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
        self.tell()

    def tell(self) -> None:
        """Say on stderr how many sleeps no mark stands for."""
        if self.waiting:
            err.print(Text(f"· {sleeps(self.waiting)}", style="dim"))
        self.waiting = 0

    def _put(self, text: str) -> None:
        if text:
            write_words(text)
            self.begun = True

    def _mark(self) -> None:
        text = "· sleep" if self.waiting == 1 else f"· {sleeps(self.waiting)}"
        out.print(Text(f" {text}" if self.begun else f"{text} ", style="dim"), end="")
        self.waiting = 0


class Lines:
    """Messages from stdin: with a prompt and a history on a terminal, silently from a pipe."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        settle_input()
        if self.terminal:
            try:
                import readline  # gives input() its history and keys
            except ImportError:  # not on every system; input() works without
                return
            if "libedit" not in (readline.__doc__ or ""):
                readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one message

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
