"""Text that is on every machine: the topics of Python's own help."""

from __future__ import annotations

from collections.abc import Sequence
from pydoc_data.topics import topics

SAMPLE = 32


def default_text(characters: int = 60_000) -> str:
    """The first `characters` of Python's help topics, joined in the order of their names."""
    return "\n\n".join(topics[name] for name in sorted(topics))[:characters]


def says_something(ids: Sequence[int]) -> bool:
    """Are the tokens of a text mostly different ones? Attention over equal tokens gives the same whatever weights are,
    so a text that a tokenizer makes nothing of would hide faults.
    """
    first = ids[:SAMPLE]
    return 2 * len(set(first)) > len(first)
