"""A document as a person hands it over: in the first message, before what is asked about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MARK = "[document]"


def opening_of_turn(template: Callable[..., Any] | None) -> str:
    """What a chat template puts before the first message; nothing without one."""
    return _around(template, MARK)[0]


def rest_of_turn(template: Callable[..., Any] | None, text: str) -> str:
    """What comes after a document in the first message: `text` in a line of its own, and what the template puts before
    the answer.
    """
    mark = MARK
    while mark in text:
        mark = f"[{mark}]"
    return f"\n{_around(template, mark, text)[1]}"


def _around(template: Callable[..., Any] | None, mark: str, text: str = "") -> tuple[str, str]:
    if template is None:
        return "", text
    before, _, after = template([{"role": "user", "content": mark + text}]).partition(mark)
    return before, after
