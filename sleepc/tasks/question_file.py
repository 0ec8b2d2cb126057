"""Texts with questions about them: a file of JSON lines, or the project's own texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sleepc.errors import SleepcError, UsageError
from sleepc.json_file import parse_json
from sleepc.tasks.keywords import stands_in

OWN = Path(__file__).with_name("questions.jsonl")
MOST_TEXTS = 1000
LINE = '{"text": ..., "questions": [{"question": ..., "answers": ["keyword", ...]}]}'


@dataclass(frozen=True)
class TextQuestion:
    """A question about a text. An answer is right if it has one of the keywords; with `every`, to the extent that it
    has them all.
    """

    question: str
    answers: tuple[str, ...]
    every: bool = False

    def score(self, answer: str) -> float:
        """1 for a right answer, 0 for a wrong one.

        >>> asked, names = "Who?", ("Ann", "Bo")
        >>> TextQuestion(asked, names).score("It was Bo."), TextQuestion(asked, names, every=True).score("Bo")
        (1.0, 0.5)
        """
        found = [stands_in(keyword, answer) for keyword in self.answers]
        return sum(found) / len(found) if self.every else float(any(found))


@dataclass(frozen=True)
class Document:
    """A text, and questions that are each asked after it. Figures are told apart by `depth`, if not by distance."""

    text: str
    questions: tuple[TextQuestion, ...]
    name: str = ""
    depth: int | None = None


Text = Annotated[str, Field(min_length=1, max_length=4_000_000)]
Short = Annotated[str, Field(min_length=1, max_length=2000)]


class _Question(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    question: Short
    answers: Annotated[list[Short], Field(min_length=1, max_length=100)]

    @field_validator("question")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("it is empty")
        return text

    @field_validator("answers")
    @classmethod
    def _have_letters(cls, keywords: list[str]) -> list[str]:
        for keyword in keywords:
            if not any(letter.isalnum() for letter in keyword):
                raise ValueError(f"{keyword!r} has no letter or digit")
        return keywords


class _Line(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    text: Text
    questions: Annotated[list[_Question], Field(min_length=1, max_length=1000)]
    name: Annotated[str, Field(max_length=200)] = ""

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("it is empty")
        return text


def parse_questions(content: str, where: str) -> tuple[list[Document], list[str]]:
    """The texts of JSON lines, and a note for each name in them that nothing reads. `where` is the file's name.

    Raises UsageError, with the line's number, for what is not such a line, and for no texts or more than MOST_TEXTS.
    """
    lines = [(i, line) for i, line in enumerate(content.removeprefix("\ufeff").split("\n"), 1) if line.strip()]
    if not 1 <= len(lines) <= MOST_TEXTS:
        fix = f"Give a file of JSON lines, each {LINE}."
        raise UsageError(
            f"{where} has {len(lines)} texts, and 1 to {MOST_TEXTS} can be read", where="--questions", fix=fix
        )
    parsed = [_parse(line, f"{where}, line {i}") for i, line in lines]
    documents = [_document(line, i) for line, (i, _) in zip(parsed, lines, strict=True)]
    unread = sorted({name for line in parsed for part in (line, *line.questions) for name in part.model_extra or ()})
    return documents, [f"{where}: unknown key {name[:40]!r}" for name in unread]


def own_questions() -> list[Document]:
    """The project's own texts, of 1,150 to 3,600 tokens (SmolLM2's) and different kinds."""
    return parse_questions(OWN.read_text(encoding="utf-8"), OWN.name)[0]


def _parse(line: str, where: str) -> _Line:
    fix = f"A line is {LINE}."
    try:
        found: Any = parse_json(line.encode(errors="surrogateescape"), what="the line", where=where, fix=fix)
        return _Line.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        said = "input should be an object" if first["type"] == "model_type" else said  # pydantic names the class
        raise UsageError(f"{place or 'it'}: {said[0].lower()}{said[1:]}", where=where, fix=fix) from None
    except SleepcError as error:
        raise UsageError(error.what, where=where, fix=fix) from error


def _document(line: _Line, number: int) -> Document:
    questions = tuple(TextQuestion(q.question.strip(), tuple(q.answers)) for q in line.questions)
    return Document(line.text, questions, line.name or f"text {number}")
