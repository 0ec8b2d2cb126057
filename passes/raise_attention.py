"""Raise fused and spelled-out softmax attention to `sleepc::attention`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.errors import Refusal
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Effect, Pass
from sleepc.passes.dependence import Dependence, find_dependence
from sleepc.passes.values import evaluate, val

aten = torch.ops.aten
SOFTMAX = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
MATMUL = (aten.matmul.default, aten.bmm.default)
EXPANSIONS = (
    aten.expand.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.repeat_interleave.self_int,
    aten.repeat.default,
)


class Miss(Exception):
    """Why something that looks like attention is not what the rule understands."""


@dataclass
class Scores:
    """What is known of the scores on the way back from a softmax: mask <- softcap <- scale <- q kT."""

    mask: fx.Node | None = None
    hidden: bool = False  # the mask marks what is NOT seen
    softcap: float = 0.0
    scale: float = 1.0
    q: fx.Node | None = None
    k: fx.Node | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RaiseAttention(Pass):
    """Two forms:
    1. aten.scaled_dot_product_attention, with or without mask, causal flag and grouped heads;
    2. matmul(softmax(mask(softcap(scale(matmul(q, kT))))), v), each part optional.
    Keys and values that were repeated for grouped heads are taken from before the repetition, if repeating is all that
    was done.
    Raises Refusal where a softmax over tokens is left over, with the reason.
    """

    name: ClassVar[str] = "raise-attention"
    effect: ClassVar[Effect] = "ROUNDING"

    def run(self, program: ProgramGraphs) -> int:
        """The number of attention operations raised."""
        graph = program.embed
        dependence = find_dependence(graph, ("tokens",), ("positions",))
        count = 0
        for node in graph.calls():
            if is_call(node, aten.scaled_dot_product_attention.default):
                _raise_fused(graph, node)
                count += 1
            elif is_call(node, *SOFTMAX) and node in dependence.tokens and _over_tokens(node):
                try:
                    _raise_decomposed(graph, node, dependence)
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
    scale = given.get("scale") or val(q).shape[-1] ** -0.5
    _replace(
        graph, node, q, k, v, given.get("attn_mask"), scale=float(scale), causal=bool(given.get("is_causal", False))
    )


def _raise_decomposed(graph: Graph, softmax: fx.Node, dependence: Dependence) -> None:
    out = softmax
    while len(out.users) == 1 and is_call(next(iter(out.users)), aten.to.dtype):
        out = next(iter(out.users))
    if len(out.users) != 1 or not is_call(next(iter(out.users)), *MATMUL):
        raise Miss("its result is not multiplied with values once")
    product = next(iter(out.users))
    if product.args[0] is not out:
        raise Miss("its result stands on the right of a product")
    scores = _read_scores(softmax.args[0], dependence)
    assert scores.q is not None
    mask = scores.mask
    if mask is not None and scores.hidden:
        with graph.fx.inserting_before(product):
            mask = graph.fx.call_function(aten.logical_not.default, (mask,))
        mask.meta = dict(scores.mask.meta)  # type: ignore[union-attr]
        mask.meta["val"] = torch.logical_not(val(scores.mask))  # type: ignore[arg-type]
    _replace(graph, product, scores.q, scores.k, product.args[1], mask, scale=scores.scale, softcap=scores.softcap)


def _read_scores(node: Any, dependence: Dependence) -> Scores:
    scores = Scores()
    while not is_call(node, *MATMUL):
        node = _step_back(node, scores, dependence)
    scores.q, transposed = node.args
    if not is_call(transposed, aten.transpose.int):
        raise Miss("scores are not q times transposed k")
    rank = val(transposed).dim()
    if {d % rank for d in transposed.args[1:]} != {rank - 1, rank - 2}:
        raise Miss("keys are transposed over other dimensions than tokens and channels")
    scores.k = transposed.args[0]
    return scores


def _step_back(node: Any, scores: Scores, dependence: Dependence) -> fx.Node:
    if not isinstance(node, fx.Node):
        raise Miss("scores end in a constant")
    if is_call(node, aten.to.dtype):
        return node.args[0]  # type: ignore[return-value]
    if is_call(node, aten.masked_fill.Scalar):
        _check_filled(node.args[2])
        return _take_mask(scores, node.args[0], node.args[1], hidden=True)
    if is_call(node, aten.where.ScalarOther):
        _check_filled(node.args[2])
        return _take_mask(scores, node.args[1], node.args[0], hidden=False)
    if is_call(node, aten.add.Tensor) and isinstance(node.args[1], fx.Node):
        a, b = node.args
        if a in dependence.tokens and b in dependence.tokens:
            raise Miss("something that depends on the tokens is added to the scores")
        return _take_mask(scores, *((a, b) if a in dependence.tokens else (b, a)), hidden=False)
    if is_call(node, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return _take_factor(node, scores)
    raise Miss(f"{node.target} stands between scores and softmax")


def _check_filled(value: Any) -> None:
    if not isinstance(value, (int, float)) or (value > -1e4 and not math.isinf(value)):
        raise Miss(f"masked scores are filled with {value}")


def _take_mask(scores: Scores, inner: Any, mask: Any, *, hidden: bool) -> fx.Node:
    if scores.mask is not None or scores.softcap or scores.scale != 1.0:
        raise Miss("a mask is not the last thing done to the scores")
    scores.mask, scores.hidden = mask, hidden
    return inner  # type: ignore[no-any-return]


def _take_factor(node: fx.Node, scores: Scores) -> fx.Node:
    inner, factor = node.args[0], node.args[1]
    if not isinstance(factor, (int, float)):
        raise Miss("scores are scaled by a tensor")
    if is_call(node, aten.div.Tensor, aten.div.Scalar):
        factor = 1.0 / factor
    if is_call(inner, aten.tanh.default):
        if scores.softcap or scores.scale != 1.0:
            raise Miss("scores are capped and then scaled")
        scores.softcap = float(factor)
        within = inner.args[0]  # type: ignore[union-attr]
        if not is_call(within, aten.div.Tensor, aten.div.Scalar, aten.mul.Tensor, aten.mul.Scalar):
            raise Miss("tanh of scores without a cap")
        divided = is_call(within, aten.div.Tensor, aten.div.Scalar)
        by = within.args[1]  # type: ignore[union-attr]
        if not isinstance(by, (int, float)) or not math.isclose(
            1 / by if not divided else by, scores.softcap, rel_tol=1e-6
        ):
            raise Miss("tanh of scores with two different caps")
        return within.args[0]  # type: ignore[union-attr,return-value]
    scores.scale *= float(factor)
    return inner  # type: ignore[return-value]


def _replace(
    graph: Graph,
    node: fx.Node,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: float,
    softcap: float = 0.0,
    causal: bool = False,
) -> None:
    if val(q).dim() != 4:
        raise Miss("heads are folded into the batch")
    k, v = unrepeated(k, q), unrepeated(v, q)
    with graph.fx.inserting_before(node):
        call = graph.fx.call_function(
            torch.ops.sleepc.attention.default,
            (q, k, v, mask, None),
            {"scale": scale, "softcap": softcap, "causal": causal, "window": 0},
        )
    call.meta = {"val": val(node), "source": node.meta.get("source", "")}
    node.replace_all_uses_with(call)
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
    values: dict[fx.Node, Any] = {source: example}

    def known(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        size = str(node.meta["val"])
        if size not in symbols:
            raise Miss(f"keys are repeated by a size that is not batch or length ({size})")
        return symbols[size]

    for node in chain:
        values[node] = evaluate(node, known)
    return torch.equal(values[chain[-1]], example.repeat_interleave(heads // kv, 1))
