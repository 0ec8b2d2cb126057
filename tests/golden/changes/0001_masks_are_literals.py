"""Masks are one literal: `own=5, chunk=0` and `window=5, chunk=0` become `sees="window(5)"`."""

from __future__ import annotations

import re

WINDOW = re.compile(r"own=(\d+)(?:, chunk=(\d+))?")
ATTENTION = re.compile(r"(sleepc\.attention\(.*?), window=(\d+)(?:, chunk=(\d+))?(.*)")


def literal(window: str, chunk: str | None) -> str:
    """The mask of a window and chunks, 0 for none."""
    return "&".join(f"{kind}({n})" for kind, n in (("window", window), ("chunk", chunk)) if n and n != "0")


def attention(found: re.Match[str]) -> str:
    """One call, whose mask had its numbers apart; one whose mask is not classified says nothing of it."""
    classified = found[3] is not None
    return f'{found[1]}, sees="{literal(found[2], found[3])}"{found[4]}' if classified else found[1] + found[4]


def derive(texts: dict[str, str]) -> dict[str, str]:
    """The texts after this change."""
    new = {path: WINDOW.sub(lambda m: f'sees="{literal(m[1], m[2])}"', text) for path, text in texts.items()}
    return {path: ATTENTION.sub(attention, text) for path, text in new.items()}
