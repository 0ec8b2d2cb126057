"""The tokenizer of a model, by the `tokenizers` library: no model code, no transformers."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.hf.end_tokens import MOST, end_ids, warn_of_end
from sleepc.hf.failing import failing
from sleepc.hf.given import Message, checked_ids, checked_text
from sleepc.hf.json_file import read_object
from sleepc.hf.present import is_there
from sleepc.hf.special_tokens import CONFIG, add_stated_tokens, named_tokens
from sleepc.hf.typed_text import MARKS, control_tokens, encode_marked, mark_typed, strict_tokenizer

if TYPE_CHECKING:
    from sleepc.hf.template import Template

MAIN = "tokenizer.json"
FILES = (
    MAIN,
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
)
FOLDERS = ("chat_templates",)
OTHERS = ("tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
BEFORE = ("\n", "a", ".")
SPACE, SPACES = "add_prefix_space", ("Ġ", "▁")  # and how vocabularies spell one


class NoTokenizer(UsageError):
    """There is no tokenizer.json: the model reads and writes ids."""


@dataclass(frozen=True)
class Tokenizer:
    """Text <-> token ids; `eos_ids` end an answer. Control tokens (id -> name) in a text that is encoded are text."""

    inner: Any
    folder: Path
    eos_ids: tuple[int, ...]
    control: Mapping[int, str] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """Token ids, with what the model's own tokenizer puts before a text, and nothing after it.

        Raises UsageError for anything but text.
        """
        return [*self._opening, *self.encode_part(text)]

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a text that others surround: nothing is put before or after it."""
        ids = _ids(self.inner, checked_text(text))
        if self.control.keys().isdisjoint(ids):
            return ids
        return _ids(self._strict, MARKS.sub("", text))

    def encode_next(self, text: str) -> list[int]:
        """Token ids of a text that goes straight on from another."""
        return self._after(self.encode_part, checked_text(text))

    def encode_turns(self, text: str, *, goes_on: bool = False) -> list[int]:
        """Token ids of a chat template's text: its own control tokens are control, and what people typed is text."""
        return self._after(self._turns, checked_text(text)) if goes_on else self._turns(checked_text(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text; special tokens are left out. Raises UsageError for anything but token ids."""
        found = checked_ids(ids)
        for i in found:
            if not 0 <= i <= MOST or self.inner.id_to_token(i) is None:
                raise UsageError(f"the tokenizer has no token {i}", fix=f"It has {self.inner.get_vocab_size()}.")
        with failing():
            text: str = self.inner.decode(found, skip_special_tokens=True)
        return text

    def template(self, name: str | None = None, arguments: Mapping[str, Any] | None = None) -> Template | None:
        """The model's chat template, with values for its variables; None if it has none.

        Raises UsageError for one that is broken, and for an unknown name or variable.
        """
        from sleepc.hf.template import load_template

        return load_template(self.folder, name, arguments, self._mark)

    def has_template(self) -> bool:
        """Is there a chat template?"""
        from sleepc.hf.template import template_sources

        return bool(template_sources(self.folder))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation by the model's chat template, up to where the answer begins.

        Whatever a message has besides role and content (name, tool_calls, …) is given to the template.
        Raises UsageError if the model has none, for anything but messages, and if it refuses the conversation.
        """
        template = self.template()
        if template is None:
            raise UsageError("this model has no chat template", fix="Encode a text: tokenizer.encode(text).")
        return self.encode_turns(template(messages))

    def ends(self, template: Template | None, vocab: int) -> tuple[int, ...]:
        """The tokens that end an answer of a model with `vocab` tokens; with a template what closes a turn, too."""
        turns = self.encode_turns(template.closing()) if template is not None else []
        closing = [i for i in turns if i in self.control][:1]
        found = sorted({*self.eos_ids, *closing})
        for i in found:
            if i >= vocab:
                warn_of_end(f"{self.name_of(i)} has the id {i}, and the model's vocabulary size is {vocab}")
        return tuple(i for i in found if i < vocab)

    def name_of(self, token: int) -> str:
        """A token as it stands in the vocabulary."""
        return str(self.inner.id_to_token(token))

    def holes(self, vocab: int) -> list[int]:
        """The ids of a vocabulary of `vocab` that stand for no token: its table may be wider than its tokenizer."""
        return sorted(set(range(vocab)).difference(self.inner.get_vocab().values()))

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Do all tokens, but those that were added later, have the same ids?"""
        mine, theirs = (each.inner.get_vocab(with_added_tokens=False) for each in (self, other))
        return bool(mine == theirs)

    @cached_property
    def _opening(self) -> list[int]:
        """The ids before every text."""
        found = _encode(self.inner, "a", add_special_tokens=True)
        added = [i for i, _ in takewhile(lambda pair: pair[1], zip(found.ids, found.special_tokens_mask, strict=True))]
        # If the tokenizer does not know the letter, ends stand after it; else one may well begin a text (OPT's).
        return [i for i in added if i not in self.eos_ids] if len(added) == len(found.ids) else added

    @cached_property
    def _strict(self) -> Any:
        return strict_tokenizer(self.inner, self.control)

    def _turns(self, text: str) -> list[int]:
        if MARKS.search(text) is None:
            return _ids(self.inner, text)
        return encode_marked(self.inner, lambda: self._strict, self.control, text)

    def _mark(self, text: str) -> str:
        return mark_typed(self.inner, self.control, checked_text(text))

    def _after(self, encode: Callable[[str], list[int]], text: str) -> list[int]:
        """Ids of a text without the space that some tokenizers put before whatever they are given."""
        alone = encode("a")
        if encode("\na")[-len(alone) :] != alone:
            for before in BEFORE:
                first, both = encode(before), encode(before + text)
                if first and both[: len(first)] == first:
                    return both[len(first) :]
        return encode(text)


def load_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer in `folder`.

    Raises NoTokenizer if there is none, UsageError if a file of it is damaged.
    """
    from sleepc.hf.template import template_sources

    if folder is None or not is_there(folder / MAIN):
        raise _none(folder)
    config = read_object(folder / CONFIG)
    inner = _read(folder / MAIN)
    inner.no_truncation()
    inner.no_padding()
    add_stated_tokens(inner, folder, config)
    _say_other_space(inner, config)
    special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
    ends = end_ids(folder, inner, named_tokens(folder, config).get("eos_token"), special)
    control = control_tokens(inner, ends, "\0".join(template_sources(folder).values()))
    return Tokenizer(inner, folder, ends, control)


def _say_other_space(inner: Any, config: Mapping[str, Any]) -> None:
    """Warn if the configuration says that a space is put before a text, or that none is, and tokenizer.json does
    otherwise: some of transformers' classes then follow the configuration.
    """
    said = config.get(SPACE)
    ids = _ids(inner, "a") if isinstance(said, bool) else []
    first = inner.id_to_token(ids[0]) if ids else ""
    if first.startswith(SPACES) != said and first.lstrip("".join(SPACES))[:1] in ("", "a") and first:
        text = f"{CONFIG} says {SPACE}: {json.dumps(said)}, and {MAIN} differs: {MAIN} is what sleepc reads"
        warnings.warn(text, SleepcWarning, stacklevel=3)


def _encode(inner: Any, text: str, add_special_tokens: bool = False) -> Any:
    with failing():
        return inner.encode(text, add_special_tokens=add_special_tokens)


def _ids(inner: Any, text: str) -> list[int]:
    ids: list[int] = _encode(inner, text).ids
    return ids


def _read(path: Path) -> Any:
    """The library's tokenizer. Raises UsageError for a file that is damaged, or of a newer library."""
    import tokenizers

    data = read_object(path)  # the library takes the last of two keys
    try:
        with failing():
            return tokenizers.Tokenizer.from_file(str(path))
    except (SleepcError, ValueError) as error:
        sound = isinstance(data.get("model"), dict)
        fix = f"pip install -U tokenizers (this is {tokenizers.__version__}), or take " if sound else "Take "
        raise UsageError(
            f"cannot read {path.name}: {error.__cause__ or error}",
            where=str(path),
            fix=f"{fix}the file from the original model.",
        ) from error.__cause__ or error


def _none(folder: Path | None) -> NoTokenizer:
    found = [name for name in OTHERS if folder and (folder / name).is_file()]
    only = f" (only {', '.join(found)})" if found else ""
    make = "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of transformers may write one into that folder. "
    return NoTokenizer(
        f"this model has no {MAIN}{only}, so it cannot read text",
        where=str(folder or ""),
        fix=f"{make if found else ''}Token ids can be fed from Python: program.session().feed(ids).",
    )


def files_to_copy(source: Path) -> list[Path]:
    """What a tokenizer and its chat template need from a model directory: what tokenizer.json can be made from, if
    there is none. Raises UsageError for what has the name of one and is no file.
    """
    names = FILES if is_there(source / MAIN) else (*FILES, *OTHERS)
    return [source / name for name in names if is_there(source / name)]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what a tokenizer and its chat template need from a model directory. Raises as `files_to_copy`."""
    for path in files_to_copy(source):
        shutil.copyfile(path, target / path.name)
    for name in FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=_all_but_templates)


def _all_but_templates(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".jinja") or not (Path(folder) / name).is_file()]
