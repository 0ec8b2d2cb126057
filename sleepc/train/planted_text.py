"""Made-up diaries, talks, notes and stories with facts in them that a reader may be asked for later.

They are what budgets are measured on if no text is given: facts in the middle of things that nobody needs again.
"""

from __future__ import annotations

import random

NAMES = "Ada Boris Celia Dmitri Esther Farid Greta Hugo Imke Jonas Kiran Leila Mateo Nora Priya Ruben Selma Tomas Vera"
LAST = "Abbott Brandt Castell Dorn Ekberg Falk Grimaldi Iversen Jansen Koval Lindgren Moreau Novak Okafor Rask Sorel"
WORDS = {
    "colour": "red blue green yellow purple orange brown silver violet crimson",
    "town": "Ashford Belmont Carrick Dunmore Eastleigh Glenrock Hartwell Kingsley Larkhill Oakham Pinedale Redcliff",
    "thing": "bicycle violin kettle ladder camera carpet lantern compass teapot hammer suitcase mirror drum",
    "animal": "parrot rabbit donkey hedgehog falcon tortoise beagle pony squirrel heron",
    "job": "baker carpenter nurse pilot plumber tailor librarian surgeon gardener welder",
    "dish": "dumplings pancakes goulash porridge risotto omelette chowder noodles",
    "stuff": "copper oak marble leather clay bronze wool glass",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday",
    "place": "cellar attic garage pantry stable balcony",
    "part": "door roof fence gate",
    "name": NAMES,
    "last": LAST,
}
FACTS = (
    "{name} bought a {colour} {thing} at the fair.",
    "In spring {name} {last} moved to {town}.",
    "{name} works as a {job} and starts before sunrise.",
    "{name} has a {animal} that is called {last}.",
    "The bridge of {town} is {number} metres long.",
    "For dinner {name} made {dish} with {number} onions.",
    "The {part} of the post office was painted {colour}.",
    "The number of {name}'s locker is {number}{number}.",
    "The {part} of the chapel in {town} is made of {stuff}.",
    "The lesson with {name} {last} was moved to {day}.",
    "It was {name} who lent the key of the boat to {last}.",
    "The missing {thing} was found in the {place} of {name}'s aunt.",
    "The ticket from {town} to {town} costs {number} crowns.",
    "{name} will bring the {colour} {thing} on {day}.",
)
FILLERS = (
    "It rained for most of the morning, and the street was quiet.",
    "Nobody paid much attention to it at the time.",
    "The window had been left open, so the papers on the table were damp.",
    "After that there was a long pause, and somebody made tea.",
    "The road was longer than it looks on the map, and there were no signs.",
    "That was the end of it, at least for the moment.",
    "In the afternoon the wind turned, and the smoke went the other way.",
    "The neighbours had heard about it already, as they always do.",
    "It took more time than we had thought, but less than we had feared.",
    "Everyone was tired, and so the rest was put off until the next morning.",
    "The old plan was given up, and nobody has made a new one yet.",
    "Later we walked back along the canal and talked about other things.",
    "The bill was paid in cash, and the receipt is in the drawer.",
    "As far as we know, this has never happened before in this part of the country.",
    "The children laughed about it for weeks and drew pictures of it.",
    "Most people would have turned back, and perhaps that would have been wise.",
    "The light was good, and one could see as far as the hills.",
    "This was not what the letter had said, but nobody minded.",
    "It is said that the winters were colder then and the houses smaller.",
    "The next train was late, which surprised no one.",
)
PARAGRAPHS = 24


def planted_text(seed: int) -> str:
    """One of the texts, of about a thousand words: the same one for the same number."""
    chance = random.Random(seed)
    write = (_diary, _talk, _notes, _story)[seed % 4]
    return "\n\n".join(write(chance, n, _sentences(chance)) for n in range(1, PARAGRAPHS + 1))


def _sentences(chance: random.Random) -> list[str]:
    """Some that say little, and one among them with a fact in it."""
    some = chance.sample(FILLERS, chance.randint(1, 4))
    some.insert(chance.randint(0, len(some)), _filled(chance.choice(FACTS), chance))
    return some


def _filled(fact: str, chance: random.Random) -> str:
    """A fact with words and numbers in its places, each drawn anew."""
    for kind, words in WORDS.items():
        while "{" + kind + "}" in fact:
            fact = fact.replace("{" + kind + "}", chance.choice(words.split()), 1)
    while "{number}" in fact:
        fact = fact.replace("{number}", str(chance.randint(11, 99)), 1)
    return fact


def _diary(chance: random.Random, n: int, sentences: list[str]) -> str:
    return f"Day {3 * n + chance.randint(0, 2)}. {' '.join(sentences)}"


def _talk(chance: random.Random, n: int, sentences: list[str]) -> str:
    speakers = chance.sample(NAMES.split(), 2)
    return "\n".join(f"{speakers[i % 2]}: {sentence}" for i, sentence in enumerate(sentences))


def _notes(chance: random.Random, n: int, sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _story(chance: random.Random, n: int, sentences: list[str]) -> str:
    return " ".join(sentences)
