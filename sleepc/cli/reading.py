"""How `sleepc run` puts what it is given to a model: as a text to continue, or as a turn of a conversation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sleepc.runtime.chat import NOTE, Conversation, Turn
from sleepc.runtime.state_file import read_note

if TYPE_CHECKING:
    from sleepc.hf.template import Template
    from sleepc.hf.tokenizer import Tokenizer
    from sleepc.runtime.session import Session


class PromptReading(Protocol):
    """`ends` are the tokens that end an answer, `never` those that none has."""

    ends: Collection[int]
    never: Collection[int]

    def resume(self, path: Path) -> str:
        """Go on from a state file; a remark that a person should know, or ""."""

    def news(self, text: str) -> list[int]:
        """What there is to read of a text: nothing of what stands before every text is read twice."""

    def keep(self, read: list[int], said: list[int], answer: str) -> None:
        """That was read of it, and these ids and this text were the answer."""

    def save(self, path: Path) -> None:
        """Write the state file."""


class AsText:
    """A text, and how the model continues it."""

    def __init__(self, session: Session, tokenizer: Tokenizer, *, goes_on: bool) -> None:
        self._session, self._tokenizer, self._goes_on = session, tokenizer, goes_on
        vocab = session.steps.vocab
        self.ends: Collection[int] = tokenizer.ends(None, vocab)
        self.never: Collection[int] = tokenizer.holes(vocab)

    def resume(self, path: Path) -> str:
        held = read_note(path, NOTE) is not None
        self._session.load_state(path)
        self._goes_on = True
        return f"the conversation in {path} continues as a text, and is not a conversation after that" if held else ""

    def news(self, text: str) -> list[int]:
        if not text:
            return []
        return self._tokenizer.encode_next(text) if self._goes_on else self._tokenizer.encode(text)

    def keep(self, read: list[int], said: list[int], answer: str) -> None:
        """The state knows."""

    def save(self, path: Path) -> None:
        self._session.save_state(path)


class AsTurns:
    """A message in the model's chat template, and its answer."""

    def __init__(self, session: Session, tokenizer: Tokenizer, template: Template, *, in_turn: bool) -> None:
        self._talk = Conversation(session, tokenizer, template, in_turn=in_turn)
        self.ends: Collection[int] = self._talk.ends
        self.never: Collection[int] = self._talk.never
        self._text = self._prompt = ""

    def resume(self, path: Path) -> str:
        self._talk.load(path, after_text=True)
        return ""

    def news(self, text: str) -> list[int]:
        if not text:
            return []
        self._text = text
        self._prompt, ids = self._talk.news(text)
        return ids

    def keep(self, read: list[int], said: list[int], answer: str) -> None:
        turns, ids = self._talk.turns, read + said
        if self._text:
            turns.append(Turn(self._text, self._prompt, answer, ids, len(said)))
        elif turns:  # the last answer went on
            last, count = turns[-1], turns[-1].said + len(ids)
            every = last.ids + ids
            words = [token for token in every[len(every) - count :] if token not in self.ends]
            turns[-1] = replace(last, answer=self._talk.tokenizer.decode(words), ids=every, said=count)

    def save(self, path: Path) -> None:
        self._talk.save(path)


def reading_of(
    session: Session, tokenizer: Tokenizer, template: Template | None, *, in_turn: bool = False
) -> PromptReading:
    """By the model's template, or without one as a text. `in_turn`: the session has a cartridge of what comes before."""
    if template is None:
        return AsText(session, tokenizer, goes_on=in_turn)
    return AsTurns(session, tokenizer, template, in_turn=in_turn)
