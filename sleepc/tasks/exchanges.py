"""Requests and answers about a text, in the tokens of a conversation as the model is used to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleepc.hf.tokenizer import Tokenizer


@dataclass(frozen=True)
class Exchange:
    """What is asked, and what is answered."""

    request: str
    answer: str


def spelled(tokenizer: Tokenizer, text: str, turns: Sequence[Exchange]) -> list[int]:
    """The tokens of a text and of all turns about it: by the model's chat template, or after "Question:". If the last
    answer is empty they end where it begins.
    """
    if not tokenizer.has_template():
        return tokenizer.encode(text + "".join(map(_plain, turns)))
    messages, last = _messages(text, turns)[:-1], turns[-1].answer
    return [*tokenizer.chat(messages), *(tokenizer.encode_next(last) if last else [])]


def _plain(turn: Exchange) -> str:
    """A turn for a base model. No space ends it before an answer that is to come: it belongs to that."""
    return f"\nQuestion: {turn.request}\nAnswer:{turn.answer and ' '}{turn.answer}"


def _messages(text: str, turns: Sequence[Exchange]) -> list[dict[str, str]]:
    requests = [turn.request for turn in turns]
    if text:
        requests[0] = f"{text}\n{requests[0]}"
    found = []
    for request, turn in zip(requests, turns, strict=True):
        found += [{"role": "user", "content": request}, {"role": "assistant", "content": turn.answer}]
    return found
