"""What a person types is text, also if it spells a control token: marks for it, and a tokenizer that goes by them.

The characters are noncharacters of Unicode, which no text has; if one has them they are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from sleepc.errors import SleepcError
from sleepc.hf.failing import failing

CONTROL, START, END = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = re.compile(f"[{CONTROL}{START}{END}]")
MANY = 8
Span: TypeAlias = tuple[int, int, int]
"""A control token in a text: its id, start and end."""

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
    """The text of a person with marks around all that the tokenizer would take for control tokens, alone or together
    with what a template puts next to it.
    """
    text = MARKS.sub("", text)
    whole = [(start, end) for _, start, end in _spans(inner, control, text)]
    spans = _joined({*whole, *_edges(control, text)})
    return _rewritten(text, [(start, end, f"{START}{text[start:end]}{END}") for start, end in spans])


def _rewritten(text: str, changes: list[tuple[int, int, str]]) -> str:
    """The text with other words at spans, which are in order; in one go, since there may be thousands."""
    ends = [0, *(end for _, end, _ in changes)]
    kept = [text[end:start] for end, (start, _, _) in zip(ends, changes, strict=False)]
    return "".join(part for k, (_, _, new) in zip(kept, changes, strict=True) for part in (k, new)) + text[ends[-1] :]


def _edges(control: Mapping[int, str], text: str) -> set[tuple[int, int]]:
    """Where a text begins or ends with a part of a control token, or is one; templates may strip it before."""
    left, right = len(text) - len(text.lstrip()), len(text.rstrip())
    edges = ((start, end) for start, end in {(0, len(text)), (left, right)} if start < end)
    return {span for start, end in edges for span in _parts(control, text, start, end)}


def _parts(control: Mapping[int, str], text: str, start: int, end: int) -> set[tuple[int, int]]:
    most = min(end - start, max(map(len, control.values()), default=0))
    heads = {text[start : start + n].lower(): start + n for n in range(1, most + 1)}
    tails = {text[end - n : end].lower(): end - n for n in range(1, most + 1)}
    found: set[tuple[int, int]] = set()
    whole = text[start : min(end, start + most + 1)].lower()  # of a longer text enough to be in no name
    for name in {name.lower() for name in control.values()}:
        if whole in name:
            return {(start, end)}
        found |= {(start, heads[name[n:]]) for n in range(1, len(name)) if name[n:] in heads}
        found |= {(tails[name[:n]], end) for n in range(1, len(name)) if name[:n] in tails}
    return found


def _joined(spans: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order; those that touch are one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def template_control(inner: Any, control: Mapping[int, str], text: str) -> tuple[str, list[Span]]:
    """Text with such marks -> the text without them, and the control tokens that stand outside marks."""
    pieces = TYPED.split(text)  # text, what was marked (None for half a mark), text, ...
    at, own = 0, []
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            own += [(i, at + start, at + end) for i, start, end in _spans(inner, control, piece)]
        at += len(piece or "")
    return "".join(piece or "" for piece in pieces), own


def encode_marked(inner: Any, strict: Callable[[], Any], control: Mapping[int, str], text: str) -> list[int]:
    """Ids of a text with such marks: only what stands outside them is control. `strict` is asked for its tokenizer
    if that of the model would take other text for control too.
    """
    plain, own = template_control(inner, control, text)
    with failing():
        found = inner.encode(plain, add_special_tokens=False)
        if _control_of(found, control) == own:
            return list(found.ids)
        plain = _rewritten(plain, [(start, end, CONTROL + control[i]) for i, start, end in own])
        return list(strict().encode(plain, add_special_tokens=False).ids)


def _spans(inner: Any, control: Mapping[int, str], text: str) -> list[Span]:
    """The control tokens that a text is cut into."""
    with failing():
        return _control_of(inner.encode(text, add_special_tokens=False), control)


def _control_of(found: Any, control: Mapping[int, str]) -> list[Span]:
    if control.keys().isdisjoint(found.ids):
        return []
    return [(i, *span) for i, span in zip(found.ids, found.offsets, strict=True) if i in control]


def strict_tokenizer(inner: Any, control: Mapping[int, str]) -> Any:
    """The same tokenizer, but its control tokens have names that nobody can type.

    Raises SleepcError if the library gives them other ids.
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
    """Give the words of a model's vocabulary their other names; whatever merged into one of them is gone."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {CONTROL + word if word in names else word: i for word, i in vocab.items()}
    else:
        model["vocab"] = [[CONTROL + word if word in names else word, *rest] for word, *rest in vocab]
    if "merges" in model:
        pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [list(p) for p in pairs if names.isdisjoint((*p, "".join(p)))]
