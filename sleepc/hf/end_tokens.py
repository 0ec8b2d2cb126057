"""The tokens that end an answer, wherever a model's files name them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sleepc.errors import UsageError
from sleepc.hf.json_file import read_object

FILES = ("generation_config.json", "config.json")
INSIDE = ("text_config", "decoder", "generator")  # where transformers looks for the part that writes text
KEY = "eos_token_id"


def end_ids(folder: Path, inner: Any, eos_token: str | None, special: Collection[int]) -> tuple[int, ...]:
    """Ids, ascending. The file that generation reads counts first; what other places name counts where it is a special
    token, since configurations keep ids of other tokenizers.

    Raises UsageError for a file that is damaged, and for an id that the tokenizer does not have.
    """
    found: list[int] = []
    for place, value in _stated(folder):
        ids = _ids(value, place)
        for i in ids:
            if inner.id_to_token(i) is None:
                raise UsageError(
                    f"{KEY} is {i}, and the tokenizer has no such token",
                    where=place,
                    fix=f"Correct it there; the tokenizer has {inner.get_vocab_size()} tokens.",
                )
        found += ids if not found else [i for i in ids if i in special]
    own = inner.token_to_id(eos_token) if eos_token is not None else None
    return tuple(sorted({*found, *([] if own is None else [own])}))


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
    if not all(type(i) is int and 0 <= i < 1 << 32 for i in ids):
        raise UsageError(
            f"{KEY} is {value!r}, not the id of a token or a list of ids",
            where=place,
            fix="Take the file from the original model.",
        )
    return ids
