"""What the original's own KV cache takes, as it grows: layers with a window or chunks of their own stop at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sleepc.ir.program import ProgramGraphs
from sleepc.passes.find_sites import find_site

FACT = "kv_cache"  # its name in an artifact's report


@dataclass(frozen=True)
class KVCache:
    """`layers`: how many numbers the keys and values of a token are in layers that keep so many tokens (0: all), in
    the order of what they keep; `itemsize`: bytes of a number. No two layers share keys: such models are refused.
    """

    layers: tuple[tuple[int, int], ...]
    itemsize: int

    def bytes(self, tokens: int) -> int:
        """What a sequence of so many tokens takes."""
        return self.itemsize * sum(numbers * min(tokens, kept or tokens) for numbers, kept in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """What each token adds once the windows are full."""
        return self.itemsize * sum(numbers for numbers, kept in self.layers if not kept)

    @property
    def longest_window(self) -> int:
        """After how many tokens it grows evenly; 0 where it always does."""
        return max((kept for _, kept in self.layers), default=0)

    def break_even(self, state: int) -> int | None:
        """The fewest tokens that take as much as `state` bytes; None where it never grows so far."""
        enough = self.longest_window
        if self.bytes(enough) < state:
            if not self.bytes_per_token:
                return None
            return enough + -(-(state - self.bytes(enough)) // self.bytes_per_token)
        few = 0
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if self.bytes(middle) >= state else (middle, enough)
        return enough

    def in_dtype(self, itemsize: int) -> KVCache:
        """The same with numbers of so many bytes."""
        return KVCache(self.layers, itemsize)


def kv_cache(canonical: ProgramGraphs) -> KVCache:
    """That of a program at level CANONICAL, in its dtype."""
    found: Counter[int] = Counter()
    sites = {name: find_site(cls.wake) for name, cls in canonical.classes.items()}
    for block in canonical.layout:
        site = sites[block.cls]
        found[site.window or site.chunk] += site.kv_heads * (site.d_k + site.d_v)
    layers = tuple((numbers, kept) for kept, numbers in sorted(found.items()))
    return KVCache(layers, canonical.dtype.itemsize)


def noted(cache: KVCache) -> list[list[int]]:
    """The layers as an artifact's report has them."""
    return [list(layer) for layer in cache.layers]


def from_report(report: dict[str, Any], itemsize: int) -> KVCache | None:
    """That of an artifact's original; None where its report does not say, or not in this form."""
    layers = report.get(FACT)
    fits = isinstance(layers, Sequence) and all(
        isinstance(layer, list) and len(layer) == 2 and all(type(n) is int and n >= 0 for n in layer)
        for layer in layers
    )
    return KVCache(tuple((numbers, kept) for numbers, kept in layers), itemsize) if fits and layers else None
