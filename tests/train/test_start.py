"""Where memories start to learn from: what is set, and what is left alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sleepc.memory.parameters import CONV, DECAYS, KEY_MAP, MIX_BIAS, OUT_GATE, QUERY_MAP, STRENGTHS
from sleepc.runtime.steps import IntArray
from sleepc.train.pieces import Piece, recalling
from sleepc.train.start import LASTING, LONGER, mean_keys, new_layers, start_memories
from sleepc.verify.memory_values import shaken
from tests.families import VOCAB, WINDOW, family


def _tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (3, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma2", "nanogpt"))]
)
def test_keys_lose_their_mean_and_gates_are_set(name: str) -> None:
    canonical = family(name).canonical
    program = family(name).convert()[0]
    means = mean_keys(canonical, _tokens())
    started = start_memories(program, canonical, _tokens())
    for i, block in enumerate(program.layout):
        values = {port: started.params[key].materialise() for port, key in block.params.items()}
        old = {port: program.params[key].materialise() for port, key in block.params.items()}
        heads, width = means[i].shape
        maps = values[KEY_MAP.port].view(heads, width, width)
        unit = means[i] / means[i].norm(dim=-1, keepdim=True)
        assert torch.einsum("hd,hde->he", unit, maps).abs().max() < 1e-5
        across = torch.linalg.matrix_rank(maps.double(), atol=1e-4)
        assert (across == width - 1).all(), "nothing else is lost"
        groups = values[QUERY_MAP.port].shape[0] // (heads * width)
        of_queries = values[QUERY_MAP.port].view(heads, groups, width, width)
        torch.testing.assert_close(of_queries, maps[:, None].expand_as(of_queries))
        assert set(values[MIX_BIAS.port].tolist()) == {MIX_BIAS.fresh}
        assert torch.sigmoid(values[STRENGTHS.bias.port]).mean() == pytest.approx(
            min(width / 16 / WINDOW, 0.5), rel=1e-5
        )
        decays = [torch.nn.functional.softplus(v[DECAYS.bias.port]) for v in (old, values)]
        torch.testing.assert_close(decays[0], decays[1] * LONGER)
        assert all(torch.equal(values[port], old[port]) for port in values if "memory" not in port)


def test_what_was_trained_or_is_no_memory_beside_attention_is_left_alone() -> None:
    canonical = family("llama").canonical
    for program in (shaken(family("llama").convert()[0]), family("llama").convert(strategy="replace")[0]):
        assert start_memories(program, canonical, _tokens()) is program


@pytest.mark.parametrize("strategy", ["replace", "insert"])
def test_new_layers_are_random_by_the_seed_and_last(strategy: str) -> None:
    program = family("llama").convert(strategy=strategy)[0]
    first, again, other = (new_layers(program, seed) for seed in (1, 1, 2))
    for block in program.layout:
        for port, key in block.params.items():
            old, a, b, c = (graphs.params[key].materialise() for graphs in (program, first, again, other))
            assert torch.equal(a, b)
            assert a.dtype == old.dtype
            if port in (CONV.port, OUT_GATE.port):
                assert not torch.equal(a, c)
                assert a.std() > 0.05
            elif port == DECAYS.bias.port:
                left = torch.exp(-LASTING * torch.nn.functional.softplus(a.double()))
                torch.testing.assert_close(left, torch.full_like(left, 0.5), rtol=1e-3, atol=0)
            else:
                assert torch.equal(a, old)


def test_layers_that_were_trained_or_stand_beside_attention_are_not_new() -> None:
    for program in (family("llama").convert()[0], shaken(family("llama").convert(strategy="replace")[0])):
        found = new_layers(program, 0)
        assert all(
            torch.equal(found.params[key].materialise(), param.materialise()) for key, param in program.params.items()
        )


def test_mean_keys_are_those_before_positions() -> None:
    """One token again and again: its keys differ in their positions alone, so their mean has length 1."""
    means = mean_keys(family("llama").canonical, torch.full((1, 12), 7))
    assert means[0].norm(dim=-1).tolist() == pytest.approx([1.0] * len(means[0]), abs=1e-5)


def recalled(given: list[IntArray], share: float, window: int, opening: int, start: int = 0) -> list[IntArray]:
    return [piece.tokens for piece in recalling(map(Piece, given), share, window, opening, 3, start)]


@pytest.mark.parametrize(("window", "length", "opening"), [(8, 50, 1), (6, 17, 0), (1, 9, 0), (8, 15, 0)])
def test_stretches_come_again_from_beyond_the_window(window: int, length: int, opening: int) -> None:
    given = [np.arange(n * 1000, n * 1000 + length) for n in range(40)]
    made = recalled(given, 0.5, window, opening)
    changed = [n for n in range(40) if not np.array_equal(made[n], given[n])]
    if window // 2 and length >= 3 * window:
        assert 8 < len(changed) < 32
    else:
        assert not changed
    for n in changed:
        at = np.flatnonzero(made[n] != given[n])
        came_from = made[n][at] - n * 1000
        assert (at - came_from > window).all()
        assert came_from.min() >= opening
        assert at.min() >= 2 * window
    again = recalled(given[10:], 0.5, window, opening, start=10)
    assert all(np.array_equal(a, b) for a, b in zip(again, made[10:], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(recalled(given, 0.0, window, opening), given, strict=True))
    assert math.prod(p.size for p in made) > 0
