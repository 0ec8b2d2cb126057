"""Text that is on every machine: the topics of Python's own help."""

from __future__ import annotations

from pydoc_data.topics import topics


def default_text(characters: int = 60_000) -> str:
    """The first `characters` of Python's help topics, joined in the order of their names."""
    return "\n\n".join(topics[name] for name in sorted(topics))[:characters]
