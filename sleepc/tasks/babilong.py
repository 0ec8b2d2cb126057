"""Where are people and things? Facts among words of noise. (BABILong, arXiv 2406.10149: bAbI's tasks qa1 to qa3, arXiv
1502.05698, hidden in text; here by words of a small vocabulary.)

People go to places, take things where they are, carry them along and drop them. A question needs one, two or three of
the `told` sentences: the place of a person; that of a thing, by who took it last and where that one went; the place
where a thing was before that. Sentences stand in order, anywhere among words of noise, `length` words in all, and
`tail` words of noise after the last.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from sleepc.tasks.fact_order import NOISE, among_noise
from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, named, refusal

WORDS = 4  # of a sentence
QUESTIONS = 3  # kinds of them, by how many facts they need


@dataclass(frozen=True)
class BabiLong:
    """Where somebody is, where a thing is, where it was before."""

    by: ClassVar[str] = "facts"
    facts: tuple[int, ...] = (1, 2, 3)
    told: int = 16
    length: int = 256
    tail: int = 0
    people: int = 3
    places: int = 8
    things: int = 3

    def __post_init__(self) -> None:
        check(self, zeros=["tail"])
        if max(self.facts) > QUESTIONS:
            raise refusal(f"questions need 1 to {QUESTIONS} facts, and not {max(self.facts)}")
        if self.places < 2:
            raise refusal("somebody who goes needs another place to go to")
        if self.told < 2 * max(self.facts):
            raise refusal(f"{self.told} sentences seldom tell {max(self.facts)} facts of anything: tell twice as many")
        if self.length < WORDS * self.told + self.tail:
            have = f"{self.told} sentences of {WORDS} and a tail of {self.tail}"
            raise refusal(f"{self.length} words have no room for {have}")

    @property
    def vocabulary(self) -> Words:
        """What is said and asked, noise, people, places, things."""
        who = (*named("p", self.people), *named("l", self.places), *named("t", self.things))
        return (".", "?", "goes", "takes", "drops", "where", "before", *NOISE, *who)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle. Stories in which nothing can be asked are told again."""
        facts, asked = in_turn(self.facts, index), dict[str, str]()
        while not asked:
            story = _Story(self, rng)
            for _ in range(self.told):
                story.go_on()
            asked = story.answers(facts)
        name = str(rng.choice(sorted(asked)))
        question = ("before", name, "?") if facts == QUESTIONS else ("where", name, "?")
        context = among_noise(story.told, self.length, self.tail, rng)
        return Example(context, (Question(question, (asked[name],), facts),))


@dataclass
class _Story:
    """What was told, where people are, who has a thing, and all places in a row where it was."""

    world: BabiLong
    rng: np.random.Generator
    told: list[Words] = field(default_factory=list)
    at: dict[str, str] = field(default_factory=dict)
    has: dict[str, str] = field(default_factory=dict)
    was: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def go_on(self) -> None:
        """Something happens: half of the time somebody goes, else takes or drops a thing if that can be."""
        who = self._one_of(named("p", self.world.people))
        things = named("t", self.world.things)
        mine = [thing for thing in things if self.has.get(thing) == who]
        here = [t for t in things if who in self.at and t not in self.has and self.was[t][-1:] in ([], [self.at[who]])]
        if not (mine or here) or self.rng.integers(2):
            place = self._one_of([p for p in named("l", self.world.places) if p != self.at.get(who)])
            self.at[who] = place
            for thing in mine:
                self.was[thing].append(place)
            self.told.append((who, "goes", place, "."))
            return
        thing = self._one_of([*mine, *here])
        if thing in mine:
            del self.has[thing]
        else:
            self.has[thing] = who
            self.was[thing] = self.was[thing] or [self.at[who]]
        self.told.append((who, "drops" if thing in mine else "takes", thing, "."))

    def answers(self, facts: int) -> dict[str, str]:
        """What questions that need so many facts ask after, and their answers."""
        if facts == 1:
            return self.at
        return {thing: places[1 - facts] for thing, places in self.was.items() if len(places) >= facts - 1}

    def _one_of(self, names: list[str] | Words) -> str:
        return names[int(self.rng.integers(len(names)))]
