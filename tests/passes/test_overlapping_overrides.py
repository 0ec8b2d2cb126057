"""Overrides overlap, and what a layer gets in the end is what has to fit."""

from __future__ import annotations

from typing import Any

import pytest

from sleepc.errors import UsageError
from sleepc.passes.pipeline import check_recipe, rewrite_stages
from sleepc.recipe import make_recipe

BASE: dict[str, Any] = {"window": 8, "sinks": 2}


def over(layers: str, **options: Any) -> dict[str, Any]:
    """An override."""
    return {"layers": layers, **options}


@pytest.mark.parametrize(
    "recipe",
    [
        {"rule": "lact", "overrides": [over("0", rule="gated_delta"), over("0", decay="channel")]},
        {"passes": 2, "rule": "lact", "overrides": [over("0-1", rule="gated_delta")]},
        {"passes": 2, "overrides": [over("0", rule="lact"), over("0", strategy="leave")]},
        {"consolidation": "hebbian", "rule": "lact", "overrides": [over("0-1", rule="delta")]},
        {"decay": "channel", "overrides": [over("1", rule="linear"), over("1", decay="head")]},
    ],
)
def test_what_no_layer_gets_in_the_end_is_not_refused(recipe: dict[str, Any]) -> None:
    assert rewrite_stages(make_recipe({**BASE, **recipe}), 2)


@pytest.mark.parametrize("rule", ["lact", "titans_mlp", "linear"])
def test_a_decay_of_one_override_and_a_rule_of_the_next_are_refused(rule: str) -> None:
    overrides = [over("0", rule="gated_delta", decay="channel"), over("0", rule=rule)]
    with pytest.raises(UsageError, match=f"rule {rule} has no decay") as caught:
        rewrite_stages(make_recipe({**BASE, "overrides": overrides}), 2)
    assert caught.value.where == "layer 0, decay"


def test_passes_of_a_layer_whose_rule_only_adds_are_refused() -> None:
    with pytest.raises(UsageError, match="rule gated does not correct") as caught:
        rewrite_stages(make_recipe({**BASE, "passes": 2, "overrides": [over("1", rule="gated")]}), 2)
    assert caught.value.where == "layer 1, passes"


def test_noise_in_a_memory_that_is_no_matrix_is_refused() -> None:
    overrides = [over("0", rule="delta"), over("0", rule="trellis")]
    with pytest.raises(UsageError, match="the memory of rule trellis is none"):
        rewrite_stages(make_recipe({**BASE, "consolidation": "hebbian", "overrides": overrides}), 2)


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        ({"rule": "gated", "passes": 2}, "passes"),
        ({"rule": "lact", "decay": "channel"}, "decay"),
        ({"rule": "lact", "strategy": "replace"}, "rule"),
        ({"rule": "trellis", "consolidation": "hebbian"}, "consolidation=hebbian"),
    ],
)
def test_where_all_layers_are_alike_no_model_is_needed_to_refuse(recipe: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_recipe(make_recipe({**BASE, **recipe}))
    assert caught.value.where == where
