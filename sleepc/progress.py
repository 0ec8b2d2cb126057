"""How far a long piece of work is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Hears what is being done now, and which share of that is done (None if nobody knows)."""

OnShare = Callable[[float], None]
"""Hears which share is done, if what is done is clear."""


def silent(what: str, share: float | None) -> None:
    """Nobody listens."""
    del what, share
