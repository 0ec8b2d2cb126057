"""Raise fused and spelled-out softmax attention to `sleepc::attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.interp import value_of
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, REAL, Fact
from sleepc.passes.front.read_scores import MATMUL, Miss, ScoreReader, folds, keeps_numbers, unfolded
from sleepc.passes.front.score_terms import join
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit, call_sizes, val

SOFTMAX = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
EXPANSIONS = (
    aten.expand.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.repeat_interleave.self_int,
    aten.repeat.default,
)


@dataclass(frozen=True)
class RaiseAttention(Pass):
    """Two forms:
    1. aten.scaled_dot_product_attention, with or without mask, causal flag and grouped heads;
    2. matmul(softmax(terms(softcap(scale(matmul(q, kT))))), v), each part optional; terms are masks, and numbers that
       are added or multiply, which do not depend on the tokens. Heads may be folded into the batch.
    Keys and values that were repeated for grouped heads are taken from before the repetition, if repeating is all that
    was done.
    Raises Refusal if a softmax over tokens is left over, with the reason.
    """

    name: ClassVar[str] = "raise-attention"
    effect: ClassVar[Effect] = "ROUNDING"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, REAL)

    def run(self, program: ProgramGraphs) -> int:
        """The number of attention operations raised."""
        graph = program.embed
        count = 0
        dependence = find_dependence(graph, ("tokens",), ("positions",))
        reader = ScoreReader(program, dependence)
        for node in graph.calls():
            if is_call(node, aten.scaled_dot_product_attention.default):
                _raise_fused(graph, node)
                count += 1
            elif is_call(node, *SOFTMAX) and node in dependence.tokens and _over_tokens(node):
                try:
                    _raise_decomposed(graph, node, reader)
                except Miss as miss:
                    raise Refusal(
                        "UNKNOWN_MASK",
                        f"a softmax over tokens is not understood: {miss}",
                        where=node.meta.get("source", ""),
                    ) from miss
                count += 1
        graph.drop_dead()
        return count


def _over_tokens(softmax: fx.Node) -> bool:
    """Is it a softmax over scores [.., T, T] (and not over experts or a vocabulary)?"""
    shape = val(softmax).shape
    return len(shape) >= 3 and softmax.args[1] in (-1, len(shape) - 1) and not isinstance(shape[-1], int)


def _raise_fused(graph: Graph, node: fx.Node) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    q, k, v = given["query"], given["key"], given["value"]
    e = FlatEmit(graph, str(node.meta.get("source", "")), node)
    try:
        q, k, v = (with_heads(e, x) for x in (q, k, v))
    except Miss as miss:
        raise Refusal("OPERATOR", f"attention is not understood: {miss}", where=e.source) from miss
    mask = given.get("attn_mask")
    if mask is not None and val(mask).dim() == 3:
        mask = e.unfold(mask, int(val(q).shape[1]))
    scale = given.get("scale") or val(q).shape[-1] ** -0.5
    _replace(graph, node, _Attention(q, k, v, mask, float(scale), causal=bool(given.get("is_causal", False))))


def _raise_decomposed(graph: Graph, softmax: fx.Node, reader: ScoreReader) -> None:
    out = softmax
    while len(out.users) == 1 and keeps_numbers(next(iter(out.users))):
        out = next(iter(out.users))
    if len(out.users) != 1 or not is_call(next(iter(out.users)), *MATMUL):
        raise Miss("its result is not multiplied with values once")
    product = next(iter(out.users))
    if product.args[0] is not out:
        raise Miss("its result stands on the right of a product")
    scores = reader.read(softmax.args[0])
    assert scores.q is not None
    assert scores.turned is not None
    e = FlatEmit(graph, str(softmax.meta.get("source", "")), product)
    v: Any = product.args[1]
    q, k, v = (with_heads(e, x) for x in (scores.q, turned_back(e, scores.turned), v))
    q, k = (in_dtype_of(e, v, x) for x in (q, k))
    for factor in scores.factors:
        q = scaled(e, q, factor)
    mask = join(e, scores.terms, int(val(q).shape[1]))
    _replace(graph, product, _Attention(q, k, v, mask, scores.scale, scores.softcap))


def with_heads(e: FlatEmit, x: fx.Node) -> fx.Node:
    """Queries, keys or values [B,H,T,D]: from before heads were folded into the batch; [B,T,D] is one head."""
    rows, _ = call_sizes(e.graph)
    x = e.unsqueeze(x, 1) if val(x).dim() == 3 and str(val(x).shape[0]) in rows else unfolded(x)
    if val(x).dim() != 4 or isinstance(val(x).shape[0], int):
        raise Miss("queries, keys and values are not laid out as rows of the batch, heads, tokens, channels")
    return x


def scaled(e: FlatEmit, q: fx.Node, factor: fx.Node) -> fx.Node:
    """Queries times a factor [..,1] of their scores: (f q) k = f (q k)."""
    if val(factor).dim() == 3 and not isinstance(val(factor).shape[0], int):
        factor = e.unfold(factor, int(val(q).shape[1]))
    return in_dtype_of(e, q, e.mul(q, factor))


def turned_back(e: FlatEmit, keys: fx.Node) -> fx.Node:
    """Keys [.., T, D] of keys [.., D, T]: from before they were transposed, if they were by themselves."""
    rank = val(keys).dim()
    if is_call(keys, aten.transpose.int) and {d % rank for d in keys.args[1:]} == {rank - 1, rank - 2}:  # type: ignore[operator]
        return keys.all_input_nodes[0]
    return e.transpose(keys, -1, -2)


def in_dtype_of(e: FlatEmit, v: fx.Node, x: fx.Node) -> fx.Node:
    """Queries or keys in the dtype of the values, as windows are kept; `sleepc::attention` widens scores."""
    dtype = val(v).dtype
    if val(x).dtype == dtype:
        return x
    source = x.all_input_nodes[0]
    widened = is_call(x, aten.to.dtype) and val(source).dtype == dtype and val(x).dtype.itemsize > dtype.itemsize
    return source if widened else e.cast(x, dtype)


@dataclass(frozen=True)
class _Attention:
    """What attention is of: q [B,Hq,T,D], k, v [B,Hkv,T,D] that may be repeated to Hq heads, and a mask or None."""

    q: Any
    k: Any
    v: Any
    mask: Any
    scale: float
    softcap: float = 0.0
    causal: bool = False


def _replace(graph: Graph, node: fx.Node, found: _Attention) -> None:
    q, k, v = found.q, unrepeated(found.k, found.q), unrepeated(found.v, found.q)
    with graph.fx.inserting_before(node):
        call = graph.fx.call_function(
            torch.ops.sleepc.attention.default,
            (q, k, v, found.mask, None),
            {"scale": found.scale, "softcap": found.softcap, "causal": found.causal},
        )
        call.meta = {
            "val": val(q).new_empty((*val(q).shape[:3], val(v).shape[3])),
            "source": node.meta.get("source", ""),
        }
        result = call
        if folds(node, call):
            result = graph.fx.call_function(aten.flatten.using_ints, (call, 0, 1))
            result.meta = {"val": val(node), "source": call.meta["source"]}
    node.replace_all_uses_with(result)
    graph.fx.erase_node(node)


def unrepeated(keys: fx.Node, query: fx.Node) -> fx.Node:
    """The keys [B,Hkv,T,D] before they were repeated for grouped heads; `keys` itself if they were not.

    A chain of expansions counts as repetition only if, run on numbers, it repeats each head in place.
    """
    chain = [keys]
    while is_call(chain[-1], *EXPANSIONS) and isinstance(chain[-1].args[0], fx.Node):
        chain.append(chain[-1].args[0])
    heads = int(val(query).shape[1])
    for depth in range(len(chain) - 1, 0, -1):
        shape = val(chain[depth]).shape
        grouped = len(shape) == 4 and isinstance(shape[1], int) and shape[1] < heads and heads % shape[1] == 0
        if grouped and _repeats_heads(chain[:depth][::-1], chain[depth], heads):
            return chain[depth]
    return keys


def _repeats_heads(chain: list[fx.Node], source: fx.Node, heads: int) -> bool:
    kv, width = int(val(source).shape[1]), int(val(source).shape[3])
    symbols = {str(val(source).shape[0]): 2, str(val(source).shape[2]): 3}
    example = torch.arange(2 * kv * 3 * width).reshape(2, kv, 3, width)

    def given(node: fx.Node) -> Any:
        if node is source:
            return example
        if node in chain:
            return NotImplemented
        size = str(node.meta["val"])
        if size not in symbols:
            raise Miss(f"keys are repeated by a size that is not batch or length ({size})")
        return symbols[size]

    return torch.equal(value_of(chain[-1], given), example.repeat_interleave(heads // kv, 1))
