"""Kept pairs in the oracle: chosen token by token, and seen at the positions that they stand at."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor

from sleepc.ir.parameters import block_key
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import NOTHING
from sleepc.passes.analysis.find_sites import Site
from sleepc.passes.consolidation.contract import Layer, Pairs
from sleepc.passes.keep.contract import STEP, HeadPairs
from sleepc.passes.keep.registry import find as find_score
from sleepc.passes.plan import Budget
from sleepc.passes.rewrite.kept_pairs import PROBE
from sleepc.passes.rewrite.key_positions import on_tokens
from sleepc.recipe import LayerPlan, Recipe
from sleepc.verify.rounded import rounded, stored
from sleepc.verify.timeline import Timeline, sees_kept


class OracleView(Protocol):
    """What the oracle is to kept pairs (sleepc/verify/oracle.py)."""

    program: ProgramGraphs
    recipe: Recipe
    parameters: Mapping[str, Tensor]
    plans: tuple[LayerPlan, ...]
    sites: dict[str, Site]
    budgets: tuple[Budget, ...]
    most: int
    renumbers: bool

    def site_of(self, i: int) -> Site:
        """The attention of block i."""

    def ring(self, i: int) -> int:
        """How many tokens it keeps."""

    def turned(self, i: int, k: Tensor, positions: Tensor) -> Tensor:
        """k [B,Hkv,t,d] before positions, of block i, with positions [t] applied."""

    def wide(self, x: Tensor) -> Tensor:
        """x in the dtype of memories."""


def no_pairs(budget: Budget, rows: int) -> Pairs | None:
    """Empty slots; None for a layer without any."""
    if not budget:
        return None
    return Pairs(budget, *([[[] for _ in budget] for _ in range(rows)] for _ in range(4)))  # type: ignore[arg-type]


def renumbers_with_pairs(oracle: OracleView) -> bool:
    """Can keys that stand at a position be put at another one? Not if positions are added to tokens, keys of an earlier
    layer are used again, a layer keeps all positions, or turning a key twice differs from turning it once.
    """
    placed = any(site.placed for site in oracle.sites.values())
    whole = any(p.window is None and p.strategy != "replace" for p in oracle.plans)
    if placed or whole or on_tokens(oracle.program.embed):
        return False
    last = oracle.program.max_positions or 1
    for i, budget in enumerate(oracle.budgets):
        if budget and (site := oracle.site_of(i)).rotated:
            k = torch.randn(1, site.kv_heads, 1, site.d_k, generator=torch.Generator().manual_seed(1))
            k = k.to(site.k.meta["type"].dtype)
            if not _turns_back(oracle, i, k, last // 2, last // 3):
                return False
    return True


def _turns_back(oracle: OracleView, i: int, k: Tensor, start: int, by: int) -> bool:
    """Is a key that stands at `start`, turned back, what it is `by` before it?"""
    once = oracle.turned(i, k, torch.tensor([start])).to(k.dtype)
    try:
        twice = oracle.turned(i, once, torch.tensor([-by]))
    except (IndexError, RuntimeError):  # a table of positions has none before the first one
        return False
    return torch.allclose(twice.double(), oracle.turned(i, k, torch.tensor([start - by])).double(), rtol=0, atol=0.01)


def kept_columns(
    oracle: OracleView, i: int, layer: Layer, time: Timeline, start: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [B,Hkv,S,d_k] as attention sees them, values [B,Hkv,S,d_v], and which of the tokens start .. end-1 sees
    them, bool [B,Hkv,n,S], of the pairs that block i keeps; S is the largest budget.
    """
    pairs, k, v = layer.kept, layer.k, layer.v
    assert pairs is not None
    assert k is not None
    assert v is not None
    most = max(pairs.budget)
    tokens = torch.full((*k.shape[:2], most), -1)
    keys, values = k.new_zeros(*k.shape[:2], most, k.shape[3]), v.new_zeros(*v.shape[:2], most, v.shape[3])
    for row, heads in enumerate(pairs.tokens):
        for head, (held, own) in enumerate(zip(heads, _turned_keys(oracle, i, layer, row), strict=True)):
            tokens[row, head, : len(held)] = torch.tensor(held, dtype=torch.int64)
            values[row, head, : len(held)] = rounded(v[row, head, held], dtype_of(oracle))
            keys[row, head, : len(held)] = own
    return keys, values, sees_kept(time, tokens, oracle.ring(i), start, end)


def _turned_keys(oracle: OracleView, i: int, layer: Layer, row: int) -> list[Tensor]:
    """The keys of a row's kept pairs as attention sees them, [n,d_k] for every KV head. Few bits are what they are in
    with their positions; those that were put at other positions later had been rounded without any, before that.
    """
    pairs, k, dtype = layer.kept, layer.k, dtype_of(oracle)
    assert pairs is not None
    assert k is not None
    counts = [len(held) for held in pairs.tokens[row]]
    every = k[row : row + 1, :, [t for held in pairs.tokens[row] for t in held]]  # all heads' tokens, of all heads
    if oracle.site_of(i).rotated:
        places = torch.tensor([p for own in pairs.places[row] for p in own])
        first = torch.tensor([p for own in pairs.first_places[row] for p in own])
        every = torch.where((places != first)[:, None], rounded(every, dtype), every)
        every = oracle.turned(i, every, places)
    return [rounded(part[head], dtype) for head, part in enumerate(torch.split(every[0], counts, 1))]


def dtype_of(oracle: OracleView) -> str:
    """How slots hold vectors: `keep.dtype` of the recipe."""
    return oracle.recipe.keep.dtype if oracle.recipe.keep else "float"


def keep_pairs(oracle: OracleView, i: int, layer: Layer, time: Timeline, start: int, end: int) -> Pairs | None:
    """The sleep of block i after tokens start .. end-1: every head keeps the best of what it has and of the window, and
    of equals the older one. What it has after it; None if it keeps none.
    """
    pairs = deepcopy(layer.kept)
    if pairs is None:
        return None
    epoch, offset = (
        (time.epoch[end], time.offset[end]) if end < len(time.epoch) else (time.next_epoch, time.next_offset)
    )
    hard, moved = bool(epoch != time.epoch[end - 1]), bool(offset != time.offset[end - 1])
    for row, heads in enumerate(pairs.tokens):
        for head, budget in enumerate(pairs.budget):
            before = dict(zip(heads[head], pairs.places[row][head], strict=True))
            first_places = dict(zip(heads[head], pairs.first_places[row][head], strict=True))
            new = _window_scores(oracle, i, layer, time, (row, head), range(start, end))
            found = [*zip(heads[head], pairs.scores[row][head], strict=True), *new]
            best = sorted(found, key=lambda pair: -pair[1])[: 0 if hard else budget]
            tokens = sorted(token for token, _ in best)
            places = [before[t] if t in before else int(time.position[t] - time.offset[t]) for t in tokens]
            if moved:
                first = oracle.recipe.sinks + oracle.most - len(tokens)
                in_ring = [t >= end - oracle.ring(i) for t in tokens]
                ring = [int(time.position[t]) - int(offset) for t in tokens]
                places = [ring[j] if in_ring[j] else first + j for j in range(len(tokens))]
            heads[head], pairs.places[row][head] = tokens, places
            stood = zip(tokens, places, strict=True)
            pairs.first_places[row][head] = [first_places.get(t, place) for t, place in stood]
            pairs.scores[row][head] = [dict(best)[t] for t in tokens]
    return pairs


def _window_scores(
    oracle: OracleView, i: int, layer: Layer, time: Timeline, at: tuple[int, int], tokens: range
) -> list[tuple[int, float]]:
    """(token, score) of a window's pairs of one row and head of block i, but for sinks and what is not to be kept."""
    assert layer.k is not None
    assert layer.v is not None
    assert oracle.recipe.keep is not None
    (row, head), positions = at, time.position[tokens.start : tokens.stop].tolist()
    k, v = (oracle.wide(x[row, head, tokens.start : tokens.stop]) for x in (layer.k, layer.v))
    score = find_score(oracle.recipe.keep.score)
    probe = oracle.parameters[block_key(i, PROBE)][head] if score.probed else None
    scores = score.naive(HeadPairs(k, v, positions, head, None if probe is None else oracle.wide(probe))).tolist()
    steps = [round(score / STEP) * STEP for score in scores]
    each = zip(tokens, steps, positions, strict=True)
    return [(t, score) for t, score, p in each if p >= oracle.recipe.sinks and score > NOTHING / 2]


def kept_state(oracle: OracleView, i: int, layer: Layer, time: Timeline) -> dict[str, Tensor]:
    """The states of block i's kept pairs, by part: all heads' slots one after the other, each head's empty ones
    first.
    """
    pairs, k, v = layer.kept, layer.k, layer.v
    assert pairs is not None
    assert k is not None
    assert v is not None
    parts_of = ("k", "v", "plain", "position", "token", "score")
    found: dict[str, list[Tensor]] = {name: [] for name in parts_of}
    for row, heads in enumerate(pairs.tokens):
        parts: dict[str, list[Tensor]] = {name: [] for name in found}
        for head, own in enumerate(_turned_keys(oracle, i, layer, row)):
            held, empty = heads[head], pairs.budget[head] - len(heads[head])
            parts["k"] += [k.new_zeros(empty, k.shape[3]), own.to(k.dtype)]
            parts["v"] += [v.new_zeros(empty, v.shape[3]), v[row, head, held]]
            parts["plain"] += [k.new_zeros(empty, k.shape[3]), k[row, head, held]]
            parts["position"].append(torch.tensor([-1] * empty + pairs.places[row][head], dtype=torch.int64))
            numbers = time.position[held].tolist()
            parts["token"].append(torch.tensor([-1] * empty + numbers, dtype=torch.int64))
            parts["score"].append(torch.tensor([0.0] * empty + pairs.scores[row][head], dtype=torch.float64))
        for name, each in parts.items():
            found[name].append(torch.cat(each))
    dtype = dtype_of(oracle)
    vectors = ("k", "v", "plain") if dtype != "float" and oracle.renumbers and oracle.site_of(i).rotated else ("k", "v")
    state = {name: torch.stack(found[name]) for name in (*vectors, "position", "token", "score")}
    return state | {part: x for name in vectors for part, x in stored(name, state.pop(name), dtype).items()}
