"""What callers give a tokenizer, checked: texts, ids, messages of a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from sleepc.errors import UsageError

Message = Mapping[str, Any]
ROLE, CONTENT = "role", "content"
WORD = re.compile(r"[\w .:-]+")
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing


def checked_text(text: object, what: str = "a text") -> str:
    """The text. Raises UsageError for anything else, and for an unpaired surrogate."""
    if not isinstance(text, str):
        fix = "Decode it: text.decode()." if isinstance(text, bytes | bytearray) else "Give one str at a time."
        raise UsageError(f"{what} is a str, and not of type {type(text).__name__}", fix=fix)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} has half a character (U+{ord(text[error.start]):04X}), which no text has",
            where=f"character {error.start + 1}",
            fix='Read it with errors="replace", or take it out.',
        ) from error
    return text


def checked_ids(ids: object) -> list[int]:
    """Token ids as Python's numbers. Raises UsageError for anything but a list of integers."""
    try:
        if isinstance(ids, str | bytes | Mapping):
            raise TypeError
        return [index(i) for i in ids]  # type: ignore[attr-defined]  # a list, an array, a tensor
    except TypeError as error:
        raise UsageError(
            f"ids are a list of whole numbers, and not {_shown(ids)}", fix="Give the ids of one text: [1, 2, 3]."
        ) from error


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """A conversation as templates read it: texts and other plain values, under the names that were given.

    Raises UsageError, with the message, for one without a role or without anything that is said, for values that are
    not those of JSON, and for parts of it that are not text; and for a conversation without messages.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UsageError(f"messages are a list, and not {_shown(messages)}", fix=_FORM)
    if not messages:
        raise UsageError("there are no messages", fix=_FORM)
    return [_message(message, f"message {number}") for number, message in enumerate(messages, 1)]


def is_word(text: str) -> bool:
    """Is this a name, and no text? No control token is one."""
    return WORD.fullmatch(text) is not None


_FORM = 'Give messages as [{"role": "user", "content": "hi"}].'


def _message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where} is a mapping of role and content, and not {_shown(message)}", fix=_FORM)
    found = {
        checked_text(key, f"a name in {where}"): _plain(value, f"{where}, {key}") for key, value in message.items()
    }
    role = found.get(ROLE)
    if not isinstance(role, str) or not is_word(role):
        raise UsageError(f"{where} has no role: a role is a word such as user or assistant", fix=_FORM)
    content = found.get(CONTENT)
    others = any(value not in (None, [], {}) for key, value in found.items() if key not in (ROLE, CONTENT))
    if content is None and not others:
        raise UsageError(f"{where} has no content", fix=_FORM)
    if not (content is None or isinstance(content, str) or _are_texts(content)):
        raise UsageError(
            f"the content of {where} is neither a text nor a list of parts that are texts",
            fix='Models read text: give a str, or [{"type": "text", "text": "hi"}].',
        )
    reasoning = next((found[key] for key in REASONING if found.get(key) is not None), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _are_texts(content: object) -> bool:
    parts = content if isinstance(content, list) else [None]
    return all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts)


def _plain(value: object, where: str) -> Any:
    """A value of JSON, of Python's own types."""
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return str(checked_text(value, where))
    if isinstance(value, Mapping):
        return {checked_text(key, f"a name in {where}"): _plain(inner, where) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, where) for inner in value]
    raise UsageError(
        f"{where} is of type {type(value).__name__}", fix="Give texts, numbers, lists and mappings, as JSON has them."
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"of type {type(value).__name__}"
