"""The tokens that end an answer, wherever a model's files name them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sleepc.errors import SleepcWarning, UsageError
from sleepc.hf.json_file import read_object

FILES = ("generation_config.json", "config.json")
INSIDE = ("text_config", "decoder", "generator")  # where transformers looks for the part that writes text
KEY, MOST = "eos_token_id", (1 << 32) - 1


def end_ids(folder: Path, inner: Any, eos_token: str | None, special: Collection[int]) -> tuple[int, ...]:
    """Ids, ascending. The file that generation reads counts first; what other places name counts if it is a special
    token, since configurations keep ids of other tokenizers. An id that the tokenizer does not have is left out, with a
    warning.

    Raises UsageError for a file that is damaged.
    """
    found: list[int] = []
    for place, value in _stated(folder):
        stated = _ids(value, place)
        ids = [i for i in stated if 0 <= i <= MOST and inner.id_to_token(i) is not None]
        for i in set(stated).difference(ids):
            warn_of_end(f"{KEY} is {i}, and the tokenizer has no such token ({place})")
        found += ids if not found else [i for i in ids if i in special]
    own = inner.token_to_id(eos_token) if eos_token is not None else None
    return tuple(sorted({*found, *([] if own is None else [own])}))


def warn_of_end(what: str) -> None:
    """Say that something cannot be the end of an answer."""
    warnings.warn(f"{what}: answers will not end with it", SleepcWarning, stacklevel=2)


def _stated(folder: Path) -> Iterator[tuple[str, Any]]:
    for name in FILES:
        data = read_object(folder / name)
        yield str(folder / name), data.get(KEY)
        for key in INSIDE:
            part = data.get(key)
            if isinstance(part, dict):
                yield f"{folder / name}, {key}", part.get(KEY)


def _ids(value: object, place: str) -> list[int]:
    ids: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise UsageError(
            f"{KEY} is {value!r}, not the id of a token or a list of ids",
            where=place,
            fix="Take the file from the original model.",
        )
    return ids
