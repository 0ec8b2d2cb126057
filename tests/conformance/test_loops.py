"""Recurrent consolidation: what it keeps, when it is nothing, and that a person is told what it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sleepc.capturing import capture
from sleepc.converting import convert
from sleepc.errors import SleepcWarning, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.text import print_graph
from sleepc.memory.parameters import DECAYS, key_of
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.rewrite.key_positions import is_held
from sleepc.passes.runner import run_stages
from sleepc.recipe import make_recipe
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import load
from tests.families import VOCAB, WINDOW, family

RECURRENT: dict[str, Any] = {"consolidation": "recurrent", "passes": 2}


def states_of(program: ProgramGraphs) -> set[str]:
    return {spec.name for spec in program.all_states()}


def test_what_a_window_starts_with_is_written_in_one_order() -> None:
    """Names have another order in the sets of every process, and an artifact is to equal what its recipe makes."""
    step, _ = family("gemma3").convert(**RECURRENT, last_position="renumber", own_windows="narrow")
    assert step.loop is not None
    graph = step.loop.given
    places = {node: place for place, node in enumerate(graph.fx.nodes)}
    made = [places[node] for name, node in sorted(graph.results().items()) if name.startswith("mask.") or is_held(name)]
    assert len(made) >= 3
    assert made == sorted(made)


@pytest.mark.parametrize("strategy", ["parallel", "insert", "replace"])
def test_one_pass_is_the_program_without_a_loop(strategy: str) -> None:
    one, _ = family("llama").convert(strategy=strategy, consolidation="recurrent", loop="middle")
    plain, _ = family("llama").convert(strategy=strategy)
    assert one.loop is None
    assert [print_graph(g) for g in one.graphs()] == [print_graph(g) for g in plain.graphs()]
    assert one.states == plain.states


@pytest.mark.parametrize(
    ("options", "extra", "absent"),
    [
        # The end of the loop keeps its hidden states; blocks after it need no record, and those that wake writes start
        # again from what they held.
        ({"loop": "0:2"}, {"1.hidden"}, {"2.record.k", "2.start.S", "window_tokens"}),
        ({"loop": "0:2", "write": "online"}, {"1.hidden", "2.start.S"}, {"0.start.S", "0.record.k", "2.record.k"}),
        ({"loop": "all"}, {"2.hidden", "2.record.k"}, {"0.start.S", "1.start.S", "2.start.S"}),
        ({"strategy": "replace", "loop": "1:2"}, {"1.hidden", "2.start.S"}, {"0.k", "0.start.S", "1.record.k"}),
    ],
)
def test_kept_is_what_is_needed(options: dict[str, Any], extra: set[str], absent: set[str]) -> None:
    step, _ = family("llama").convert(**RECURRENT, **options)
    found = states_of(step)
    assert extra <= found
    assert not absent & found


class ValueEmbeddings(nn.Module):
    """A model whose blocks add an embedding of the tokens to their values, beside h."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.side = nn.Embedding(VOCAB, 32), nn.Embedding(VOCAB, 32)
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.head = nn.Linear(32, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        h, side = self.h(tokens), self.side(tokens)
        for qkv, out in zip(self.qkv, self.out, strict=True):
            parts = torch.nn.functional.layer_norm(qkv(h), (96,)).chunk(3, -1)
            q, k, v = (self._heads(x) for x in (parts[0], parts[1], parts[2] + side))
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + out(mixed.transpose(1, 2).flatten(2))
        logits: Tensor = self.head(h)
        return logits

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], 4, 8).transpose(1, 2)


def test_blocks_that_read_tokens_get_them_again() -> None:
    torch.manual_seed(0)
    canonical = capture(ValueEmbeddings().double().eval())
    recipe = make_recipe({"window": WINDOW, "sinks": 2, "loop": "1:2", **RECURRENT})
    step = run_stages(canonical, rewrite_stages(recipe, 3))
    assert "window_tokens" in states_of(step)
    program = shaken(step)
    tokens = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
    oracle = Oracle(canonical, recipe, parameters_of(canonical, program))
    bench = Bench(load(program), oracle, make_streams(tokens, WINDOW))
    assert invariants.definition(bench) < 1e-9
    assert invariants.chunking(bench) < 1e-9
    assert invariants.padding(bench) < 1e-9


def test_passes_change_what_a_sleep_leaves() -> None:
    """Else equality with the oracle would prove nothing about passes after the first."""
    tokens = np.random.default_rng(3).integers(0, VOCAB, (1, WINDOW))
    memories = []
    for passes in (1, 2, 3):
        step, _ = family("llama").convert(consolidation="recurrent", passes=passes, loop="0:2", write="online")
        steps = load(shaken(step))
        _, state = steps.wake(steps.new_state(1), tokens, np.array([WINDOW]), "none")
        arrays = steps.to_named_arrays(steps.sleep(state, np.array([True])))
        memories.append(np.stack([arrays[f"{i}.S"] for i in range(3)]))
    assert np.abs(memories[0] - memories[1]).max() > 1e-3
    assert np.abs(memories[1] - memories[2]).max() > 1e-3


def test_half_lives_are_as_many_times_longer() -> None:
    from torch.nn.functional import softplus

    one, _ = family("llama").convert()
    three, _ = family("llama").convert(consolidation="recurrent", passes=3)
    rates = [softplus(p.params[key_of(0, DECAYS.bias)].materialise().double()) for p in (one, three)]
    assert torch.allclose(rates[0], 3 * rates[1], rtol=1e-5)
    # Blocks after the loop are written once, whatever N is.
    after, _ = family("llama").convert(consolidation="recurrent", passes=3, loop="0:2")
    assert torch.equal(*(p.params[key_of(2, DECAYS.bias)].materialise() for p in (one, after)))


def test_an_untrained_program_is_warned_of() -> None:
    module = family("nanogpt").module
    with pytest.warns(SleepcWarning, match="2 recurrent passes on a program that was not trained"):
        program = convert(module, {"window": WINDOW, "sinks": 2, **RECURRENT})
    assert program.graphs.loop is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loop": "2:2"}, "empty or leaves it"),
        ({"loop": "1:9"}, "blocks 0 to 2"),
        ({"strategy": "replace", "write": "sleep"}, "which needs attention"),
        ({"rule": "gated", "passes": 2}, "does not correct"),
        ({"rule": "delta", "decay": "channel"}, "no decay"),
        ({"rule": "mamba"}, "no rule is named 'mamba'"),
        ({"overrides": [{"layers": "1", "window": 3}]}, "sleeps come after 8"),
        ({"overrides": [{"layers": "1", "window": "none"}], "eviction": "hard"}, "hard eviction drops them"),
        ({"overrides": [{"layers": "7", "rule": "delta"}]}, "layer 7 does not exist"),
    ],
)
def test_what_excludes_each_other(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        family("llama").convert(**options)
