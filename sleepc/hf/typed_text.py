"""What a person types is text, also where it spells a control token: marks for it, and a tokenizer that goes by them.

The characters are noncharacters of Unicode, which no text has; where one has them they are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sleepc.errors import SleepcError
from sleepc.hf.failing import failing

CONTROL, START, END = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = re.compile(f"[{CONTROL}{START}{END}]")
MANY = 8
TYPED = re.compile(f"{START}([^{START}{END}]*){END}|[{START}{END}]")


def control_tokens(inner: Any, end_ids: tuple[int, ...], templates: str) -> dict[int, str]:
    """The added tokens of a tokenizer that are not for people to type: special ones, ends of answers, and whatever else
    the text of its chat templates has in it. Not the one for unknown words: that is what unknown text becomes.
    """
    unknown = _unknown(inner)
    return {
        i: token.content
        for i, token in inner.get_added_tokens_decoder().items()
        if i not in unknown
        and (token.special or i in end_ids or (token.content in templates and not token.content.isspace()))
    }


def _unknown(inner: Any) -> set[int]:
    """What becomes of a character that no text has."""
    try:
        with failing():
            return set(inner.encode(CONTROL, add_special_tokens=False).ids)
    except SleepcError:  # the tokenizer knows all that it is to read
        return set()


def mark_typed(inner: Any, control: Mapping[int, str], text: str) -> str:
    """The text of a person with marks around all that the tokenizer would take for control tokens."""
    text = MARKS.sub("", text)
    found = _spans(inner, control, text)
    for _, start, end in reversed(found):
        text = f"{text[:start]}{START}{text[start:end]}{END}{text[end:]}"
    return text


def name_control(inner: Any, control: Mapping[int, str], text: str) -> str:
    """Text with such marks -> text for `strict_tokenizer`: tokens that stand outside marks get their other names."""
    pieces = TYPED.split(text)  # text, what was marked (None for half a mark), text, ...
    for at in range(0, len(pieces), 2):
        for i, start, end in reversed(_spans(inner, control, pieces[at])):
            pieces[at] = f"{pieces[at][:start]}{CONTROL}{control[i]}{pieces[at][end:]}"
    return "".join(piece or "" for piece in pieces)


def _spans(inner: Any, control: Mapping[int, str], text: str) -> list[tuple[int, int, int]]:
    """The control tokens that a text is cut into: id, start and end."""
    with failing():
        found = inner.encode(text, add_special_tokens=False)
    if control.keys().isdisjoint(found.ids):
        return []
    return [(i, *span) for i, span in zip(found.ids, found.offsets, strict=True) if i in control]


def strict_tokenizer(inner: Any, control: Mapping[int, str]) -> Any:
    """The same tokenizer, but its control tokens have names that nobody can type.

    Raises SleepcError where the library gives them other ids.
    """
    from tokenizers import Tokenizer

    data, names = json.loads(inner.to_str()), set(control.values())
    for token in data["added_tokens"]:
        if token["content"] in names:
            token |= {"content": CONTROL + token["content"], "normalized": False}
    _rename(data["model"], names)
    try:
        strict = Tokenizer.from_str(json.dumps(data))
        if any(strict.token_to_id(CONTROL + name) != i for i, name in control.items()):
            raise ValueError("other ids")
    except Exception as error:  # the library raises this very class
        raise SleepcError(
            f"the tokenizer cannot tell control tokens from the same words in a text: {error}",
            fix="Leave them out of the text: " + " ".join(sorted(names)[:MANY]),
        ) from error
    return strict


def _rename(model: dict[str, Any], names: set[str]) -> None:
    """Give the words of a model's vocabulary their other names; what was put together to one of them is no more."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {CONTROL + word if word in names else word: i for word, i in vocab.items()}
    else:
        model["vocab"] = [[CONTROL + word if word in names else word, *rest] for word, *rest in vocab]
    if "merges" in model:
        pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [list(p) for p in pairs if names.isdisjoint((*p, "".join(p)))]
