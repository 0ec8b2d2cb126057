"""A task: streams made once, and the rows of figures that a program gets for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, get_args

import numpy as np

from sleepc.progress import OnShare
from sleepc.runtime.steps import IntArray, Steps
from sleepc.tasks.asking import Reply, ask, surprises
from sleepc.tasks.copying import copying
from sleepc.tasks.planting import Sample, Setup
from sleepc.tasks.retrieval import DISTRACTORS, retrieval
from sleepc.tasks.source import StreamSource
from sleepc.verify.surprise import bounds

TaskName = Literal["perplexity", "retrieval", "copy"]
TASKS: tuple[str, ...] = get_args(TaskName)
Row = dict[str, float | int]


class Task(Protocol):
    """Streams to read, and figures to be had from them."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the figures, the one to plot first."""

    @property
    def by(self) -> str:
        """What rows are told apart by: "distance", "tokens", or the key of a depth."""

    @property
    def chance(self) -> float | None:
        """What guessing gives of the first one."""

    @property
    def length(self) -> int:
        """Tokens of the longest stream."""

    def rows(self, steps: Steps, limit: int, progress: OnShare) -> list[Row]:
        """A row for each distance, from a program that can read `limit` tokens; none if that is too few."""


@dataclass(frozen=True)
class Planted:
    """Items at distances, and what replies to their questions are worth."""

    samples: Sequence[Sample]
    score: Callable[[Sequence[Reply]], Row]
    metrics: tuple[str, ...]
    chance: float | None = None
    by: str = "distance"

    @property
    def length(self) -> int:
        """Tokens of the longest stream, with question and answer."""
        return max(sample.length for sample in self.samples)

    def rows(self, steps: Steps, limit: int, progress: OnShare) -> list[Row]:
        """See Task."""
        if limit < self.length:
            return []
        replies = ask(steps, self.samples, progress)
        found = []
        for distance in self.samples[0].items:
            here = [reply for at, reply in replies if at == distance]
            log_prob = sum(r.right.likelihood for r in here) / sum(r.right.tokens for r in here)
            found.append({"distance": distance, **self.score(here), "log_prob": log_prob, "count": len(here)})
        return found


def _score_retrieval(replies: Sequence[Reply]) -> Row:
    ranks, count = [reply.rank for reply in replies], len(replies)
    margin = sum(reply.margin for reply in replies) / count
    return {"accuracy": ranks.count(1) / count, "rank": sum(ranks) / count, "margin": margin}


def _score_copy(replies: Sequence[Reply]) -> Row:
    return {"accuracy": sum(r.right.hits for r in replies) / sum(r.right.tokens for r in replies)}


@dataclass(frozen=True)
class Perplexity:
    """Texts [B,T], each read from an empty state; ranges of tokens double from a window on."""

    texts: IntArray
    window: int
    metrics: tuple[str, ...] = ("perplexity",)
    chance: float | None = None
    by: str = "tokens"

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return int(self.texts.shape[1])

    def rows(self, steps: Steps, limit: int, progress: OnShare) -> list[Row]:
        """See Task; ranges that end after `limit` are left out."""
        ranges = [(a, b) for a, b in pairwise(bounds(self.window, self.length)) if b <= limit]
        if not ranges:
            return []
        found = surprises(steps, self.texts[:, : ranges[-1][1]], progress)
        return [{"from": a, "to": b, **_perplexity(found[:, a - 1 : b - 1])} for a, b in ranges]


def _perplexity(surprise: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Row:
    mean = float(surprise.mean())
    return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "count": surprise.size}


def make_task(name: TaskName, source: StreamSource, setup: Setup, window: int) -> Task:
    """The streams of a task. Raises UsageError if the source or the distances do not give them."""
    if name == "retrieval":
        chance = 1 / (1 + DISTRACTORS)
        return Planted(retrieval(source, setup), _score_retrieval, ("accuracy", "rank", "margin", "log_prob"), chance)
    if name == "copy":
        return Planted(copying(source, setup), _score_copy, ("accuracy", "log_prob"))
    pieces = source.pieces(setup.samples, max(setup.distances[-1], 2), np.random.default_rng(setup.seed))
    return Perplexity(np.stack([np.concatenate([np.array(source.opening, dtype=np.int64), p]) for p in pieces]), window)
