"""Read the scores of a spelled-out attention, from the softmax back to q times transposed k."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx

from sleepc.ir.graph import is_call
from sleepc.ir.interp import value_of
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.dependence import Dependence
from sleepc.passes.analysis.read_mask import MASKED
from sleepc.passes.front.score_terms import Term
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import needed_for, shape_text, val

MATMUL = (aten.matmul.default, aten.bmm.default)
WHERE = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
MAXIMUM = (aten.max.other, aten.maximum.default, aten.clamp_min.default, aten.clamp.default)


class Miss(Exception):
    """Why something that looks like attention is not what the rule understands."""


@dataclass
class Scores:
    """What is known of the scores on the way back from a softmax: terms <- softcap <- scale <- q kT."""

    terms: list[Term] = field(default_factory=list)
    softcap: float = 0.0
    scale: float = 1.0
    q: fx.Node | None = None
    turned: fx.Node | None = None  # the keys transposed, [.., D, T]
    factors: list[fx.Node] = field(default_factory=list)  # the scores of a query are multiplied with: [..,1]


@dataclass(frozen=True)
class ScoreReader:
    """Reads scores in a program, of whose values `dependence` tells which depend on the tokens."""

    program: ProgramGraphs
    dependence: Dependence

    def read(self, node: Any) -> Scores:
        """What is known of the scores that a softmax reads. Raises Miss for what is not understood."""
        scores = Scores()
        while not is_call(node, *MATMUL):
            if is_call(node, aten.baddbmm.default):
                _take_sum_of_product(node, scores)
                break
            node = self._step_back(node, scores)
        scores.q, scores.turned = node.args[-2:]
        return scores

    def _step_back(self, node: Any, scores: Scores) -> Any:
        if not isinstance(node, fx.Node):
            raise Miss("scores end in a constant")
        if keeps_numbers(node):
            return node.all_input_nodes[0]
        if is_call(node, aten.masked_fill.Scalar, aten.masked_fill.Tensor):
            return self._take_filled(scores, node.args[0], node.args[1], node.args[2], "masked")
        if is_call(node, *WHERE):
            condition, a, b = node.args
            if a in self.dependence.tokens:
                return self._take_filled(scores, a, condition, b, "seen")
            return self._take_filled(scores, b, condition, a, "masked")
        if is_call(node, *MAXIMUM) and len(node.args) == 2 and not node.kwargs:
            inner, least = self._apart(node)
            self._check_filled(least)  # it passes on all scores that are seen
            return inner
        if is_call(node, aten.add.Tensor, aten.sub.Tensor):
            return self._take_added(node, scores)
        if is_call(node, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
            return self._take_factor(node, scores)
        raise Miss(f"{node.target} stands between scores and softmax")

    def _apart(self, node: fx.Node) -> tuple[fx.Node, Any]:
        """The scores, and the other argument: one number for all keys of a query, or what is not made of the tokens."""
        a, b = node.args[:2]
        if _is_per_query(a) != _is_per_query(b):
            return (b, a) if _is_per_query(a) else (a, b)  # type: ignore[return-value]
        if a in self.dependence.tokens and b in self.dependence.tokens:
            raise Miss(f"scores and something else that depends on the tokens meet in {node.target}")
        return (a, b) if a in self.dependence.tokens else (b, a)  # type: ignore[return-value]

    def _take_filled(
        self, scores: Scores, inner: Any, mask: Any, value: Any, kind: Literal["seen", "masked"]
    ) -> fx.Node:
        self._check_filled(value)
        return _take_term(scores, inner, Term(mask, kind))

    def _check_filled(self, value: Any) -> None:
        number = self._number(value)
        if number is None or number > MASKED:
            raise Miss(f"masked scores are filled with {value if number is None else number}")

    def _number(self, value: Any) -> float | None:
        """A number that stands in the code, as one or as a tensor of one element; None for anything else."""
        if isinstance(value, (int, float)):
            return float(value)
        if not isinstance(value, fx.Node) or {*shape_text(value)} - {"1"}:
            return None
        ports = [node for node in needed_for(value) if node.op == "placeholder"]
        if any(port.meta["port"].kind != "const" for port in ports):
            return None
        held = {port: self.program.params[port.meta["port"].name].materialise() for port in ports}
        return float(value_of(value, lambda n: held.get(n, NotImplemented)))

    def _take_added(self, node: fx.Node, scores: Scores) -> fx.Node:
        inner, added = self._apart(node)
        if node.kwargs:
            raise Miss("a sum of scores has options")
        less = is_call(node, aten.sub.Tensor)
        if less and inner is not node.args[0]:
            raise Miss("scores are subtracted from something")
        if _is_per_query(added) and not scores.softcap:
            return inner  # the softmax does not see what is added to all keys of a query
        return _take_term(scores, inner, Term(added, "added", -scores.scale if less else scores.scale))

    def _take_factor(self, node: fx.Node, scores: Scores) -> Any:
        inner, by = self._apart(node)
        factor = self._number(by)
        divides = is_call(node, aten.div.Tensor, aten.div.Scalar)
        if divides and inner is not node.args[0]:
            raise Miss("something is divided by scores")
        if factor is None:
            if by in self.dependence.tokens:
                raise Miss("scores are multiplied with something that depends on the tokens")
            if _is_per_query(by) and not scores.softcap and not divides:
                scores.factors.append(by)
                return inner
            if divides:
                raise Miss("scores are divided by a tensor")
            return _take_term(scores, inner, Term(by, "times"))
        if divides and factor == 0:
            raise Miss("scores are divided by zero")
        factor = 1.0 / factor if divides else factor
        if is_call(inner, aten.tanh.default):
            return _take_softcap(inner, factor, scores)
        scores.scale *= factor
        return inner


def _take_sum_of_product(node: fx.Node, scores: Scores) -> None:
    """baddbmm(term, q, kT): beta term + alpha q kT."""
    beta, alpha = (float(node.kwargs.get(name, 1)) for name in ("beta", "alpha"))  # type: ignore[arg-type]
    _take_term(scores, node.args[1], Term(node.args[0], "added", scores.scale * beta))  # type: ignore[arg-type]
    scores.scale *= alpha


def _take_term(scores: Scores, inner: Any, term: Term) -> fx.Node:
    if scores.softcap:
        raise Miss("a mask or a bias is capped together with the scores")
    if scores.factors and term.kind == "added":
        raise Miss("a bias is multiplied with a tensor together with the scores")
    scores.terms.append(term)
    return inner  # type: ignore[no-any-return]


def _is_per_query(value: Any) -> bool:
    """Is it a tensor of one number for all keys of a query, [..,1], or one number?"""
    return not isinstance(value, fx.Node) or shape_text(value)[-1:] in ((), ("1",))


def _take_softcap(tanh: fx.Node, factor: float, scores: Scores) -> fx.Node:
    """factor tanh(scores / factor)."""
    if scores.softcap or scores.factors or scores.scale != 1.0:
        raise Miss("scores are capped and then scaled")
    if factor == 0:
        raise Miss("scores are capped at zero")
    scores.softcap = factor
    within = tanh.args[0]
    if not is_call(within, aten.div.Tensor, aten.div.Scalar, aten.mul.Tensor, aten.mul.Scalar):
        raise Miss("tanh of scores without a cap")
    divided = is_call(within, aten.div.Tensor, aten.div.Scalar)
    by = within.args[1]  # type: ignore[union-attr]
    if not isinstance(by, (int, float)) or not math.isclose(1 / by if not divided else by, factor, rel_tol=1e-6):
        raise Miss("tanh of scores with two different caps")
    return within.args[0]  # type: ignore[union-attr,return-value]


def keeps_numbers(node: fx.Node) -> bool:
    """Is it a cast, or does it only fold the heads [B,H,T,T] into the batch or take them out?"""
    if is_call(node, aten.to.dtype):
        return True
    if not is_call(node, aten.reshape.default):
        return False
    source = node.all_input_nodes[0]
    return folds(node, source) or folds(source, node)


def folds(folded: fx.Node, apart: fx.Node) -> bool:
    """Has `folded` the shape [B*H,..] if `apart` has [B,H,..]?"""
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
    raise Miss("heads are folded into the batch in a way that is not recognised")
