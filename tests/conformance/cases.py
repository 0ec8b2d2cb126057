"""Which families are converted how: every family once, every recipe on families that differ in what matters to it.

Like tests/families.py, without a line of sleepc: tests/golden/same.py gives the same cases to two commits.
"""

from __future__ import annotations

from typing import Any

from tests.families import MODELS, WINDOW

RECIPES: dict[str, dict[str, Any]] = {
    "parallel": {},
    "parallel-hard": {"eviction": "hard", "passes": 3},
    "parallel-online": {"write": "online", "passes": 2, "sinks": 0},
    "insert": {"strategy": "insert"},
    "insert-sleep": {"strategy": "insert", "write": "sleep", "eviction": "hard", "passes": 3, "sinks": 0},
    "some-layers": {"layers": "1", "passes": 5},
}
# Every rule, strategy and way of consolidation, each on one family.
MATRIX: dict[str, dict[str, Any]] = {
    "linear": {"rule": "linear"},
    "gated-channel": {"rule": "gated", "decay": "channel", "write": "online"},
    "delta": {"rule": "delta", "passes": 3},
    "gated-delta-channel": {"strategy": "insert", "decay": "channel", "write": "sleep"},
    "replace": {"strategy": "replace"},
    "replace-channel": {"strategy": "replace", "layers": "1", "decay": "channel", "passes": 2, "eviction": "hard"},
    "recurrent": {"consolidation": "recurrent", "passes": 2},
    "recurrent-hard": {"consolidation": "recurrent", "passes": 3, "loop": "middle", "eviction": "hard", "sinks": 0},
    "recurrent-online": {"consolidation": "recurrent", "passes": 2, "loop": "0:2", "write": "online"},
    "recurrent-insert": {"consolidation": "recurrent", "passes": 3, "loop": "0:1", "strategy": "insert"},
    "recurrent-replace": {"consolidation": "recurrent", "passes": 2, "loop": "1:2", "strategy": "replace"},
    "layer-by-layer": {
        "consolidation": "recurrent",
        "passes": 2,
        "loop": "1:3",
        "overrides": [{"layers": "0", "window": "none"}, {"layers": "1", "rule": "delta", "window": WINDOW + 5}],
    },
    "recurrent-settle": {"consolidation": "recurrent", "passes": 5, "loop": "0:2", "write": "online", "settle": 0.3},
}
RECIPES |= MATRIX
# Every family with the default recipe, every recipe on families that differ in what matters to it.
FAMILIES = ("llama", "gemma2", "gpt2")
CASES = [(name, "parallel") for name in MODELS]
CASES += [(name, recipe) for recipe in RECIPES if recipe not in ("parallel", *MATRIX) for name in FAMILIES]
CASES += [(FAMILIES[i % 3], recipe) for i, recipe in enumerate(MATRIX)]
EXACT = [(name, recipe) for name, recipe in CASES if RECIPES[recipe].get("strategy") != "replace"]
