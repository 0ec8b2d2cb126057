"""What the parts of a converted layer compute, written down once more: one token at a time, no shared code.

B rows, T tokens, Hq and Hkv heads of width dk (values dv), d the hidden width. Formulas: semantics.md, sections 3 to 5
(Gated Delta Networks, arXiv 2412.06464, equation 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sleepc.memory.registry import find

Memory = list[Tensor]
Written = dict[str, Tensor]
"""What the tokens of a window write: "k" [B,H,T,dk] of unit length, "v" [B,H,T,dv], and every gate of the rule by name
[B,H,T], a wide one [B,H,T,dk]."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    see: Tensor,
    sink_logits: Tensor | None,
    *,
    scale: float,
    softcap: float,
    bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention, q [B,Hq,T,dk], k, v [B,Hkv,T,..], see bool [T,T], sink_logits [Hq] or None, bias
    [Hq,T,T] or [B,Hq,T,T] or None -> [B,Hq,T,dv].
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ _repeat(k, q.shape[1]).transpose(2, 3)).to(wide) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~see, -torch.inf)
    if sink_logits is not None:
        scores = torch.cat([scores, sink_logits.to(wide)[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[2]]
    return weights.to(v.dtype) @ _repeat(v, q.shape[1])


def bias(slopes: Sequence[float], position: Tensor) -> Tensor:
    """-slope times the distance between tokens at position [T]: [Hq,T,T] (ALiBi, arXiv 2108.12409)."""
    distance = position[:, None] - position[None]
    return torch.stack([-slope * distance.double() for slope in slopes])


def bias_by_distance(numbers: Tensor, distance: Tensor) -> Tensor:
    """What queries, numbers [B,Hq,n,R], add to the scores of keys [n,K] tokens before them: [B,Hq,n,K]; that of the
    last number to all that are as far away as it, or further.
    """
    last = numbers.shape[3] - 1
    rows = [numbers[:, :, t, [min(max(int(d), 0), last) for d in row]] for t, row in enumerate(distance)]
    return torch.stack(rows, 2)


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], 1)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, with 1e-6 added to the squares."""
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


def gates(rule: str, x: Tensor, p: Mapping[str, Tensor], heads: int) -> Written:
    """The rule's gates of `heads` memories from x [B,T,d]: sigmoid(W x + b), softplus(W x + b),
    -exp(A) softplus(W x + b), 1, or W x / |W x| of each head.
    """
    found = {}
    for name, gate in find(rule).gates.items():
        if gate.activation == "one":
            found[name] = x.new_ones(x.shape[0], heads, x.shape[1])
            continue
        y = x @ p[gate.weight].T
        if gate.activation == "code":
            found[name] = unit(y.reshape(*y.shape[:2], heads, -1)).transpose(1, 2)
            continue
        if gate.bias in p:  # a native layer's write gate has none
            y = y + p[gate.bias]
        if gate.activation == "sigmoid":
            y = torch.sigmoid(y)
        else:
            y = F.softplus(y) * (-p[gate.rate].exp() if gate.rate else 1)
        if y.shape[2] != heads:  # per channel
            y = y.reshape(*y.shape[:2], heads, -1)
        found[name] = y.transpose(1, 2)
    return found


def learned(rule: str, p: Mapping[str, Tensor], heads: int) -> Memory:
    """What the layer has learned, of p, as of one row [1,H,rows,columns]; matrices of heads lie one below the other."""
    return [torch.stack(p[name].chunk(heads))[None] for name in find(rule).learned]


def update(rule: str, memory: Memory, fixed: Memory, w: Written, t: int, *, first: bool) -> Memory:
    """The memory after token t, in the first pass over a window or in a later one, by the rule's own reference."""
    how = find(rule)
    token = {name: value[:, :, t] for name, value in w.items()}
    for name, gate in how.gates.items():
        if not first and not gate.again:
            token[name] = torch.full_like(token[name], gate.at_padding)
    return how.naive(token, [*memory, *fixed])


def empty_memory(rule: str, w: Written) -> Memory:
    """The memory of a stream that has written nothing."""
    batch, heads, _, dk = w["k"].shape
    how = find(rule)
    shapes = how.shapes(heads, dk, w["v"].shape[3])
    return [w["k"].new_full((batch, *shape), how.states[name].initial) for name, shape in shapes.items()]


def memory_names(rule: str) -> tuple[str, ...]:
    """The names of a memory's tensors."""
    return tuple(find(rule).states)


def read(q: Tensor, memory: Memory, rule: str) -> Tensor:
    """What q [B,Hq,n,dk] reads -> [B,Hq,n,dv]; query heads that are neighbours share a memory."""
    return find(rule).naive_read([_repeat(x, q.shape[1]) for x in memory], q)


def answer(
    rule: str, q: Tensor, w: Written, memory: Memory, fixed: Memory, *, online: bool, order: str = "after"
) -> tuple[Tensor, Memory]:
    """What q [B,Hq,T,dk] reads at every token, with `online` `after` or `before` this is written; and the memory at the
    end.
    """
    if not online:
        return read(q, [*memory, *fixed], rule), memory
    out = []
    for t in range(q.shape[2]):
        new = update(rule, memory, fixed, w, t, first=True)
        out.append(read(q[:, :, t : t + 1], [*(new if order == "after" else memory), *fixed], rule))
        memory = new
    return torch.cat(out, 2), memory


def replay(rule: str, memory: Memory | None, fixed: Memory, w: Written, first: int, passes: int) -> Memory:
    """The update over a window, for passes `first` .. `passes` - 1; only pass 0 decays."""
    memory, how = memory or empty_memory(rule, w), find(rule)
    for number in range(first, passes):
        if how.by_window:
            memory = how.naive(w, [*memory, *fixed])
            continue
        for t in range(w["k"].shape[2]):
            memory = update(rule, memory, fixed, w, t, first=number == 0)
    return memory


def split_heads(x: Tensor, widths: Sequence[tuple[int, int]]) -> list[Tensor]:
    """[B,T,sum of heads*width] -> one [B,heads,T,width] for each."""
    parts = torch.split_with_sizes(x, [heads * width for heads, width in widths], -1)
    shapes = zip(parts, widths, strict=True)
    return [p.reshape(*p.shape[:2], heads, width).transpose(1, 2) for p, (heads, width) in shapes]


def rms(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(mean x^2 + epsilon) over the last dimension."""
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()


def causal_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise: x [B,T,C], weight [C,K] -> [B,T,C]; before the stream there are zeros."""
    taps = weight.shape[1]
    return F.conv1d(F.pad(x.transpose(1, 2), (taps - 1, 0)), weight[:, None], groups=x.shape[2]).transpose(1, 2)
