"""k-hop look-up: follow k relations, whose facts are told in the context. (Loop, Think, Generalize, arXiv 2604.07822,
the task of depth.)

Each of `relations` is a random permutation of `entities`, told as facts "e3 r1 e5." in random order. A question is an
entity and k relations; the answer is the entity that they lead to. One of the k occurs once among them, so that all
entities are equally likely (two times the same permutation leads back to the start too often), and guessing gives
1 / entities. The facts that lead to the answers are not among the last `tail`. The paper teaches the facts to the
weights; here they are in the context, as in Depo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sleepc.tasks.fact_order import shuffled
from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, named, refusal


@dataclass(frozen=True)
class KHop:
    """The entity that k relations lead to, each of them a permutation told fact by fact."""

    by: ClassVar[str] = "hops"
    entities: int = 8
    relations: int = 3
    hops: tuple[int, ...] = (1, 2, 3, 4)
    questions: int = 4
    tail: int = 0

    def __post_init__(self) -> None:
        check(self, zeros=["tail"])
        if self.relations < 2 and max(self.hops) > 1:
            raise refusal("with one relation there is one hop")
        if (facts := self.entities * self.relations) < self.tail + self.questions:
            raise refusal(f"{facts} facts are too few for {self.questions} questions and a tail of {self.tail}")

    @property
    def vocabulary(self) -> Words:
        """A point, entities, relations."""
        return (".", *named("e", self.entities), *named("r", self.relations))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle; hops take turns from question to question."""
        entities, relations = named("e", self.entities), named("r", self.relations)
        leads = [rng.permutation(self.entities).tolist() for _ in relations]
        facts = [
            (e, r, entities[to], ".")
            for r, row in zip(relations, leads, strict=True)
            for e, to in zip(entities, row, strict=True)
        ]
        questions, last = [], set()
        for i in range(self.questions):
            hops = in_turn(self.hops, index * self.questions + i)
            at = start = int(rng.integers(self.entities))
            path = self._path(hops, rng)
            for relation in path:
                fact = relation * self.entities + at
                at = leads[relation][at]
            last.add(fact)
            questions.append(Question((entities[start], *(relations[r] for r in path)), (entities[at],), hops))
        return Example(shuffled(facts, last, self.tail, rng), tuple(questions))

    def _path(self, hops: int, rng: np.random.Generator) -> list[int]:
        """As many relations, of which one occurs once."""
        once, *others = rng.permutation(self.relations).tolist()
        path = [others[i] for i in rng.integers(0, len(others), hops)] if others else [once]
        path[rng.integers(hops)] = once
        return path
