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
    """The tokens of a text and of all turns about it: by the model's chat template, or after "Question:"."""
    if not tokenizer.has_template():
        asked = (f"\nQuestion: {turn.request}\nAnswer: {turn.answer}" for turn in turns)
        return tokenizer.encode(text + "".join(asked))
    messages = _messages(text, turns)
    last = messages.pop()
    return [*tokenizer.chat(messages), *tokenizer.encode_next(last["content"])]


def asked(tokenizer: Tokenizer, text: str, turns: Sequence[Exchange]) -> list[int]:
    """The same up to where the last answer goes on from what is there of it, which may be nothing."""
    last = turns[-1].answer
    if not tokenizer.has_template():
        return spelled(tokenizer, text, turns) if last else _open(tokenizer, text, turns)
    ids = tokenizer.chat(_messages(text, turns)[:-1])
    return [*ids, *tokenizer.encode_next(last)] if last else ids


def _open(tokenizer: Tokenizer, text: str, turns: Sequence[Exchange]) -> list[int]:
    """The tokens before an answer of which there is nothing: no space ends them, since it belongs to what comes."""
    before = "".join(f"\nQuestion: {turn.request}\nAnswer: {turn.answer}" for turn in turns[:-1])
    return tokenizer.encode(f"{text}{before}\nQuestion: {turns[-1].request}\nAnswer:")


def _messages(text: str, turns: Sequence[Exchange]) -> list[dict[str, str]]:
    requests = [turn.request for turn in turns]
    if text:
        requests[0] = f"{text}\n{requests[0]}"
    found = []
    for request, turn in zip(requests, turns, strict=True):
        found += [{"role": "user", "content": request}, {"role": "assistant", "content": turn.answer}]
    return found
