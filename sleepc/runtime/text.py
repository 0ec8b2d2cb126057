"""Text while it is being generated: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sleepc.errors import UsageError

INCOMPLETE = "\ufffd"  # what tokenizers put where bytes are not (yet) a character
MOST_HELD = 64  # tokens; a character has four bytes, so these bytes will never be one


class Decoder(Protocol):
    """The part of a tokenizer that is needed (switch cleaning up of spaces off: it looks back)."""

    def decode(self, ids: list[int], /) -> str:
        """The text of the ids."""


class Detokenizer:
    """Token by token to text, so that the pieces joined are the text of all tokens.

    Only the tokens since the last piece, and those of the last piece as their context (a leading
    space is dropped at the start of a text, and only there), are decoded again for each token.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # how many of _ids are context
        self._sent = 0  # how much of their text has been given out

    def push(self, token: int) -> str:
        """The text that has become certain with this token; "" while a character is incomplete."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if len(self._ids) - self._context <= MOST_HELD and text.endswith(INCOMPLETE):
            return self._give(text, len(text.rstrip(INCOMPLETE)))
        piece = self._give(text, len(text))
        if piece:
            del self._ids[: self._context]
            self._context = len(self._ids)
            self._sent = len(self._tokenizer.decode(self._ids))
        return piece

    def finish(self) -> str:
        """The text that was held back, incomplete as it is."""
        text = self._tokenizer.decode(self._ids)
        return self._give(text, len(text))

    def _give(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


class StopStrings:
    """Passes text on up to the stop string that is completed first, and says which it was.

    A text's end that may become a stop string is held back. The result does not depend on how
    the text is cut into pieces. Raises UsageError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(stops):
            raise UsageError("a stop string is empty", fix="give a list of texts, or none")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to come before any stop string."""
        if self.found is not None:
            return ""
        self._held += text
        ends = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if ends:
            start, self.found = min(ends, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            return self._give(start, rest="")
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        return self._give(len(self._held) - keep, rest=None)

    def finish(self) -> str:
        """What was held back in case a stop string followed."""
        return self._give(len(self._held), rest="")

    def _give(self, end: int, rest: str | None) -> str:
        piece = self._held[:end]
        self._held = self._held[end:] if rest is None else rest
        return piece


class TextStream:
    """Detokenizer and stop strings in one: `push` tokens until `stopped`, then `finish`."""

    def __init__(self, tokenizer: Decoder, stops: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> str | None:
        """The stop string that was met, if any."""
        return self._stops.found

    def push(self, token: int) -> str:
        """The text that may be shown now."""
        return self._stops.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """The text that was held back; nothing after a stop string."""
        return self._stops.push(self._detokenizer.finish()) + self._stops.finish()


def _overlap(text: str, stop: str) -> int:
    """How long an end of `text` is that `stop` begins with, less than all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
