"""Depo: the node k steps on in a cycle whose edges are told in random order. (Physics of Language Models 4.1; settings
as in Do Language Models Need Sleep?, arXiv 2605.26099, as far as it gives them.)

Nodes have different names of `shortest` to `longest` tokens, out of `letters`; the last token of a name is of another
kind, so that names end by themselves. The context is "begin", then the names of both ends of every edge. A question is
"hop4", a node's name and "is"; the answer is the name. Hops are asked in turn. Here all names of the answer count.
There are `nodes` nodes, as in the original's tests; with fewer=1 there are 3 to `nodes`, n of them with probability
proportional to 1 / (n + sqrt(nodes)), as in its training. The edges that lead to the answers are not among the last
`tail`. With fewer hops than nodes, the answer is never the start: with few names, that alone lets one guess a little
better than a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sleepc.tasks.fact_order import shuffled
from sleepc.tasks.puzzle import Example, Question, Words, check, in_turn, named, refusal

BEGIN, IS = "begin", "is"
LONGEST = 20  # tokens of a name
FEWEST = 3  # nodes, with fewer=1


@dataclass(frozen=True)
class Depo:
    """The node k hops on in a cycle, whose edges are told in random order."""

    by: ClassVar[str] = "hops"
    nodes: int = 75
    hops: tuple[int, ...] = (1, 2, 4, 8, 16)
    letters: int = 50
    shortest: int = 1
    longest: int = 2
    questions: int = 10
    tail: int = 0
    fewer: int = 0

    def __post_init__(self) -> None:
        check(self, zeros=["tail"], flags=["fewer"])
        if self.shortest > self.longest or self.longest > LONGEST:
            raise refusal(f"names cannot have {self.shortest} to {self.longest} tokens")
        if self.nodes > sum(self.letters**n for n in range(self.shortest, self.longest + 1)):
            raise refusal(
                f"{self.letters} letters do not give {self.nodes} names of {self.shortest} to {self.longest} tokens"
            )
        if self.questions > self.nodes:
            raise refusal(f"{self.questions} questions start at different nodes, and there are {self.nodes}")
        if self.tail and (self.fewer or self.questions + self.tail > self.nodes):
            raise refusal(f"a tail of {self.tail} needs {self.questions + self.tail} nodes in every example")

    @property
    def vocabulary(self) -> Words:
        """The two marks, letters, letters that end a name, hops."""
        marks = (BEGIN, IS, *named("a", self.letters), *named("z", self.letters))
        return (*marks, *(f"hop{k}" for k in sorted(set(self.hops))))

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle; hops take turns from question to question."""
        names = self._names(self._count(rng), rng)
        count = len(names)
        edges = [names[i] + names[(i + 1) % count] for i in range(count)]
        questions, last = [], set()
        for i, start in enumerate(rng.permutation(count)[: self.questions].tolist()):
            hops = in_turn(self.hops, index * self.questions + i)
            questions.append(Question((f"hop{hops}", *names[start], IS), names[(start + hops) % count], hops))
            last.add((start + hops - 1) % count)
        return Example((BEGIN, *shuffled(edges, last, self.tail, rng)), tuple(questions))

    def _count(self, rng: np.random.Generator) -> int:
        """How many nodes."""
        if not self.fewer:
            return self.nodes
        counts = np.arange(min(FEWEST, self.nodes), self.nodes + 1)
        weights = 1 / (counts + self.nodes**0.5)
        return int(rng.choice(counts, p=weights / weights.sum()))

    def _names(self, count: int, rng: np.random.Generator) -> list[Words]:
        """Different names in random order: that of the cycle."""
        letters, ends = named("a", self.letters), named("z", self.letters)
        spans = [self.longest - self.shortest + 1, *[self.letters] * self.longest]
        found: dict[Words, None] = {}
        while len(found) < count:
            drawn = rng.random((count, len(spans))) * spans
            for more, last, *first in drawn.astype(int).tolist():
                found[(*[letters[i] for i in first[: self.shortest - 1 + more]], ends[last])] = None
        names = list(found)
        return [names[i] for i in rng.permutation(count)]
