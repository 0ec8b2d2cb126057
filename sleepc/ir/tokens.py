"""Tokens of a graph's text, with their place for errors."""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

from sleepc.errors import SleepcError
from sleepc.ir.dims import MAX_INT

GRAPH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

_TOKEN = re.compile(
    r"""(?P<space>[ ]+)
    | (?P<newline>\n)
    | (?P<comment>\#[^\n]*)
    | (?P<node>%[0-9]{1,9}(?![0-9A-Za-z_]))
    | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
    | (?P<number>[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?(?![0-9A-Za-z_.]))
    | (?P<name>[A-Za-z_][A-Za-z0-9_.]*)
    | (?P<mark>[\[\](){}=:,+*-])""",
    re.VERBOSE,
)
_MAX_DIGITS = 400


class Token(NamedTuple):
    """A piece of text: its kind (a group of the pattern above), and where it starts and ends."""

    kind: str
    start: int
    end: int


class Cursor:
    """A cursor over the tokens of `text`; spaces are skipped, ends of lines are not."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.last = Token("newline", 0, 0)
        self.now = self._scan(0)

    @property
    def kind(self) -> str:
        """The kind of the next token."""
        return self.now.kind

    @property
    def peek(self) -> str:
        """The text of the next token."""
        return self.text[self.now.start : self.now.end]

    def take(self, kind: str) -> str:
        """The next token, which must be of this kind."""
        if self.now.kind != kind:
            raise self.error(f"expected a {kind}, found {self._found()}")
        return self._advance()

    def expect(self, text: str) -> None:
        """Skip the next token, which must be this."""
        if self.peek != text:
            raise self.error(f"expected {text!r}, found {self._found()}")
        self._advance()

    def string(self) -> str:
        """The value of the next token, a text in double quotes, escaped as in JSON."""
        try:
            value = json.loads(self.take("string"))
        except ValueError as error:
            raise self.error(f"not a text: {error}", back=1) from error
        assert isinstance(value, str)
        return value

    def number(self) -> int | float:
        """An integer of 64 bits or a finite float, or -inf."""
        negative = self.peek == "-"
        if negative:
            self._advance()
            if self.peek == "inf":
                self._advance()
                return -math.inf
        text = self.take("number")
        if len(text) > _MAX_DIGITS:
            raise self.error("a number is too long", back=1)
        value = float(text) if any(c in text for c in ".e") else int(text)
        value = -value if negative else value
        if math.isinf(value) or (isinstance(value, int) and not -MAX_INT <= value < MAX_INT):
            raise self.error("a number is too large", back=1)
        return value

    def until(self, marks: str) -> str:
        """The text up to one of `marks`, which stay; without spaces."""
        start = self.now.start
        while self.peek not in marks:
            if self.kind not in ("name", "number", "mark") or self.now.start != max(self.last.end, start):
                raise self.error(f"expected a size, found {self._found()}")
            self._advance()
        return self.text[start : self.last.end] if self.last.end > start else ""

    def graph_name(self) -> str:
        """A graph's name, which may hold points, dashes and digits anywhere."""
        match = GRAPH_NAME.match(self.text, self.now.start)
        if match is None:
            raise self.error(f"expected the name of a graph, found {self._found()}")
        self.last = Token("name", match.start(), match.end())
        self.now = self._scan(match.end())
        return match[0]

    def is_keyword(self) -> bool:
        """Does `name =` come next?"""
        return self.now.kind == "name" and self.text[self.now.end : self.now.end + 1] == "="

    def end_line(self) -> str:
        """Skip the end of the line; the comment before it, without its mark."""
        comment = self.take("comment")[1:].strip() if self.kind == "comment" else ""
        self.take("newline")
        return comment

    def end_of_text(self) -> None:
        """Nothing but one end of line may follow."""
        if self.kind == "newline":
            self._advance()
        if self.kind != "end":
            raise self.error(f"expected the end, found {self._found()}")

    def error(self, what: str, *, back: int = 0, fix: str = "") -> SleepcError:
        """An error at the next token, or with `back` at the one before."""
        at = self.last.start if back else self.now.start
        start = self.text.rfind("\n", 0, at) + 1
        line = self.text[start:].split("\n", 1)[0] if at - start < 200 else self.text[at - 100 : at + 60]
        place = f"line {self.text.count(chr(10), 0, at) + 1}, column {at - start + 1}"
        shown = f"    {line[:200]}"
        return SleepcError(what, where=place, fix=f"{shown}\n{fix}" if fix else shown)

    def _found(self) -> str:
        return {"end": "the end", "newline": "the end of the line"}.get(self.kind, repr(self.peek[:40]))

    def _advance(self) -> str:
        text = self.peek
        self.last = self.now
        self.now = self._scan(self.now.end)
        return text

    def _scan(self, at: int) -> Token:
        match = _TOKEN.match(self.text, at)
        if match is not None and match.lastgroup == "space":
            at = match.end()
            match = _TOKEN.match(self.text, at)
        if match is not None:
            assert match.lastgroup is not None
            return Token(match.lastgroup, at, match.end())
        return Token("end" if at == len(self.text) else "character", at, min(at + 1, len(self.text)))
