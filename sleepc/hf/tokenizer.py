"""The tokenizer of a model, by the `tokenizers` library: no model code, no transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.hf.template import Template

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)


@dataclass(frozen=True)
class Tokenizer:
    """Text <-> token ids; `eos_ids` end an answer."""

    inner: Any
    folder: Path
    eos_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Token ids, with what the model's own tokenizer puts before a text."""
        ids: list[int] = self.inner.encode(text).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text; special tokens are left out."""
        text: str = self.inner.decode(ids, skip_special_tokens=True)
        return text

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a text that others surround: nothing is put before or after it."""
        ids: list[int] = self.inner.encode(text, add_special_tokens=False).ids
        return ids

    def template(self) -> Template | None:
        """The model's chat template; None where it has none. Raises UsageError for one that is broken."""
        from sleepc.hf.template import load_template

        return load_template(self.folder)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a conversation by the model's chat template, up to where the answer begins.

        Raises UsageError where the model has none, or it refuses the conversation.
        """
        template = self.template()
        if template is None:
            raise UsageError("this model has no chat template", fix="Leave --chat out.")
        return self.encode_part(template(messages))


def load_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer in `folder`. Raises UsageError where there is none."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise UsageError(
            "this model has no tokenizer.json, so it cannot read text",
            where=str(folder or ""),
            fix="Feed token ids from Python: program.session().feed(ids).",
        )
    from tokenizers import Tokenizer as Inner

    inner = Inner.from_file(str(folder / "tokenizer.json"))
    inner.no_truncation()
    inner.no_padding()
    return Tokenizer(inner, folder, _eos_ids(folder))


def _eos_ids(folder: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            value = json.loads(path.read_text()).get("eos_token_id")
            if value is not None:
                return tuple(value) if isinstance(value, list) else (int(value),)
    return ()


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what a tokenizer and its chat template need from a model directory."""
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
