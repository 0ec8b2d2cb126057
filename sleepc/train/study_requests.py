"""What a teacher is asked about a text that it reads: kinds of requests, each about a sentence of the text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from sleepc.tasks.exchanges import Exchange
from sleepc.tasks.question_prompt import SHORTLY

ENDS = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n(?=[-*>#] )")
SENTENCE = re.compile(r"\W{0,2}[A-Z0-9].*[a-z0-9)\"'][.!]")
FEWEST, MOST = 5, 40  # words of a sentence that is asked about
ASK = "Which question does this sentence answer? "
SHOTS = (  # what questions are like
    Exchange("The old mill was closed for two weeks in March.", "For how long was the old mill closed?"),
    Exchange("The command returns a list of the files that were changed.", "What does the command return?"),
    Exchange("Mr Herbert keeps three grey cats in his kitchen.", "How many cats does Mr Herbert keep?"),
)


@dataclass(frozen=True)
class StudyRequest:
    """A request, and how its answer begins. `about`: the sentence that a question is to be written for, which the
    teacher does before it answers it; `begins`: how that question begins.
    """

    text: str
    answer: str = ""
    about: str = ""
    begins: str = ""


def sentences(text: str) -> list[str]:
    """The whole sentences of a text, each once, each on one line."""
    found = (" ".join(part.split()) for part in ENDS.split(text))
    fit = (part for part in found if SENTENCE.fullmatch(part) and FEWEST <= len(part.split()) <= MOST)
    return list(dict.fromkeys(fit))


def requests(text: str, count: int, chance: random.Random) -> list[StudyRequest]:
    """`count` requests of different kinds about a text, each about another sentence of it; fewer if it has few."""
    chosen = sentences(text)
    chance.shuffle(chosen)
    made = [KINDS[n % len(KINDS)](sentence, chance) for n, sentence in enumerate(chosen[:count])]
    if count > len(KINDS) and made:
        made[-1] = StudyRequest(f"Which names and numbers does the text give? {SHORTLY}")
    return made


def write_question(request: StudyRequest) -> list[Exchange]:
    """The turns in which a teacher that has read nothing is asked for a question; the last answer is its beginning."""
    shots = [Exchange(ASK + shot.request, shot.answer) for shot in SHOTS]
    return [*shots, Exchange(ASK + request.about, request.begins)]


def is_question(text: str, about: str) -> bool:
    """Is it one line, a question, and about the sentence?"""
    return text.endswith("?") and "\n" not in text and not _words(text).isdisjoint(_words(about))


def _words(text: str) -> set[str]:
    """The longer words of a text and all its numbers."""
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3 or word.isdigit()}


def detail(sentence: str, chance: random.Random) -> StudyRequest:
    """What is said of some words of the sentence."""
    words = sentence.rstrip(".!").split()
    size = min(chance.randint(2, 4), len(words))
    start = chance.randint(0, len(words) - size)
    return StudyRequest(f'What does the text say about "{" ".join(words[start : start + size])}"? {SHORTLY}')


def _question(sentence: str, chance: random.Random) -> StudyRequest:
    """A question that the sentence answers. How it begins depends on what the sentence has, or models of this size ask
    the same of everything.
    """
    begins = ["What", "What", "Which", "Where", "Why", "When"]
    if re.search(r"\d", sentence):
        begins += ["How many", "How much", "How many"]
    if re.search(r"[a-z,] [A-Z][a-z]", sentence) or re.match(r"[A-Z][a-z]+ [A-Z]", sentence):
        begins += ["Who", "Who", "Whose"]
    return StudyRequest("", about=sentence, begins=chance.choice(begins))


def _goes_on(sentence: str, chance: random.Random) -> StudyRequest:
    """How a sentence goes on."""
    words = sentence.split()
    start = " ".join(words[: chance.randint(2, max(len(words) // 2, 2))])
    return StudyRequest(f'How does the sentence go on that begins with "{start}"?', answer=start)


KINDS: tuple[Callable[[str, random.Random], StudyRequest], ...] = (_question, _goes_on, detail, _goes_on)
