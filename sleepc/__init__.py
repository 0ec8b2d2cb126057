"""sleepc converts language models to bounded memory and sleep: their context is consolidated into fixed-size fast
weights.

program = sleepc.convert("SmolLM2-135M-Instruct", {"window": 256})
program.save("smollm2-sleep")
session = sleepc.load("smollm2-sleep").session()
logits = session.feed([1, 2, 3])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sleepc.version import __version__ as __version__

if TYPE_CHECKING:
    from sleepc.api import Program, load
    from sleepc.converting import convert, inspect
    from sleepc.errors import Refusal, SleepcError, UsageError
    from sleepc.inspection import Inspection
    from sleepc.recipe import Recipe

_HOMES = {
    "Inspection": "sleepc.inspection",
    "Program": "sleepc.api",
    "Recipe": "sleepc.recipe",
    "Refusal": "sleepc.errors",
    "SleepcError": "sleepc.errors",
    "UsageError": "sleepc.errors",
    "convert": "sleepc.converting",
    "inspect": "sleepc.converting",
    "load": "sleepc.api",
}
__all__ = [
    "Inspection",
    "Program",
    "Recipe",
    "Refusal",
    "SleepcError",
    "UsageError",
    "convert",
    "inspect",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import sleepc` alone brings no torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sleepc' has no attribute {name!r}")
