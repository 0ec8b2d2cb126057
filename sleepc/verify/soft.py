"""Soft tokens in the oracle: encoded from what attention has seen of a window, block by block, by the original model,
and read where they stand. Nothing here is a graph's: positions and masks follow from the timeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, fx

from sleepc.ir.interp import Hook
from sleepc.ir.parameters import block_key
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import Site
from sleepc.passes.analysis.linear_maps import LinearMap
from sleepc.passes.consolidation.add_encoder import encoder_maps
from sleepc.passes.consolidation.contract import Layer, SoftPairs
from sleepc.recipe import LayerPlan, Recipe, Soft
from sleepc.verify import reference
from sleepc.verify.timeline import Timeline


class EncoderView(Protocol):
    """What the oracle is to soft tokens (sleepc/verify/oracle.py)."""

    program: ProgramGraphs
    recipe: Recipe
    parameters: Mapping[str, Tensor]
    plans: tuple[LayerPlan, ...]
    soft: Soft | None
    most: int
    renumbers: bool

    def site_of(self, i: int) -> Site:
        """The attention of block i."""

    def ring(self, i: int) -> int:
        """How many tokens it keeps."""

    def brought(self, i: int, site: Site) -> bool:
        """Are its sinks brought near?"""

    def turned(self, i: int, k: Tensor, positions: Tensor) -> Tensor:
        """k [B,Hkv,t,d] before positions, of block i, with positions [t] applied."""

    def original(self, i: int, values: Mapping[str, Any], hook: Hook) -> Tensor:
        """h after block i of the original, whose nodes `hook` may answer."""

    def wide(self, x: Tensor) -> Tensor:
        """x in the dtype of memories."""

    def given(self, tokens: Tensor, positions: Tensor) -> dict[str, Any]:
        """What blocks read, of tokens [B,T] at positions [T]."""

    def widen(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator's answer if it casts, to what the oracle computes in."""


Reading = Literal["behind", "alone", "window"]
"""Places behind the window; soft tokens in its place; the window once more."""


@dataclass(frozen=True)
class Places:
    """The k places of a window of tokens start .. end-1: which of its tokens they begin as [k], the numbers of these in
    the stream, where they stand as the model counts, and where the places behind the window do.
    """

    time: Timeline
    start: int
    end: int
    tokens: Tensor
    numbers: Tensor
    model: Tensor
    behind: Tensor


def places_of(time: Timeline, count: int, start: int, end: int) -> Places:
    """Of `count` soft tokens: each begins as the last token of its part of the window."""
    n = end - start
    tokens = torch.tensor([start + max((j + 1) * n // count - 1, 0) for j in range(count)])
    numbers, offset = time.position[tokens], int(time.offset[start])
    behind = int(time.position[end - 1]) + 1 - offset + torch.arange(count)
    return Places(time, start, end, tokens, numbers, numbers - offset, behind)


def encode(
    oracle: EncoderView, layers: list[Layer], time: Timeline, window: tuple[int, int], ids: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Of a window's tokens `ids` [B,n]: k [B,Hkv,k,d] before positions and v of its soft tokens in every block."""
    assert oracle.soft is not None
    at = places_of(time, oracle.soft.tokens, *window)
    begun = ids[:, at.tokens - at.start]
    given = oracle.given(begun, at.model)
    encoded = _autoencoded if "soft.gain" in oracle.parameters else _transported
    added = encoded(oracle, layers, at, ids)
    h = given.pop("h")
    h = h + added.to(h.dtype)
    pairs = []
    for i in range(len(oracle.plans)):
        h, made = _block(oracle, i, layers[i], at, {**given, "h": h}, "alone")
        pairs.append(made)
    return pairs


def _autoencoded(oracle: EncoderView, layers: list[Layer], at: Places, ids: Tensor) -> Tensor:
    """What comes of the places behind the window, over its root mean square, times the gain [B,k,d]."""
    p, given = oracle.parameters, oracle.given(ids[:, at.tokens - at.start], at.behind)
    h = given.pop("h")
    h = h + p["soft.embeddings"].to(h.dtype)
    for i in range(len(oracle.plans)):
        h, _ = _block(oracle, i, layers[i], at, {**given, "h": h}, "behind")
    return reference.rms(oracle.wide(h)) * p["soft.gain"]


def _transported(oracle: EncoderView, layers: list[Layer], at: Places, ids: Tensor) -> Tensor:
    """ComprExIT's formulas, row by row and soft token by soft token; Sinkhorn's steps on logarithms [B,k,d]."""
    p, n, count = oracle.parameters, at.end - at.start, len(at.tokens)
    given = oracle.given(ids, at.time.position[at.start : at.end] - at.time.offset[at.start])
    each = [given.pop("h")]
    for i in range(len(oracle.plans)):
        each.append(_block(oracle, i, layers[i], at, {**given, "h": each[-1]}, "window")[0])
    query, key, value, layer = (p[f"soft.depth.{name}"] for name in ("query", "key", "value", "layer"))
    receive, supply, move, up, down = (p[f"soft.width.{x}"] for x in ("receive", "supply", "move", "up", "down"))
    found = []
    for row in range(len(ids)):
        x = torch.stack([reference.rms(oracle.wide(h[row])) for h in each], 1)  # [n,D+1,d]
        mixed = torch.einsum("l,tld->td", p["soft.depth.share"].softmax(0), x)
        scores = torch.einsum("tm,tlm->tl", mixed @ query.T, x @ key.T + layer) / len(query) ** 0.5
        y = torch.einsum("tl,tlm->tm", scores.softmax(1), x @ value.T)
        ends = [(j * n // count, max((j + 1) * n // count, j * n // count + 1)) for j in range(count)]
        parts = torch.stack([y[a:b].mean(0) for a, b in ends])
        near = torch.nn.functional.cosine_similarity((y @ receive.T)[:, None], (parts @ receive.T)[None], dim=2)
        moved = count * sinkhorn(near, (y @ supply[0]).log_softmax(0)).T @ (y @ move.T)
        found.append(torch.nn.functional.silu(reference.rms(moved) @ up.T) @ down.T)
    return torch.stack(found)


def sinkhorn(near: Tensor, log_rows: Tensor, sharp: float = 0.1, steps: int = 30) -> Tensor:
    """The plan [n,k] for affinities `near`, with rows of these logarithms and columns of 1/k."""
    kernel, log_column = (near - 1) / sharp, -torch.log(torch.tensor(float(near.shape[1])))
    a, b = torch.zeros(len(near), dtype=near.dtype), torch.zeros(near.shape[1], dtype=near.dtype)
    for _ in range(steps):
        a = log_rows - (kernel + b).logsumexp(1)
        b = log_column - (kernel + a[:, None]).logsumexp(0)
    return (kernel + a[:, None] + b).exp()


def _block(
    oracle: EncoderView, i: int, layer: Layer, at: Places, values: dict[str, Any], reading: Reading
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Block i on the k places -> h [B,k,d], and their keys before positions and values."""
    hook = _Hook(oracle, i, layer, at, reading)
    return oracle.original(i, values, hook), (hook.found[hook.site.k], hook.found[hook.site.v])


class _Hook:
    """Answers for attention, and for the maps beside which LoRA matrices stand, behind the window."""

    def __init__(self, oracle: EncoderView, i: int, layer: Layer, at: Places, reading: Reading) -> None:
        self.oracle, self.i, self.layer, self.time, self.at, self.reading = oracle, i, layer, at.time, at, reading
        self.site = oracle.site_of(i)
        self.found: dict[fx.Node, Tensor] = {}
        wake = oracle.program.classes[oracle.program.layout[i].cls].wake
        adapted = reading == "behind" and oracle.soft is not None and oracle.soft.rank > 0
        self.maps: dict[fx.Node, tuple[str, LinearMap]] = (
            {one.call: (part, one) for part, one in encoder_maps(wake).items()} if adapted else {}
        )

    def __call__(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node is self.site.node:
            return self._attention(args, kwargs)
        value = self.oracle.widen(node, args, kwargs)
        if node in self.maps:
            part, one = self.maps[node]
            a, b = (self.oracle.parameters[block_key(self.i, f"soft.{part}.low_{end}")] for end in ("a", "b"))
            x: Tensor = args[node.args.index(one.x)]
            plain: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
            value = plain + (x @ a.to(x.dtype).T @ b.to(x.dtype).T).reshape(plain.shape)
        if node in (self.site.k, self.site.v):
            value = node.target(*args, **kwargs) if value is NotImplemented else value  # type: ignore[operator]
            self.found[node] = value
        return value

    def _attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        q, k, v, _, sink_logits, *_ = args
        assert self.layer.k is not None
        assert self.layer.v is not None
        seen = self._tokens()
        keys = self.layer.k[:, :, seen]
        brought = self.oracle.brought(self.i, self.site)
        turns = self.site.rotated and (brought or self.oracle.renumbers or self.layer.soft is not None)
        if turns:
            keys = self.oracle.turned(self.i, keys, self._standing(seen))
        keys, values = torch.cat([keys.to(k.dtype), k], 2), torch.cat([self.layer.v[:, :, seen], v], 2)
        options = {name: kwargs[name] for name in ("scale", "softcap")}
        return reference.attention(q, keys, values, self._sees(seen), sink_logits, bias=None, **options)

    def _tokens(self) -> Tensor:
        """The sinks and, behind the window, what its ring has of it."""
        end = self.at.start if self.reading == "window" else self.at.end
        sinks = torch.arange(min(self.oracle.recipe.sinks, end))
        if self.reading != "behind":
            return sinks
        first = max(self.at.start, len(sinks), self.at.end - self.oracle.ring(self.i))
        return torch.cat([sinks, torch.arange(first, self.at.end)])

    def _standing(self, tokens: Tensor) -> Tensor:
        """Where they stand for the window, as the model counts."""
        oracle, start = self.oracle, self.at.start
        offset, own = int(self.time.offset[start]), self.site.mask.window
        shift = 0
        if oracle.brought(self.i, self.site):
            reach = min(oracle.ring(self.i) + oracle.recipe.sinks, own - oracle.recipe.window)
            shift = max(int(self.time.position[start]) - offset - reach, 0)
        return torch.where(tokens < oracle.recipe.sinks, tokens + shift, self.time.position[tokens] - offset)

    def _sees(self, tokens: Tensor) -> Tensor:
        """Bool [q,n+q]: of these tokens what is no later and not out of reach, and of what is read that before."""
        queries, count = self.at.numbers, len(self.at.tokens)
        if self.reading == "behind":
            queries = int(self.time.position[self.at.end - 1]) + 1 + torch.arange(count)
        elif self.reading == "window":
            queries = self.time.position[self.at.start : self.at.end]
            count = len(queries)
        keys = torch.cat([self.time.position[tokens], queries])
        distance = queries[:, None] - keys[None]
        seen = distance >= 0
        seen[:, len(tokens) :] &= torch.ones(count, count, dtype=torch.bool).tril()
        own = self.site.mask.window
        return seen & (distance < own) if own and not self.oracle.brought(self.i, self.site) else seen


# -- what stays ------------------------------------------------------------------------------------


def no_soft_tokens(rows: int, site: Site, dtype: torch.dtype) -> SoftPairs:
    """None yet."""
    k, v = (torch.zeros(rows, site.kv_heads, 0, width, dtype=dtype) for width in (site.d_k, site.d_v))
    return SoftPairs(k, v, [], [])


def kept_after(
    oracle: EncoderView, i: int, layer: Layer, time: Timeline, window: tuple[int, int], new: tuple[Tensor, Tensor]
) -> SoftPairs | None:
    """What block i has after the sleep: the newest of what it has and of what was made of the window."""
    old, (start, end), soft = layer.soft, window, oracle.soft
    if old is None or soft is None:
        return None
    epoch, offset = (
        (time.epoch[end], time.offset[end]) if end < len(time.epoch) else (time.next_epoch, time.next_offset)
    )
    if epoch != time.epoch[end - 1]:
        return SoftPairs(old.k[:, :, :0], old.v[:, :, :0], [], [])
    at = places_of(time, soft.tokens, start, end)
    room = soft.tokens * soft.windows
    k, v = (torch.cat([x, y.to(x.dtype)], 2)[:, :, -room:] for x, y in zip((old.k, old.v), new, strict=True))
    numbers = [*old.numbers, *at.numbers.tolist()][-room:]
    places = [*old.places, *at.model.tolist()][-room:]
    moved = int(offset - time.offset[end - 1])
    if moved:
        ring = int(time.position[end - 1]) + 1 - int(time.offset[end - 1]) - oracle.ring(i)
        first = oracle.recipe.sinks + oracle.most - len(places)
        places = [place - moved if place >= ring else first + j for j, place in enumerate(places)]
    return SoftPairs(k, v, numbers, places)


def soft_columns(
    oracle: EncoderView, i: int, soft: SoftPairs, time: Timeline, start: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys as attention sees them, values, and which of tokens start .. end-1 sees them, bool [n,S]: once the ring of
    block i has nothing as old any more.
    """
    passed = time.position[start:end, None] - torch.tensor(soft.numbers, dtype=torch.int64)[None]
    return _turned(oracle, i, soft), soft.v, passed >= oracle.ring(i)


def _turned(oracle: EncoderView, i: int, soft: SoftPairs) -> Tensor:
    if not oracle.site_of(i).rotated:
        return soft.k
    return oracle.turned(i, soft.k, torch.tensor(soft.places, dtype=torch.int64))


def soft_state(oracle: EncoderView, i: int, soft: SoftPairs) -> dict[str, Tensor]:
    """The states of block i's slots, by part: all heads' one after the other, each head's empty ones first."""
    assert oracle.soft is not None
    rows, heads, count, _ = soft.k.shape
    empty = oracle.soft.tokens * oracle.soft.windows - count

    def vectors(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(rows, heads, empty, x.shape[3]), x], 2).flatten(1, 2)

    def numbers(each: list[int], first: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([first] * empty + each, dtype=dtype).repeat(rows, heads)

    return {
        "k": vectors(_turned(oracle, i, soft).to(soft.k.dtype)),
        "v": vectors(soft.v),
        "position": numbers(soft.places, -1, torch.int64),
        "token": numbers(soft.numbers, -1, torch.int64),
        "score": numbers(soft.numbers, 0, torch.float64),
    }
