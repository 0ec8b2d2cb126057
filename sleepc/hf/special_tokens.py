"""The tokens that a tokenizer's configuration names or adds, as transformers reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.errors import UsageError
from sleepc.hf.json_file import read_object

if TYPE_CHECKING:
    from tokenizers import AddedToken

CONFIG = "tokenizer_config.json"
MAP, ADDED, DECODER = "special_tokens_map.json", "added_tokens.json", "added_tokens_decoder"
LISTS = ("extra_special_tokens", "additional_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
SHOWN = 5


def stated(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What is stated of tokens: by the configuration and, if that is an older one, the file of their names."""
    # A configuration with the decoder of its tokens is newer than the file of their names, and is all there is to read.
    return {**config, **({} if DECODER in config else read_object(folder / MAP))}


def named_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and others as texts: templates read them as variables."""
    return {name: _content(token) for name, token in _named(stated(folder, config)).items()}


def add_stated_tokens(inner: Any, folder: Path, config: dict[str, Any]) -> None:
    """Add to a tokenizer what its configuration states and its tokenizer.json lacks, with the same flags and in the
    same order as transformers.

    Raises UsageError, with the tokens' names, if they do not get the ids that are stated for them.
    """
    facts = stated(folder, config)
    named = {_content(token): token for token in _named(facts).values()}
    listed = {_content(token): token for token in _listed(facts)}
    ids = _ids(folder, config, named.keys() | listed.keys())
    present = inner.get_added_tokens_decoder()
    same = {repr(token) for token in present.values()}
    wanted = [token for _, token in sorted(ids.items()) if repr(token) not in same]
    known = {token.content for token in (*present.values(), *wanted)}
    for token in wanted:
        token.special = token.special or token.content in named
    try:
        wanted += [_token(token, special=True) for name, token in {**named, **listed}.items() if name not in known]
        inner.add_tokens(wanted)
    except ValueError as error:  # not a text
        raise _unreadable(error, folder / CONFIG) from error
    _check(inner, ids, folder)


def _named(facts: dict[str, Any]) -> dict[str, Any]:
    """Tokens by name; those that only this model has stand among the others, or as a mapping of extra ones."""
    extra = facts.get(LISTS[0])
    own = extra if isinstance(extra, dict) else {}
    every = {**{name: token for name, token in facts.items() if name.endswith("_token")}, **own}
    return {name: token for name, token in every.items() if _is_token(token)}


def _listed(facts: dict[str, Any]) -> Iterator[Any]:
    for name in LISTS:
        found = facts.get(name)
        if isinstance(found, list) and found:
            yield from (token for token in found if _is_token(token))
            return  # the second is the first one's older name


def _ids(folder: Path, config: dict[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Ids -> tokens, if they are stated with ids."""
    found: list[tuple[Any, Any, bool | None]]
    if DECODER in config:
        entries = config[DECODER].items() if isinstance(config[DECODER], dict) else [("", None)]
        found = [(name, token, None) for name, token in entries]
    else:  # before there was a decoder: names and ids alone
        found = [(i, name, name in special) for name, i in read_object(folder / ADDED).items()]
    try:
        return {int(i): _token(token, special=flag) for i, token, flag in found if _content(token)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(error, folder / (CONFIG if DECODER in config else ADDED)) from error


def _unreadable(error: Exception, path: Path) -> UsageError:
    return UsageError(
        f"cannot read the added tokens: {error!r}", where=str(path), fix="Take the file from the original model."
    )


def _is_token(token: object) -> bool:
    text = token.get("content") if isinstance(token, dict) else token
    return isinstance(text, str) and text != ""


def _content(token: Any) -> str:
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is not a token")
    return text


def _token(token: Any, *, special: bool | None) -> AddedToken:
    """A text, or a text with flags."""
    from tokenizers import AddedToken

    flags = {name: bool(token[name]) for name in FLAGS if name in token} if isinstance(token, dict) else {}
    if special is not None:
        flags = {"normalized": not special, **flags, "special": special}
    return AddedToken(_content(token), **flags)


def _check(inner: Any, ids: dict[int, AddedToken], folder: Path) -> None:
    found = {i: (token.content, inner.token_to_id(token.content)) for i, token in sorted(ids.items())}
    wrong = [f"{name} is {got} instead of {i}" for i, (name, got) in found.items() if got != i]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UsageError(
            f"the tokenizer gives added tokens other ids than are stated for them: {', '.join(wrong[:SHOWN])}{more}",
            where=str(folder),
            fix="Take tokenizer.json and tokenizer_config.json from the same model.",
        )
