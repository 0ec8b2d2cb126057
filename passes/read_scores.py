"""Read the scores of a spelled-out attention, from the softmax back to q times transposed k."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import fx

from sleepc.ir.graph import is_call
from sleepc.passes.dependence import Dependence
from sleepc.passes.values import FlatEmit, shape_text, val

aten = torch.ops.aten
MATMUL = (aten.matmul.default, aten.bmm.default)


class Miss(Exception):
    """Why something that looks like attention is not what the rule understands."""


@dataclass(frozen=True)
class Term:
    """One thing that is done to the scores: a mask (bool; `hidden`: it marks what is NOT seen) or numbers added."""

    value: fx.Node
    hidden: bool = False
    factor: float = 1.0  # what the numbers are multiplied with afterwards, together with the scores


@dataclass
class Scores:
    """What is known of the scores on the way back from a softmax: terms <- softcap <- scale <- q kT."""

    terms: list[Term] = field(default_factory=list)
    softcap: float = 0.0
    scale: float = 1.0
    q: fx.Node | None = None
    k: fx.Node | None = None


def read_scores(node: Any, dependence: Dependence) -> Scores:
    """What is known of the scores that a softmax reads. Raises Miss for what is not understood."""
    scores = Scores()
    while not is_call(node, *MATMUL):
        if is_call(node, aten.baddbmm.default):
            node = _take_sum_of_product(node, scores)
            break
        node = _step_back(node, scores, dependence)
    scores.q, transposed = node.args[-2:]
    if not is_call(transposed, aten.transpose.int):
        raise Miss("scores are not q times transposed k")
    rank = val(transposed).dim()
    if {d % rank for d in transposed.args[1:]} != {rank - 1, rank - 2}:
        raise Miss("keys are transposed over other dimensions than tokens and channels")
    scores.k = transposed.args[0]
    return scores


def _take_sum_of_product(node: fx.Node, scores: Scores) -> fx.Node:
    """baddbmm(term, q, kT): beta term + alpha q kT."""
    beta, alpha = (float(node.kwargs.get(name, 1)) for name in ("beta", "alpha"))  # type: ignore[arg-type]
    _take_term(scores, node.args[1], Term(node.args[0], factor=scores.scale * beta))  # type: ignore[arg-type]
    scores.scale *= alpha
    return node


def _step_back(node: Any, scores: Scores, dependence: Dependence) -> fx.Node:
    if not isinstance(node, fx.Node):
        raise Miss("scores end in a constant")
    if keeps_numbers(node):
        return node.all_input_nodes[0]
    if is_call(node, aten.masked_fill.Scalar):
        _check_filled(node.args[2])
        return _take_term(scores, node.args[0], Term(node.args[1], hidden=True))  # type: ignore[arg-type]
    if is_call(node, aten.where.ScalarOther):
        _check_filled(node.args[2])
        return _take_term(scores, node.args[1], Term(node.args[0]))  # type: ignore[arg-type]
    if is_call(node, aten.add.Tensor) and isinstance(node.args[1], fx.Node):
        if node.kwargs or len(node.all_input_nodes) != 2:
            raise Miss("a sum of scores has options")
        a, b = node.all_input_nodes
        if a in dependence.tokens and b in dependence.tokens:
            raise Miss("something that depends on the tokens is added to the scores")
        scored, added = (a, b) if a in dependence.tokens else (b, a)
        return _take_term(scores, scored, Term(added, factor=scores.scale))
    if is_call(node, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return _take_factor(node, scores)
    raise Miss(f"{node.target} stands between scores and softmax")


def _check_filled(value: Any) -> None:
    if not isinstance(value, (int, float)) or (value > -1e4 and not math.isinf(value)):
        raise Miss(f"masked scores are filled with {value}")


def _take_term(scores: Scores, inner: Any, term: Term) -> fx.Node:
    if scores.softcap:
        raise Miss("a mask or a bias is capped together with the scores")
    scores.terms.append(term)
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


def keeps_numbers(node: fx.Node) -> bool:
    """Is it a cast, or does it only fold the heads [B,H,T,T] into the batch or take them out?"""
    if is_call(node, aten.to.dtype):
        return True
    source = node.all_input_nodes[0]
    return is_call(node, aten.reshape.default) and (folds(node, source) or folds(source, node))


def folds(folded: fx.Node, apart: fx.Node) -> bool:
    """Has `folded` the shape [B*H,..] where `apart` has [B,H,..]?"""
    if val(apart).dim() != 4 or val(folded).dim() != 3:
        return False
    rows, heads, *rest = val(apart).shape
    return shape_text(folded) == tuple(str(size) for size in (rows * heads, *rest))


def unfolded(value: fx.Node) -> fx.Node:
    """The value [B,H,T,D] that `value` is, or was before its heads were folded into the batch."""
    if val(value).dim() == 4:
        return value
    source = value.args[0]
    if is_call(value, aten.reshape.default) and isinstance(source, fx.Node) and folds(value, source):
        return source
    raise Miss("heads are folded into the batch, and it is not seen where")


def join(e: FlatEmit, terms: list[Term], heads: int) -> fx.Node | None:
    """All terms as one mask: bool where there is only one that is, else numbers to add; None where there is none."""
    values = []
    for term in terms:
        value = e.call(aten.logical_not.default, term.value) if term.hidden else term.value
        if val(value).dtype == torch.bool:
            value = value if len(terms) == 1 else e.call(aten.where.Scalar, value, 0.0, -math.inf)
        elif term.factor != 1.0:
            value = e.mul(value, term.factor)
        if val(value).dim() == 3:
            value = e.unfold(value, heads)
        values.append(value)
    return reduce(e.add, values) if values else None
