"""A mask: a query sees no later key, and of the others those that meet every condition."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sleepc.errors import SleepcError
from sleepc.names import NAME, check_new

_LITERAL = re.compile(rf"({NAME})\(([1-9][0-9]{{0,17}})\)")


@dataclass(frozen=True)
class Kind:
    """A kind of condition on a query at position i and a key at position j <= i, with a number n >= 1.

    name    how literals call it: "window(5)"
    sees    (i, j, n): int64 tensors that broadcast -> bool
    naive   the same for three ints: a reference of its own, for the oracle
    guess   bool [T,T], who sees whom at positions 0..T-1 -> the n that this may be of, 0 if none; it is tried
    reach   n -> how many tokens, the query among them, are as far as one sees; None: as far as there are any
    words   n as text -> in words: "window 5"
    tokens  n as text -> the tokens that are seen: "the latest 5 tokens"
    """

    name: str
    sees: Callable[[Any, Any, int], Any]
    naive: Callable[[int, int, int], bool]
    guess: Callable[[Tensor], int]
    reach: Callable[[int], int | None]
    words: Callable[[str], str]
    tokens: Callable[[str], str]


KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> Kind:
    """Add a kind. Raises UsageError if its name is taken or not valid."""
    check_new("kind of mask", kind.name, KINDS)
    KINDS[kind.name] = kind
    return kind


@dataclass(frozen=True)
class Mask:
    """Conditions (kind, n), all of which hold if a query sees a key."""

    parts: tuple[tuple[str, int], ...] = ()

    @staticmethod
    @cache
    def parse(literal: str) -> Mask:
        """The mask of "window(5)", or of several with & between them; "" is causal and nothing else.

        Raises SleepcError for anything else.
        """
        parts = []
        for text in literal.split("&") if literal else ():
            found = _LITERAL.fullmatch(text)
            if found is None or found[1] not in KINDS:
                raise SleepcError(f"not a mask: {literal[:80]!r}", fix=f"Kinds of masks: {', '.join(KINDS)}.")
            parts.append((found[1], int(found[2])))
        return Mask(tuple(parts))

    def __str__(self) -> str:
        return "&".join(f"{name}({n})" for name, n in self.parts)

    @property
    def window(self) -> int:
        """The length of a window, 0 if there is none: a condition on nothing but the distance."""
        return dict(self.parts).get("window", 0)

    def without_window(self) -> Mask:
        """The other conditions."""
        return Mask(tuple(part for part in self.parts if part[0] != "window"))

    def sees(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Do queries at these positions see keys at those, no later ones? int64 tensors that broadcast -> bool."""
        seen = keys <= queries
        for name, n in self.parts:
            seen = seen & KINDS[name].sees(queries, keys, n)
        return seen

    def naive(self, i: int, j: int) -> bool:
        """The same for one pair, by the references."""
        return j <= i and all(KINDS[name].naive(i, j, n) for name, n in self.parts)

    @property
    def reach(self) -> int | None:
        """How many tokens, the query among them, are as far as a query sees; None if that is as far as any."""
        found = [reach for name, n in self.parts if (reach := KINDS[name].reach(n)) is not None]
        return min(found, default=None)

    def words(self) -> str:
        """In words: "causal", "window 5"."""
        return ", ".join(KINDS[name].words(str(n)) for name, n in self.parts) or "causal"

    def tokens(self, number: Callable[[int], str]) -> str:
        """Which tokens a query sees, in words, with numbers as `number` writes them: "the latest 5 tokens"."""
        return " and ".join(KINDS[name].tokens(number(n)) for name, n in self.parts) or "all tokens"


def read_mask(seen: Tensor) -> Mask | None:
    """The mask of bool [T,T], who sees whom at positions 0..T-1: causal, or one condition. None for anything else."""
    at = torch.arange(len(seen))
    queries, keys = at[:, None], at[None]
    guesses = [((name, n),) for name, kind in KINDS.items() if (n := int(kind.guess(seen)))]
    found = (Mask(parts) for parts in ((), *guesses))
    return next((mask for mask in found if torch.equal(mask.sees(queries, keys), seen)), None)


def nearest(seen: Tensor) -> tuple[Mask, int, int] | None:
    """For bool [T,T] that is none: the mask that differs in the fewest pairs, and the first of them (query, key)."""
    at = torch.arange(len(seen))
    tried = []
    for parts in ((), *(((name, n),) for name, kind in KINDS.items() if (n := int(kind.guess(seen))))):
        wrong = (Mask(parts).sees(at[:, None], at[None]) != seen).nonzero()
        tried.append((len(wrong), Mask(parts), wrong))
    _, mask, wrong = min(tried, key=lambda each: each[0])
    return (mask, int(wrong[0, 0]), int(wrong[0, 1])) if len(wrong) else None
