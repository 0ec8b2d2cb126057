"""Text that a person gives: in a file, on standard input, or on the command line; UTF-8, or refused."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from pathlib import Path
from typing import TextIO

from sleepc.errors import UsageError

ESCAPED = range(0xDC80, 0xDD00)  # how Python holds bytes that are not UTF-8


def read_text(path: Path | None) -> str | None:
    """The text of a file; None for no file. Raises UsageError if it cannot be read as UTF-8."""
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            if _has_no_end(file):
                raise UsageError(f"cannot read {path}: it is a device", fix="Give a text file.")
            return check_words(file.read(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", fix="Give a text file.") from error


def _has_no_end(file: TextIO) -> bool:
    """Is it a device other than a terminal and the empty one? Pipes come to an end."""
    status = os.fstat(file.fileno())
    device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return device and not file.isatty() and status.st_rdev != os.stat(os.devnull).st_rdev


def settle_input() -> None:
    """Let standard input keep bytes that are not UTF-8, for `check_words` to name them."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=None if sys.stdin.isatty() else "utf-8", errors="surrogateescape")


def read_input() -> str:
    """All of standard input. Raises UsageError if it is not UTF-8."""
    settle_input()
    return check_words(sys.stdin.read(), "standard input")


def check_words(text: str, source: str) -> str:
    """`text` itself. Raises UsageError, naming the first byte and its line, if what it came from was not UTF-8."""
    at = next((i for i, character in enumerate(text) if ord(character) in ESCAPED), None)
    if at is None:
        return text
    byte, line = ord(text[at]) - 0xDC00, text.count("\n", 0, at) + 1
    raise UsageError(
        f"{source} is not UTF-8 text: byte 0x{byte:02x} in line {line}",
        fix="Give UTF-8 text (iconv -f ENCODING -t UTF-8 turns other encodings into it).",
    )


def read_options(text: Path | None, tokens: Path | None) -> tuple[str | None, list[int] | None]:
    """What is to be read, from files: a text or token ids. Raises UsageError for both."""
    if text is not None and tokens is not None:
        raise UsageError("a text or tokens, not both", where="--text, --tokens", fix="Leave one of them out.")
    return read_text(text), read_tokens(tokens)


def read_tokens(path: Path | None) -> list[int] | None:
    """The numbers in a file: whole ones, apart by spaces, lines or commas, with or without brackets around them.

    Raises UsageError for anything else.
    """
    text = read_text(path)
    if text is None:
        return None
    parts = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    odd = next((part for part in parts if not re.fullmatch(r"\d{1,18}", part, re.ASCII)), None)
    if odd is not None or not parts:
        what = f"{odd[:40]!r} in it is not a token id" if odd is not None else "it is empty"
        raise UsageError(
            f"cannot read tokens from {path}: {what}", where="--tokens", fix="Give whole numbers: 12 7 30."
        )
    return [int(part) for part in parts]
