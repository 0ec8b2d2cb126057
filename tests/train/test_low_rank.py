"""Low-rank maps: nothing changes at start, what they compute is what the merged weights compute, all of it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sleepc import artifact
from sleepc.backends.eager.backend import load
from sleepc.converting import convert
from sleepc.errors import UsageError
from sleepc.ir.program import Block, ProgramGraphs
from sleepc.ir.text import print_graph
from sleepc.manifest import Source
from sleepc.passes.adapt.add_low_rank import LOW_A, LOW_B, AddLowRank, low_rank_keys
from sleepc.passes.adapt.merge_low_rank import MergeLowRank
from sleepc.passes.base import Pass, Stage
from sleepc.passes.runner import run_stages
from sleepc.runtime.session import Session
from sleepc.train.adapter import rank_of, with_values
from sleepc.train.optimisers import make_optimisers
from sleepc.train.settings import Settings
from sleepc.verify.memory_values import shaken
from tests.families import VOCAB, family
from tests.same import assert_same_logits, assert_same_program

RECURRENT: dict[str, Any] = {"consolidation": "recurrent", "passes": 2, "loop": "0:1"}
# (family, options, linear maps in a block): separate and fused projections, Conv1D, transposed weights, experts.
CASES: list[Any] = [
    ("llama", {}, 7),
    ("llama", {"strategy": "insert"}, 7),
    ("llama", {"strategy": "replace"}, 7),
    ("llama", RECURRENT, 7),
    ("gpt2", {}, 4),
    ("phi3", {}, 4),
    pytest.param("falcon", {}, 4, marks=pytest.mark.slow),
    pytest.param("mixtral", {}, 5, marks=pytest.mark.slow),
]


def apply(program: ProgramGraphs, *passes: Pass) -> ProgramGraphs:
    return run_stages(program, (Stage("low-rank", "STEP", passes),))


def logits(program: ProgramGraphs) -> np.ndarray[Any, Any]:
    """Of 20 tokens in windows of 8: two sleeps, the second of which reads the first one's memory."""
    tokens = torch.randint(0, VOCAB, (20,), generator=torch.Generator().manual_seed(3)).tolist()
    return Session(load(program), 1).feed(tokens, logits="all")


def with_random_maps(program: ProgramGraphs) -> ProgramGraphs:
    generator = torch.Generator().manual_seed(5)
    values = {
        key: 0.3 * torch.randn(param.shape, generator=generator)
        for key, param in program.params.items()
        if key.endswith(LOW_B)
    }
    assert values
    return with_values(program, values)


@pytest.mark.parametrize(("name", "options", "maps"), CASES)
def test_maps_start_silent_and_merge_into_the_weights(name: str, options: dict[str, Any], maps: int) -> None:
    step, _ = family(name).convert(**options)
    step = shaken(step)
    low = apply(step, AddLowRank(3, 0))
    added = [key for key in low.params if key not in step.params]
    assert len(added) == 2 * maps * len(step.layout)
    assert all(low.params[key].new and low.params[key].dtype == torch.float64 for key in added)
    before = logits(step)
    assert np.array_equal(logits(low), before)

    trained = with_random_maps(low)
    after = logits(trained)
    assert np.abs(after - before).max() > 1e-2
    merged = apply(trained, MergeLowRank())
    assert set(merged.params) == set(step.params)
    assert [print_graph(g) for g in merged.graphs()] == [print_graph(g) for g in step.graphs()]
    assert np.abs(logits(merged) - after).max() <= 1e-9 * np.abs(after).max()
    assert {key for key in step.params if merged.params[key].new} == {
        key for key in step.params if step.params[key].new
    }


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    step, recipe = family("llama").convert(**RECURRENT)
    low = with_random_maps(apply(step, AddLowRank(2, 0)))
    artifact.save_artifact(tmp_path / "out", low, artifact.About(recipe, Source(name="x", kind="module")))
    loaded, _ = artifact.load_artifact(tmp_path / "out")
    assert [print_graph(g) for g in loaded.graphs()] == [print_graph(g) for g in low.graphs()]
    assert_same_program(loaded, low)
    assert_same_logits(logits(loaded), logits(low))
    merged = apply(loaded, MergeLowRank())
    assert np.abs(logits(merged) - logits(low)).max() < 1e-9


def test_matrices_are_known_by_their_weight_and_not_by_a_name() -> None:
    """A parameter of the model's own may be called as they are."""
    step = family("llama").convert()[0].clone()
    first = step.layout[0]
    old = next(key for key in first.params.values() if not step.params[key].new)
    key = old + LOW_A
    step.params[key] = step.params.pop(old)
    step.layout[0] = Block(first.cls, {port: key if own == old else own for port, own in first.params.items()})
    assert not low_rank_keys(step)
    assert rank_of(step) == 0
    low = apply(step, AddLowRank(2, 0))
    assert set(low_rank_keys(low).values()) == {each for each in low.params if each.endswith(LOW_B)}
    assert rank_of(low) == 2
    masters = {each: low.params[each].materialise() for each in (key, *low_rank_keys(low))}
    groups = make_optimisers(low, masters, Settings(low_rank_lr=0.5))[0].param_groups
    of_maps = [group["params"] for group in groups if group["full"] == 0.5]
    assert [len(each) for each in of_maps] == [len(masters) - 1], "the model's own learns as weights do"


def test_seed_and_block_decide_the_values() -> None:
    step, _ = family("llama").convert()
    a, again, other = (apply(step, AddLowRank(2, seed)).params for seed in (0, 0, 1))
    name = next(k for k in a if k.endswith(".low_a"))
    assert name.startswith("blocks.0.")
    same = [p[name].materialise() for p in (a, again, other)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    assert not torch.equal(same[0], a[name.replace("blocks.0", "blocks.1")].materialise())
    assert abs(float(same[0].std()) * same[0].shape[1] ** 0.5 - 1) < 0.4


def test_a_half_precision_program_runs_its_maps_in_half() -> None:
    model = family("llama").module
    step = convert(model, {"window": 8, "sinks": 2, "dtype": "bfloat16"}).graphs
    low = with_random_maps(apply(step, AddLowRank(2, 0)))
    port = next(p for p in low.layout[0].params if p.endswith(LOW_B))
    assert low.classes[low.layout[0].cls].wake.ports()[port].meta["type"].dtype == torch.bfloat16
    assert all(low.params[k].dtype == torch.float32 for k in low.params if k.endswith(LOW_B))
    merged = apply(low, MergeLowRank())
    assert {p.dtype for k, p in merged.params.items() if p is not step.params[k]} == {torch.bfloat16}
    assert np.abs(logits(merged) - logits(low)).max() < 0.1 * np.abs(logits(low)).max()


class Tied(nn.Module):
    """Two blocks with the same attention weights: what each adapts is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.head = nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.h(tokens)
        for _ in range(2):
            q, k, v = (
                x.unflatten(-1, (2, 8)).transpose(1, 2) for x in self.qkv(nn.functional.rms_norm(h, (16,))).chunk(3, -1)
            )
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + self.out(mixed.transpose(1, 2).flatten(2))
        found: torch.Tensor = self.head(h)
        return found


def test_blocks_that_share_a_weight_part_when_maps_are_merged() -> None:
    torch.manual_seed(0)
    step = convert(Tied().double().eval(), {"window": 8, "sinks": 2}).graphs
    assert set(step.layout[0].params.values()) & set(step.layout[1].params.values())
    low = with_random_maps(apply(step, AddLowRank(2, 0)))
    merged = apply(low, MergeLowRank())
    assert np.abs(logits(merged) - logits(low)).max() < 1e-9


def test_maps_in_which_nothing_was_learned_leave_the_weights_alone() -> None:
    step, _ = family("gpt2").convert()
    low = apply(step, AddLowRank(2, 0))
    merged = apply(low, MergeLowRank())
    assert all(merged.params[key] is step.params[key] for key in step.params)


def test_nothing_to_do_is_nothing_done() -> None:
    step, _ = family("llama").convert()
    low = apply(step, AddLowRank(2, 0))
    assert apply(low, AddLowRank(2, 0)).params.keys() == low.params.keys()
    assert apply(step, MergeLowRank()).params == step.params


def test_a_rank_is_a_number_of_rows() -> None:
    step, _ = family("llama").convert()
    with pytest.raises(UsageError, match="must be at least 1"):
        apply(step, AddLowRank(0, 0))
