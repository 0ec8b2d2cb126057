"""Does the class of transformers that a tokenizer names read texts as its tokenizer.json says? Some of these classes
build parts of it anew, and then have other ids for the same text.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from sleepc.errors import SleepcError
from sleepc.hf.failing import failing
from sleepc.hf.json_file import read_object
from sleepc.hf.present import is_there
from sleepc.hf.quiet import quiet
from sleepc.hf.special_tokens import CONFIG
from sleepc.hf.tokenizer import MAIN, Tokenizer, load_tokenizer

CLASS = "tokenizer_class"
TEXTS = ("The year 2026: what's it?", " a  b", "two\n\n lines\tand a CAP", "é 世")


def class_reads_otherwise(folder: Path) -> str | None:
    """A sentence with the first text that the class and tokenizer.json read as different ids; None if there is none, or
    if no class is named. Texts with a control token in them are among those that are tried.
    """
    name = read_object(folder / CONFIG).get(CLASS)
    return reads_otherwise(folder, name) if isinstance(name, str) and is_there(folder / MAIN) else None


def reads_otherwise(folder: Path, name: str) -> str | None:
    """The same of whatever class transformers takes for the folder, which is called `name` in the sentence."""
    with warnings.catch_warnings(action="ignore"), quiet():
        theirs = _theirs(folder)
        if theirs is None:
            return None
        ours = load_tokenizer(folder)
        control = next(iter(ours.control.values()), "")
        for text in (*TEXTS, *(f"{control}{text}" for text in TEXTS if control)):
            if _by_class(theirs, text) != _as_it_says(ours, text):
                return f"transformers' {name} encodes {text!r} with other ids than {MAIN}, which sleepc reads"
    return None


def _theirs(folder: Path) -> Any:
    """transformers' own; None if it cannot be made, which is no matter here: it may need other files, or packages."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # whatever a class of transformers raises
        return None


def _by_class(theirs: Any, text: str) -> list[int] | None:
    """Ids; None if the tokenizer cannot read the text."""
    try:
        with failing():
            return list(theirs(text, add_special_tokens=False).input_ids)
    except SleepcError:
        return None


def _as_it_says(ours: Tokenizer, text: str) -> list[int] | None:
    try:
        with failing():
            return list(ours.inner.encode(text, add_special_tokens=False).ids)
    except SleepcError:
        return None
