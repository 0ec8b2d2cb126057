"""Streaming text: joined pieces are the whole text, and nothing is shown too early."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sleepc.errors import UsageError
from sleepc.runtime.text import INCOMPLETE, Decoder, Detokenizer, StopStrings, TextStream


class Bytes:
    """Every token is one byte."""

    def decode(self, ids: list[int], /) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class Fallback:
    """Words with a leading space that a text's start drops, special tokens that are no text, and
    runs of bytes that are all incomplete until the whole run is text."""

    words = (" the", " cat", "s", "", "é")

    def decode(self, ids: list[int], /) -> str:
        text, run = "", b""
        for token in [*ids, -1]:
            if token >= len(self.words):
                run += bytes([token - len(self.words)])
                continue
            try:
                text += run.decode()
            except UnicodeDecodeError:
                text += INCOMPLETE * len(run)
            run = b""
            text += self.words[token] if token >= 0 else ""
        return text.removeprefix(" ")


def pieces(tokenizer: Decoder, ids: list[int]) -> list[str]:
    stream = Detokenizer(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


@given(st.text(max_size=30))
@example("日本語 👩‍👩‍👧 é")
def test_bytes_of_a_text(text: str) -> None:
    got = pieces(Bytes(), list(text.encode()))
    assert "".join(got) == text
    assert all(INCOMPLETE not in piece for piece in got) or INCOMPLETE in text


@given(st.lists(st.integers(0, 255), max_size=40))
@example([0xF0, 0x9F, 0x98])
@example([0xE2, 0x28, 0xA1])
def test_any_bytes(ids: list[int]) -> None:
    assert "".join(pieces(Bytes(), ids)) == Bytes().decode(ids)


BYTES_OF = st.sampled_from("a日🙂é").map(lambda c: [b + len(Fallback.words) for b in c.encode()])
TOKENS = st.lists(st.integers(0, len(Fallback.words) - 1).map(lambda i: [i]) | BYTES_OF)


@given(TOKENS)
@example([[3], [0], [3], [1]])
def test_leading_spaces_special_tokens_and_byte_runs(groups: list[list[int]]) -> None:
    ids = [token for group in groups for token in group]
    assert "".join(pieces(Fallback(), ids)) == Fallback().decode(ids)


def test_characters_come_whole_and_at_once() -> None:
    assert pieces(Bytes(), list("aé🙂".encode())) == ["a", "", "é", "", "", "", "🙂", ""]
    assert pieces(Bytes(), [0x41, 0xE2]) == ["A", "", INCOMPLETE]


def test_the_work_per_token_does_not_grow() -> None:
    class Counting(Bytes):
        longest = 0

        def decode(self, ids: list[int], /) -> str:
            self.longest = max(self.longest, len(ids))
            return super().decode(ids)

    tokenizer = Counting()
    pieces(tokenizer, list("héllo 🙂 ".encode() * 50))
    assert tokenizer.longest <= 8
    garbage = pieces(tokenizer, [0xFF] * 500)
    assert "".join(garbage) == INCOMPLETE * 500
    assert tokenizer.longest <= 200, "bytes that are no text do not pile up"


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def until_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the first end of a stop string, the longest of those that end there."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            found = max(ending, key=len)
            return text[: end - len(found)], found
    return text, None


@given(st.lists(st.text("abc", max_size=4), max_size=8), STOPS)
def test_stop_strings_however_the_text_is_cut(parts: list[str], stops: list[str]) -> None:
    stream, shown = StopStrings(stops), ""
    expected, found = until_stop("".join(parts), stops)
    for part in parts:
        shown += stream.push(part)
        assert expected.startswith(shown), "shown too much"
    assert shown + stream.finish() == expected
    assert stream.found == found
    assert stream.push("more") == "" or found is None


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stream = StopStrings(["\nUser:"])
    assert [stream.push(t) for t in ("Hi", "\n", "Us", "e", "!")] == ["Hi", "", "", "", "\nUse!"]
    assert StopStrings([]).push("all") == "all"


def test_stop_strings_that_are_none() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["a", ""])
    with pytest.raises(UsageError, match="list of texts"):
        StopStrings("ab")


def test_text_stream() -> None:
    stream = TextStream(Bytes(), ["é!"])
    shown = [stream.push(b) for b in "aé?é!z".encode()]
    assert "".join(shown) + stream.finish() == "aé?"
    assert stream.stopped == "é!"
    open_end = TextStream(Bytes(), ["é!"])
    assert [open_end.push(b) for b in "é".encode()] == ["", ""]
    assert open_end.finish() == "é"
    assert open_end.stopped is None
