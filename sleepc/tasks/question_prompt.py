"""The tokens of a text and of the questions after it, asked in the way that the model knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from sleepc.hf.tokenizer import Tokenizer
from sleepc.tasks.exchanges import Exchange, spelled
from sleepc.tasks.keywords import last_end
from sleepc.tasks.planting import Ids
from sleepc.tasks.question_file import Document

SHORTLY = "Answer in one short sentence."


@dataclass(frozen=True)
class Prompts:
    """`read` is what the prompts of all questions of a document begin with, `asked` the rest of each.

    `distances`: how many tokens before a prompt's end a keyword of its answer stands last; None if none does.
    """

    document: Document
    read: Ids
    asked: tuple[Ids, ...]
    distances: tuple[int | None, ...]

    @property
    def length(self) -> int:
        """Tokens of the longest prompt."""
        return len(self.read) + max(map(len, self.asked))


def make_prompts(tokenizer: Tokenizer, document: Document) -> Prompts:
    """The prompts of a document: by the model's chat template, or for a base model to continue after "Answer:"."""
    prompts = [asked(tokenizer, document.text, question.question) for question in document.questions]
    shared = min(_same(prompts), min(map(len, prompts)) - 1)
    distances = []
    for question, prompt in zip(document.questions, prompts, strict=True):
        end = last_end(question.answers, document.text)
        told = _same([prompt, asked(tokenizer, document.text[:end], question.question)]) if end is not None else None
        distances.append(None if told is None else len(prompt) - told)
    rests = tuple(tuple(prompt[shared:]) for prompt in prompts)
    return Prompts(document, tuple(prompts[0][:shared]), rests, tuple(distances))


def asked(tokenizer: Tokenizer, text: str, question: str) -> list[int]:
    """The tokens of a question about a text, asked in the way that the model knows."""
    shortly = f" {SHORTLY}" if tokenizer.has_template() else ""
    return spelled(tokenizer, text, [Exchange(question + shortly, "")])


def _same(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens are the same at the beginning of all."""
    columns = zip(*prompts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def answer_cut(tokenizer: Tokenizer) -> Callable[[Ids], Ids]:
    """The part of what a model gave that is its answer. A base model's ends with its line: it continues with questions
    of its own.
    """
    if tokenizer.has_template():
        return lambda ids: ids

    def line(ids: Ids) -> Ids:
        ends = (count for count in range(len(ids)) if "\n" in tokenizer.decode(ids[: count + 1]).lstrip())
        return ids[: next(ends, len(ids))]

    return line
