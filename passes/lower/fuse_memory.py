"""What stands around a memory, found where it is spelled out: keys, gates, the mix and the output norm become one call
each, for GPUs, where every operator is a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.levels import FUSED, aten
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import SLEEPS, Fact
from sleepc.passes.lib.emit import Emit
from sleepc.passes.lib.match import constant, factors

ours = torch.ops.sleepc


@dataclass(frozen=True)
class FuseMemory(Pass):
    """`sleepc.masked_l2norm`, `sleepc.gates`, `sleepc.mixed` and `sleepc.gated_norm`, as far as they are asked for."""

    kernels: tuple[str, ...] = FUSED
    name: ClassVar[str] = "fuse-memory"
    effect: ClassVar[Effect] = "EXACT"
    requires: ClassVar[tuple[Fact, ...]] = (SLEEPS,)

    def run(self, program: ProgramGraphs) -> int:
        """The number of calls that stand for several."""
        return sum(_fuse(graph, self.kernels) for graph in program.graphs())


def _fuse(graph: Graph, kernels: tuple[str, ...]) -> int:
    count = _gates(graph) if "gates" in kernels else 0
    for node in graph.calls():
        for name in kernels:
            given = FINDERS[name](node) if name in FINDERS else None
            if given is not None:
                emit = Emit(graph, node.meta.get("source", ""), node)
                made = emit.ours(name, *given[0], **given[1])
                made.meta["type"] = node.meta["type"]
                node.replace_all_uses_with(made)
                count += 1
    if count:
        graph.drop_dead()
        infer_types(graph)
    return count


Found = tuple[tuple[Any, ...], dict[str, Any]] | None
"""The arguments of a call."""


def _keys(node: fx.Node) -> Found:
    """l2norm(x) [B,H,T,D] times real [B,T]."""
    dims = _dims(node)
    for norm, mask in factors(node) if is_call(node, aten.mul.Tensor) and len(dims) == 4 else ():
        real = _flags(mask, (dims[0], 1, dims[2], 1))
        if is_call(norm, ours.l2norm.default) and _dims(norm) == dims and real is not None:
            return (norm.args[0], real), {}
    return None


def _mix(node: fx.Node) -> Found:
    """window + m (memory - window), cast to window's dtype, m being sigmoid(share) [B,T,H] by head, and 0 in rows that
    are not live [B].
    """
    total: Any = node.args[0] if is_call(node, aten.to.dtype) and len(node.args) == 2 else None
    for wide, change in factors(total) if is_call(total, aten.add.Tensor) else ():
        window = wide.args[0] if is_call(wide, aten.to.dtype) else wide
        for m, apart in factors(change) if is_call(change, aten.mul.Tensor) else ():
            if not is_call(apart, aten.sub.Tensor) or apart.kwargs or apart.args[1] is not wide:
                continue
            share, memory = _share(m), apart.args[0]
            kinds = [x.meta["type"] for x in (window, memory, node)]
            same = kinds[0].dims == kinds[1].dims and kinds[0].dtype == kinds[2].dtype
            if share is not None and same and _dims(share[0]) == tuple(kinds[0].dims[i] for i in (0, 2, 1)):
                return (window, memory, *share), {}
    return None


def _share(m: Any) -> tuple[fx.Node, fx.Node] | None:
    """share [B,T,H] and live [B] of sigmoid(share) [B,H,T,1] times live."""
    for by_head, mask in factors(m) if is_call(m, aten.mul.Tensor) else ():
        inner: Any = by_head.args[0] if is_call(by_head, aten.unsqueeze.default) and by_head.args[1] == -1 else None
        gate, live = _turned(inner), _flags(mask, (_dims(m)[0], 1, 1, 1))
        if live is not None and is_call(gate, aten.sigmoid.default):
            return gate.args[0], live
    return None


def _output(node: fx.Node) -> Found:
    """The RMS norm of every head of x [B,H,T,D], times its weight [D], as [B,T,H D], times silu of what opens it."""
    for merged, opened in factors(node) if is_call(node, aten.mul.Tensor) else ():
        opening: Any = opened.args[0] if is_call(opened, aten.silu.default) else None
        weighted: Any = _turned(merged.args[0]) if is_call(merged, aten.reshape.default) else None
        for normed, weight in factors(weighted) if is_call(weighted, aten.mul.Tensor) else ():
            found = _normed(normed)
            if found is None or opening is None or not isinstance(weight, fx.Node):
                continue
            x, kinds = found[0], {each.meta["type"].dtype for each in (found[0], weight, opening)}
            rows, heads, tokens, width = _dims(x)
            if len(kinds) == 1 and _dims(weight) == (width,) and _dims(merged) == (rows, tokens, heads * width):
                return (x, weight, opening), {"eps": found[1]}
    return None


def _normed(node: Any) -> tuple[fx.Node, float] | None:
    """x [B,H,T,D] and eps of x rsqrt(mean(x x, -1) + eps)."""
    for x, root in factors(node) if is_call(node, aten.mul.Tensor) else ():
        total: Any = root.args[0] if is_call(root, aten.rsqrt.default) else None
        epsilon = constant(total.args[1]) if is_call(total, aten.add.Tensor) else None
        mean: Any = total.args[0] if epsilon is not None else None
        square: Any = mean.args[0] if is_call(mean, aten.mean.dim) and mean.args[1:] == ([-1], True) else None
        if epsilon is not None and is_call(square, aten.mul.Tensor) and square.args == (x, x) and len(_dims(x)) == 4:
            return x, epsilon
    return None


FINDERS: dict[str, Callable[[fx.Node], Found]] = {"masked_l2norm": _keys, "mixed": _mix, "gated_norm": _output}


@dataclass(frozen=True)
class _Gate:
    """A gate [B,H,T] or [B,H,T,dk]: its projection [B,T,R], real [B,T], and exp's argument [R] if it decays."""

    node: fx.Node
    projection: fx.Node
    real: fx.Node
    rate: fx.Node | None

    def goes_with(self, decay: _Gate) -> bool:
        """Can both be made where the later one is?"""
        kinds = [each.projection.meta["type"] for each in (self, decay)]
        last = max(self.node, decay.node)
        before = any(user < last for each in (self, decay) for user in each.node.users)
        heads = kinds[0].dims[2]
        fits = _dims(decay.node)[1] == heads and kinds[0].dims[:2] == kinds[1].dims[:2]
        return fits and kinds[0].dtype == kinds[1].dtype and self.real is decay.real and not before


def _gates(graph: Graph) -> int:
    """The number of gates that became one call, with a decay beside a strength if there is one."""
    found = [each for each in map(_gate, graph.calls()) if each is not None]
    decays = [each for each in found if each.rate is not None]
    for strength in (each for each in found if each.rate is None):
        decay = next((each for each in decays if strength.goes_with(each)), None)
        last = strength.node if decay is None else max(strength.node, decay.node)
        emit = Emit(graph, last.meta.get("source", ""), last)
        more = () if decay is None else (decay.projection, decay.rate)
        made = emit.ours("gates", strength.real, strength.projection, *more)
        for i, each in enumerate((strength, decay) if decay else (strength,)):
            one = emit.item(made, i)
            one.meta["type"] = each.node.meta["type"]
            each.node.replace_all_uses_with(one)
        decays = [each for each in decays if each is not decay]
    return len(found) - len(decays)


def _gate(node: fx.Node) -> _Gate | None:
    """sigmoid(y) real, or -exp(a) softplus(y) real, by head."""
    inner = _turned(node)
    if inner is None or len(_dims(node)) not in (3, 4):
        return None
    value = inner.args[0] if is_call(inner, aten.reshape.default) and len(_dims(inner)) == 4 else inner
    for product, mask in factors(value) if is_call(value, aten.mul.Tensor) else ():
        real = _flags(mask, (*_dims(value)[:2], 1)) if len(_dims(value)) == 3 else None
        if real is None:
            continue
        if is_call(product, aten.sigmoid.default) and len(_dims(node)) == 3:
            return _Gate(node, product.args[0], real, None)
        positive: Any = product.args[0] if is_call(product, aten.neg.default) else None
        for soft, factor in factors(positive) if is_call(positive, aten.mul.Tensor) else ():
            plain = is_call(soft, aten.softplus.default) and len(soft.args) == 1
            if plain and is_call(factor, aten.exp.default) and _dims(factor) == _dims(value)[2:]:
                return _Gate(node, soft.args[0], real, factor.args[0])
    return None


def _flags(mask: Any, dims: tuple[Any, ...]) -> fx.Node | None:
    """Truth values that are spread to these dimensions by ones of size 1."""
    if not is_call(mask, aten.unsqueeze.default) or _dims(mask) != dims:
        return None
    inner = mask
    while is_call(inner, aten.unsqueeze.default):
        inner = inner.args[0]
    known = inner.meta["type"].dtype == torch.bool and _dims(inner) == tuple(d for d in dims if d != 1)
    return inner if known else None


def _turned(node: Any) -> Any:
    """What dimensions 1 and 2 were exchanged of."""
    return node.args[0] if is_call(node, aten.transpose.int) and set(node.args[1:]) == {1, 2} else None


def _dims(value: Any) -> tuple[Any, ...]:
    type_ = value.meta.get("type") if isinstance(value, fx.Node) else None
    return tuple(type_.dims) if isinstance(type_, TensorType) else ()
