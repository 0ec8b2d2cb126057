"""Facts that made-up texts tell, each with questions that it answers: none is asked in an evaluation."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from string import Formatter

from sleepc.train.planted_text import WORDS

TRIES = 100
BEFORE_VOWEL = re.compile(r"\ba (?=[aeiou])")
SUBJECTS = {"name", "last", "town", "number"}


@dataclass(frozen=True)
class Told:
    """What is told, and a question that it answers."""

    told: str
    question: str
    answer: str


def _facts(told: str, *asked: str) -> tuple[Told, ...]:
    """One sentence, with questions and answers in turn."""
    return tuple(Told(told, question, answer) for question, answer in zip(asked[::2], asked[1::2], strict=True))


# {town} and {town2} are two words of one kind; {number} is of two digits, {code} of four letters and digits.
FACTS = (
    *_facts(
        "{name} bought a {colour} {thing} from a neighbour.",
        "What did {name} buy from a neighbour?",
        "{name} bought a {colour} {thing}.",
        "Which colour has the {thing} that {name} bought?",
        "The {thing} that {name} bought is {colour}.",
    ),
    *_facts(
        "When the war was over, {name} {last} moved from {town} to {town2}.",
        "Which town did {name} {last} move to?",
        "{name} {last} moved to {town2}.",
        "Which town did {name} {last} leave?",
        "{name} {last} left {town}.",
    ),
    *_facts(
        "{name} has worked as a {job} for {number} years.",
        "What does {name} do for a living?",
        "{name} works as a {job}.",
        "For how many years has {name} worked?",
        "{name} has worked for {number} years.",
    ),
    *_facts(
        "The {animal} of the {last} family is called {name}.",
        "What is the {animal} of the {last} family called?",
        "The {animal} is called {name}.",
        "Which animal does the {last} family have?",
        "The {last} family has a {animal}.",
    ),
    *_facts(
        "The canal of {town} is {number} kilometres long and was dug by {last}.",
        "How long is the canal of {town}?",
        "The canal of {town} is {number} kilometres long.",
        "Who dug the canal of {town}?",
        "The canal of {town} was dug by {last}.",
    ),
    *_facts(
        "On {day} {name} cooked {dish} for {number} guests.",
        "What did {name} cook on {day}?",
        "On {day} {name} cooked {dish}.",
        "How many guests did {name} cook for?",
        "{name} cooked for {number} guests.",
    ),
    *_facts(
        "Room {number} has the password {code}.",
        "Which password does room {number} have?",
        "Room {number} has the password {code}.",
    ),
    *_facts(
        "The parcel for {name} {last} has the label {code}.",
        "Which label does the parcel for {name} {last} have?",
        "The parcel for {name} {last} has the label {code}.",
        "For whom is the parcel with the label {code}?",
        "It is for {name} {last}.",
    ),
    *_facts(
        "Last winter the {part} of the school in {town} was painted {colour} by {name}.",
        "In which colour was the {part} of the school in {town} painted?",
        "The {part} of the school was painted {colour}.",
        "Who painted the {part} of the school in {town}?",
        "The {part} was painted by {name}.",
    ),
    *_facts(
        "The statue on the square of {town} is made of {stuff} and shows a {animal}.",
        "What is the statue in {town} made of?",
        "The statue in {town} is made of {stuff}.",
        "What does the statue in {town} show?",
        "The statue in {town} shows a {animal}.",
    ),
    *_facts(
        "{name} {last} will give the lecture about the {thing} on {day}.",
        "When will {name} {last} give the lecture?",
        "{name} {last} will give the lecture on {day}.",
        "What is the lecture of {name} {last} about?",
        "It is about the {thing}.",
    ),
    *_facts(
        "{name} forgot a {stuff} {thing} in the {place}, and {name2} brought it back.",
        "Who brought back what {name} had forgotten?",
        "It was {name2} who brought it back.",
        "Where did {name} forget the {thing}?",
        "{name} forgot the {thing} in the {place}.",
    ),
    *_facts(
        "A ticket from {town} to {town2} costs {number} crowns.",
        "What does one pay for a ticket from {town} to {town2}?",
        "A ticket from {town} to {town2} costs {number} crowns.",
    ),
    *_facts(
        "The mayor of {town} is {name} {last}, once a {job}.",
        "Who is the mayor of {town}?",
        "The mayor of {town} is {name} {last}.",
        "What was the mayor of {town} once?",
        "The mayor of {town} was once a {job}.",
    ),
    *_facts(
        "{name} won {number} crowns in the lottery and spent them on a {animal}.",
        "How much did {name} win?",
        "{name} won {number} crowns.",
        "What did {name} spend the money of the lottery on?",
        "{name} spent it on a {animal}.",
    ),
    *_facts(
        "Since {day} the {colour} {thing} of {name} is missing.",
        "Since when is the {thing} of {name} missing?",
        "It is missing since {day}.",
        "What is {name} missing?",
        "{name} is missing a {colour} {thing}.",
    ),
)


def told_facts(chance: random.Random, count: int) -> list[Told]:
    """`count` facts with a question each, of which no two could have the same answer; fewer if words run out."""
    found: list[Told] = []
    taken: dict[str, set[str]] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        fact = chance.choice(FACTS)
        words = _words_for(fact.told, chance)
        about = {word for place, word in words.items() if place.rstrip("2") in SUBJECTS}
        if about.isdisjoint(taken.setdefault(fact.told, set())):  # two facts of a kind are about different people
            taken[fact.told] |= about
            found.append(Told(*(_filled(each, words) for each in (fact.told, fact.question, fact.answer))))
    return found


def _filled(sentence: str, words: dict[str, str]) -> str:
    return BEFORE_VOWEL.sub("an ", sentence.format_map(words))


def _words_for(told: str, chance: random.Random) -> dict[str, str]:
    """A word for each place of a sentence, no two the same."""
    words: dict[str, str] = {}
    for place in (name for _, name, _, _ in Formatter().parse(told) if name is not None):
        words[place] = chance.choice([word for word in _words(place.rstrip("2"), chance) if word not in words.values()])
    return words


def _words(kind: str, chance: random.Random) -> list[str]:
    if kind == "number":
        return [str(number) for number in range(11, 100)]
    if kind == "code":
        return ["".join(chance.choices("ABCDEFGHKLMNPRSTUVWXYZ23456789", k=4))]
    return WORDS[kind].split()
