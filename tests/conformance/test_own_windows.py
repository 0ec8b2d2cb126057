"""Layers with windows of their own: those that are left compute what they did, those that are narrowed see no key from
farther away than their own mask allows.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sleepc.capturing import capture
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.masks import Mask
from sleepc.passes.analysis.own_windows import leave_own_windows, own_windows
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.rewrite.bound_attention import BoundAttention
from sleepc.passes.rewrite.window_masks import WindowMask
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe, make_recipe
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.original import Original
from sleepc.verify.streams import Stream
from sleepc.verify.verify import make_streams
from tests.conformance.backends import load
from tests.families import OTHERS, SMALL, SPECIAL, VOCAB, WINDOW, Family, family, make_module

OWN = 13  # more than the recipe's window, and less than four times as much
MIXED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": OWN}
NAMES = ("gemma3", "gpt-oss", "llama4")
# One of each way to write it; the rest of those that tests/families.py does not have.
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", {}),
    "ministral": ("MinistralConfig", "MinistralForCausalLM", {"head_dim": 8}),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", {}),
    "exaone4": ("Exaone4Config", "Exaone4ForCausalLM", {"head_dim": 8}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8, "use_sliding_window": True}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {"use_sliding_window": True}),
    "vaultgemma": ("VaultGemmaConfig", "VaultGemmaForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8}),
}


def module_of(name: str) -> nn.Module:
    if name in MORE:
        config, model, options = MORE[name]
        with mock.patch.dict(OTHERS, {f"mixed {name}": (config, model, {**SMALL, **SPECIAL, **MIXED, **options})}):
            return make_module(f"mixed {name}")
    changes: dict[str, Any] = {"attention_chunk_size": OWN} if name == "llama4" else MIXED
    return make_module(name, **changes)


@cache
def subject(name: str) -> Family:
    module = module_of(name)
    return Family(module, capture(module))


def converted(canonical: ProgramGraphs, **options: Any) -> tuple[ProgramGraphs, Recipe]:
    """As `convert` does it."""
    recipe = leave_own_windows(make_recipe({"window": WINDOW, "sinks": 2, **options}), canonical)
    return run_stages(canonical, rewrite_stages(recipe, len(canonical.layout))), recipe


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_layer_that_is_left_is_the_original_at_any_length(name: str) -> None:
    """With all positions kept by the other layers nothing is lost: a stream of almost five own windows."""
    found = subject(name)
    own = own_windows(found.canonical)
    assert sorted(own) == [0, OWN]
    full = str(own.index(0))
    step, recipe = converted(found.canonical, overrides=[{"layers": full, "window": "none"}])
    plan = recipe.plan(2)[own.index(OWN)]
    assert (plan.strategy, plan.window) == ("leave", OWN)
    tokens = np.random.default_rng(5).integers(0, VOCAB, 62)
    error = invariants.inside(load(step), Stream(tokens, (len(tokens),)), found.logits)
    assert error <= 2e-5
    narrowed, _ = converted(found.canonical, own_windows="narrow", overrides=[{"layers": full, "window": "none"}])
    assert invariants.inside(load(narrowed), Stream(tokens, (len(tokens),)), found.logits) > 100 * error


@pytest.mark.parametrize("options", [{}, {"consolidation": "recurrent", "passes": 2}, {"eviction": "hard"}])
def test_a_ring_may_be_shorter_than_what_is_read_at_once(options: dict[str, Any]) -> None:
    """An own window of 5 under 8 tokens from sleep to sleep: every split, against the oracle."""
    found = family("gemma3")
    step, recipe = converted(found.canonical, **options)
    assert [int(s.dims[2]) for s in step.all_states() if s.name == "0.k"] == [2 + 5]
    program = shaken(step)
    oracle = Oracle(found.canonical, recipe, parameters_of(found.canonical, program))
    tokens = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
    made = Bench(load(program), oracle, make_streams(tokens, WINDOW))
    assert max(invariants.chunking(made), invariants.definition(made), invariants.padding(made)) <= 1e-6


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, {0: ("leave", OWN)}),
        ({"own_windows": "leave", "window": 3}, {0: ("leave", OWN)}),
        ({"window": 3}, {}),  # 13 is more than 4 times 3
        ({"window": 20}, {0: ("leave", OWN)}),
        ({"window": 20, "layers": "0"}, {0: ("parallel", 20)}),  # a memory's record reads values from the ring
        ({"own_windows": "narrow"}, {}),
        ({"layers": "0"}, {0: ("parallel", OWN)}),
        ({"layers": "every:2"}, {0: ("leave", OWN)}),
        ({"overrides": [{"layers": "0", "strategy": "insert"}]}, {0: ("insert", OWN)}),
        ({"overrides": [{"layers": "0", "window": 9}]}, {0: ("parallel", 9)}),
    ],
)
def test_which_layers_are_left(options: dict[str, Any], left: dict[int, tuple[str, int]]) -> None:
    canonical = subject("gemma3").canonical
    recipe = make_recipe({"window": WINDOW, "sinks": 2, **options})
    made = leave_own_windows(recipe, canonical)
    plans = made.plan(2)
    for i, (strategy, window) in left.items():
        assert (plans[i].strategy, plans[i].window) == (strategy, window)
    if not left:
        assert made is recipe
    assert leave_own_windows(made, canonical) == made, "what a recipe says already is not said again"


def test_where_every_layer_has_one_they_are_narrowed() -> None:
    canonical = family("mistral-13").canonical
    recipe = make_recipe({"window": WINDOW})
    assert leave_own_windows(recipe, canonical) is recipe
    with pytest.raises(UsageError, match="every layer has a window of its own"):
        leave_own_windows(make_recipe({"window": WINDOW, "own_windows": "leave"}), canonical)


def positional() -> nn.Module:
    """A Mistral whose attention follows the distance: scores fall to the end of its own window and rise beyond it, to
    what they are at no distance, at twice as far. One number of every embedding is constant, no layer changes it, and
    the slowest rotation of queries and keys is made from it.
    """
    slowest = {"rope_type": "default", "rope_theta": (OWN / np.pi) ** (4 / 3)}
    options = {**SMALL, **SPECIAL, "sliding_window": OWN, "rope_parameters": slowest}
    with mock.patch.dict(OTHERS, {"positional": ("MistralConfig", "MistralForCausalLM", options)}):
        module: Any = make_module("positional")
    with torch.no_grad():
        module.model.embed_tokens.weight[:, 0] = 1.5
        for layer in module.model.layers:
            layer.input_layernorm.weight[0] = 1
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                by_head = projection.weight.view(-1, 8, 32)
                by_head *= 0.5
                by_head[:, :, 0] = 0
                by_head[:, 3, 0] = 3
    return module  # type: ignore[no-any-return]


def divergence(step: ProgramGraphs, wanted: Tensor, tokens: Tensor) -> tuple[float, float]:
    """KL(original | converted), averaged over rows and positions: before a stream passes the own window, and after."""
    found = torch.from_numpy(Session(load(step), len(tokens)).feed(tokens.tolist(), logits="all"))
    kl = (wanted.softmax(-1) * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum(-1).mean(0)
    return float(kl[WINDOW:OWN].mean()), float(kl[2 * OWN :].mean())


def test_nothing_jumps_where_a_stream_passes_the_own_window() -> None:
    """And with sinks where they came, the fault that this is about, it does: it is fourteen times as far away."""
    module = positional()
    canonical = capture(module)
    tokens = torch.randint(0, VOCAB, (8, 60), generator=torch.Generator().manual_seed(5))
    wanted = Original(module)(tokens)
    before, after = divergence(converted(canonical)[0], wanted, tokens)
    assert after < 2 * before

    def far(site: Any, window: int, sinks: int, *, brought: bool) -> WindowMask:
        return WindowMask(window, sinks, Mask(), ())

    with mock.patch.object(BoundAttention, "_brought", return_value=False), mock.patch.object(WindowMask, "of", far):
        before, after = divergence(converted(canonical)[0], wanted, tokens)
    assert after > 6 * before
