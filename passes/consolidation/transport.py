"""Soft encoder `comprexit`: what all layers make of the window, moved across depth by gates and across tokens by an
optimal transport plan (ComprExIT, arXiv 2602.03784).

    x_t^l   h_t^l over its root mean square, l = 0 .. D: what went into the first block, and what came of each
    c_t     sum_l softmax(pi)_l x_t^l
    y_t     sum_l softmax_l(<W_q c_t, W_k x_t^l + e_l> / sqrt(m)) W_v x_t^l          depth
    r_j     mean of y over the j-th part of the window                               receivers
    U_tj    cos(W_u y_t, W_u r_j)
    P       the plan of least sum P (1 - U) + 0.1 sum P log P, with rows softmax_t(w y_t) and columns 1/k: 30 steps of
            Sinkhorn's
    added   W_2 silu(W_1 unit(k sum_t P_tj W_g y_t))

W_2 is zero at first. Open in the paper, or different: hidden states over their root mean squares, since they grow by
orders of magnitude; sqrt(m) and 0.1 as temperatures; what comes out is added to the token that a soft token begins as.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sleepc.ir.program import SOFT, ProgramGraphs
from sleepc.passes.consolidation.encoder_graph import EncoderGraph
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.bound_attention import SINCE

DEPTH, LAYERS, QUERY, KEY, VALUE = (f"{SOFT}depth.{name}" for name in ("share", "layer", "query", "key", "value"))
RECEIVE, SUPPLY, MOVE, UP, DOWN = (f"{SOFT}width.{name}" for name in ("receive", "supply", "move", "up", "down"))
SHARP, STEPS = 0.1, 30  # the weight of the plan's entropy, and steps of Sinkhorn's
FAR = -1e9  # added to what is not to have a share in a softmax


def transport_parameters(program: ProgramGraphs, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Values by key, for `width` (m)."""
    d, layers = program.hidden, len(program.layout) + 1

    def normal(*shape: int) -> Tensor:
        values: Tensor = torch.randn(*shape, generator=generator) * shape[-1] ** -0.5
        return values

    made = {DEPTH: torch.zeros(layers), LAYERS: torch.zeros(layers, width)}
    made |= {QUERY: normal(width, d), KEY: normal(width, d), VALUE: normal(width, d)}
    made |= {RECEIVE: normal(width, width), SUPPLY: torch.zeros(1, width), MOVE: normal(width, width)}
    return made | {UP: normal(width, width), DOWN: torch.zeros(d, width)}


@dataclass
class Transport(EncoderGraph):
    """The graph with this encoder."""

    def added(self) -> fx.Node:
        """What the window's tokens bring to each soft token."""
        e = self.e
        y = over_depth(e, self._layers(), self.param)
        parts = self._parts()
        received = e.call(aten.matmul.default, parts, y)
        supply = e.call(aten.squeeze.dim, e.linear(y, self.param(SUPPLY)), 2)
        supply = e.call(aten.softmax.int, e.where(self.real, supply, FAR), -1)
        affinity = affinities(e, y, received, self.param(RECEIVE))
        share = e.transpose(plan(e, affinity, supply, self.tokens), 1, 2)
        moved = e.call(aten.matmul.default, share, e.linear(y, self.param(MOVE)))
        inner = e.linear(self.unit(e.call(aten.mul.Scalar, moved, float(self.tokens))), self.param(UP))
        return e.linear(e.call(aten.silu.default, inner), self.param(DOWN))

    def _layers(self) -> fx.Node:
        """[B,L,D+1,d]: the window's hidden states in every layer, read once more."""
        e = self.e
        given = self.embedded(self.ids, e.where(self.real, self.counted(self.numbers), 0))
        h, each = given["h"], [given["h"]]
        for i, block in enumerate(self.program.layout):
            h = self.block(i, self.plain[block.cls], {**given, "h": h}, "window")["h"]
            each.append(h)
        return e.call(aten.stack.default, [self.unit(h) for h in each], 2)

    def _parts(self) -> fx.Node:
        """[B,k,L]: the share of every token in its part of the window: 1 over the part's length, one token at least."""
        e, since = self.e, self.column(SINCE)
        first = e.call(aten.floor_divide.Scalar, e.mul(since, self.steps), self.tokens)
        end = e.call(aten.floor_divide.Scalar, e.mul(since, e.call(aten.add.Scalar, self.steps, 1)), self.tokens)
        end = e.call(aten.maximum.default, end, e.call(aten.add.Scalar, first, 1))
        late = e.call(aten.ge.Tensor, self.places, e.unsqueeze(first, 2))
        inside = e.call(aten.logical_and.default, late, e.call(aten.lt.Tensor, self.places, e.unsqueeze(end, 2)))
        count = e.unsqueeze(e.sub(end, first), 2)
        dtype = self.param(SUPPLY).meta["type"].dtype
        return e.call(aten.div.Tensor, e.cast(inside, dtype), e.cast(count, dtype))


def over_depth(e: Emit, x: fx.Node, param: Callable[[str], fx.Node], sharp: float = 1.0) -> fx.Node:
    """y [B,L,m] of x [B,L,D+1,d]; `sharp` divides what the gates' softmax takes."""
    width = int(param(QUERY).meta["type"].dims[0])
    share = e.unsqueeze(e.call(aten.softmax.int, param(DEPTH), -1), 0)
    mixed = e.call(aten.matmul.default, share, x)  # [B,L,1,d]
    keys = e.add(e.linear(x, param(KEY)), param(LAYERS))
    scores = e.call(aten.matmul.default, e.linear(mixed, param(QUERY)), e.transpose(keys, 2, 3))
    gates = e.call(aten.softmax.int, e.call(aten.mul.Scalar, scores, 1 / (sharp * width**0.5)), -1)
    return e.call(aten.squeeze.dim, e.call(aten.matmul.default, gates, e.linear(x, param(VALUE))), 2)


def affinities(e: Emit, y: fx.Node, received: fx.Node, weight: fx.Node) -> fx.Node:
    """U [B,L,k] of y [B,L,m] and receivers [B,k,m]."""
    a, b = (_over_length(e, e.linear(x, weight)) for x in (y, received))
    return e.call(aten.matmul.default, a, e.transpose(b, 1, 2))


def _over_length(e: Emit, x: fx.Node) -> fx.Node:
    squares = e.call(aten.sum.dim_IntList, e.mul(x, x), [-1], True)
    return e.mul(x, e.call(aten.rsqrt.default, e.call(aten.add.Scalar, squares, 1e-12)))


def plan(e: Emit, affinity: fx.Node, supply: fx.Node, count: int, sharp: float = SHARP) -> fx.Node:
    """The plan [B,L,k] for affinities [B,L,k], of what tokens supply [B,L]: rows of that, columns of 1/k (`count`)."""
    kernel = e.call(aten.exp.default, e.call(aten.mul.Scalar, e.call(aten.sub.Scalar, affinity, 1.0), 1 / sharp))
    back, rows = e.transpose(kernel, 1, 2), e.unsqueeze(supply, 2)
    columns = e.call(aten.ones_like.default, e.call(aten.sum.dim_IntList, back, [2], True))  # [B,k,1]
    for _ in range(STEPS):
        scale = e.call(aten.div.Tensor, rows, e.call(aten.matmul.default, kernel, columns))
        columns = e.call(aten.matmul.default, back, scale)
        columns = e.call(aten.mul.Scalar, e.call(aten.reciprocal.default, columns), 1 / count)
    return e.mul(e.mul(kernel, scale), e.transpose(columns, 1, 2))
