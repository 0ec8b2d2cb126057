"""From logits to the next token: pure functions over logits [V]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from sleepc.errors import SleepcError, UsageError
from sleepc.runtime.steps import FloatArray, IntArray
from sleepc.runtime.values import real, whole


class Choosing(TypedDict, total=False):
    """The fields of Sampling, for calls that give some of them by name."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 leave all tokens in.

    Raises UsageError for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            real(getattr(self, name), name)
        whole(self.top_k, "top_k")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature {self.temperature} is not a number from 0 up")
        if self.top_k < 0:
            raise UsageError(f"top_k {self.top_k} is negative", fix="0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p} is not in (0, 1]", fix="1 keeps all tokens")


def sample(logits: FloatArray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token id for logits [V]; uses one uniform number of `rng`, none when greedy.

    Raises SleepcError when the logits do not give a distribution (NaN, +inf, or all -inf).
    """
    if not math.isfinite(float(logits.max())):  # max carries NaN
        raise SleepcError(
            f"the logits are not a distribution: their maximum is {logits.max()}",
            fix="`sleepc verify` finds where the program leaves the numbers of its model",
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    ids, weights = candidates(logits, sampling)
    bounds = weights.cumsum()
    drawn = int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))
    return int(ids[min(drawn, len(ids) - 1)])  # the product may round up to the last bound


def without(logits: FloatArray, never: IntArray) -> FloatArray:
    """Logits [V] with which no token of `never` [n] is chosen."""
    if not len(never):
        return logits
    left = logits.copy()
    left[never] = -np.inf
    return left


def candidates(logits: FloatArray, sampling: Sampling) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Ids [n], most likely first, and probabilities [n]: temperature, then top-k, then top-p.

    Temperature divides the logits; it is not 0 here.
    """
    kept = top_k(logits, sampling.top_k)
    # Shifted before the division: a tiny temperature must give 0 and -inf, never inf - inf.
    shifted = logits[kept].astype(np.float64) - float(logits.max())
    # What is less than the least normal number may count as 0 here: a runtime may set its threads so, and its caller's.
    temperature = max(sampling.temperature, float(np.finfo(np.float64).tiny))
    with np.errstate(over="ignore"):
        weights = np.exp(shifted / temperature)
    weights /= weights.sum()
    order = np.argsort(-weights, kind="stable")
    inside = order[: nucleus(weights[order], sampling.top_p)]
    inside = inside[weights[inside] > 0]  # a logit of -inf is never drawn
    return kept[inside], weights[inside] / weights[inside].sum()


def top_k(logits: FloatArray, k: int) -> IntArray:
    """Ids of the k largest logits, ascending; of equal ones the lower ids; all ids when k is 0.

    Fan, Lewis, Dauphin, *Hierarchical Neural Story Generation*, arXiv 1805.04833 (2018).
    """
    if not 0 < k < len(logits):
        return np.arange(len(logits), dtype=np.int64)
    floor = np.partition(logits, -k)[-k]
    above = np.flatnonzero(logits > floor)
    equal = np.flatnonzero(logits == floor)[: k - len(above)]
    return np.sort(np.concatenate([above, equal])).astype(np.int64)


def nucleus(sorted_probabilities: npt.NDArray[np.float64], p: float) -> int:
    """How many of the most likely tokens make up at least p (one or more; all for p = 1).

    Holtzman et al., *The Curious Case of Neural Text Degeneration*, arXiv 1904.09751, section 3.1.
    """
    if p >= 1:
        return len(sorted_probabilities)
    reached = int(np.searchsorted(sorted_probabilities.cumsum(), p, side="left"))
    return min(reached + 1, len(sorted_probabilities))


def generators(seed: int | None, batch: int) -> list[np.random.Generator]:
    """One random stream per row: what a row draws does not depend on the other rows."""
    if seed is not None and whole(seed, "seed") < 0:
        raise UsageError(f"seed {seed} is negative", fix="give a whole number from 0 up, or none")
    entropy = np.random.SeedSequence(seed).entropy
    return [np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(row,))) for row in range(batch)]
