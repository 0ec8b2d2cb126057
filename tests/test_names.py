"""Whatever can be added has a name that recipes, texts, options and folders can have, and that is free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import pytest

from sleepc import masks
from sleepc.backends import table
from sleepc.errors import UsageError
from sleepc.memory import registry as rules
from sleepc.memory.rule import Rule
from sleepc.passes.consolidation import registry as consolidations
from sleepc.passes.keep import registry as scores

REGISTRIES: dict[str, tuple[Callable[[Any], object], Mapping[str, Any]]] = {
    "rule": (rules.register, rules.RULES),
    "consolidation": (consolidations.register, consolidations.CONSOLIDATIONS),
    "score": (scores.register, scores.SCORES),
    "kind of mask": (masks.register, masks.KINDS),
    "backend or target": (table.register, {table.DEFAULT: table.find_backend()}),
}


def renamed(made: Any, name: str) -> Any:
    """The same under another name."""
    if type(made) in (Rule, masks.Kind):
        return replace(made, name=name)
    made = copy(made)
    made.name = name
    return made


@pytest.mark.parametrize("kind", REGISTRIES)
def test_names_are_free_and_can_be_written(kind: str) -> None:
    register, known = REGISTRIES[kind]
    first, before = next(iter(known)), dict(known)
    with pytest.raises(UsageError, match=f"there is a {kind} named '{first}' already"):
        register(renamed(known[first], first))
    for name in ("", "Upper", "two words", "a.b", "a&b", "../up", "line\n", "9lives", "ü", "a" * 42):
        with pytest.raises(UsageError, match=f"cannot name a {kind}"):
            register(renamed(known[first], name))
    assert before == known


def test_a_name_of_a_mask_is_one_that_its_literal_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "every2_" + "a" * 34
    monkeypatch.setitem(masks.KINDS, name, renamed(masks.KINDS["window"], name))
    assert str(masks.Mask.parse(f"{name}(3)&window(5)")) == f"{name}(3)&window(5)"
