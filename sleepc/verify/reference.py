"""What the parts of a converted layer compute, written down once more: one token at a time, no shared code.

B rows, T tokens, Hq and Hkv heads of width dk (values dv), d the hidden width. Formulas: semantics.md, sections 3 to 5
(Gated Delta Networks, arXiv 2412.06464, equation 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Memory = list[Tensor]
# rule -> (subtracts what the key already returns, decays)
RULES = {"linear": (False, False), "gated": (False, True), "delta": (True, False), "gated_delta": (True, True)}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    see: Tensor,
    sinks: Tensor | None,
    *,
    scale: float,
    softcap: float,
    bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention, q [B,Hq,T,dk], k, v [B,Hkv,T,..], see bool [T,T], sinks [Hq] logits or None, bias [Hq,T,T] or
    None -> [B,Hq,T,dv].
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ _repeat(k, q.shape[1]).transpose(2, 3)).to(wide) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~see, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(wide)[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[2]]
    return weights.to(v.dtype) @ _repeat(v, q.shape[1])


def bias(slopes: Sequence[float], position: Tensor) -> Tensor:
    """-slope times the distance between tokens at position [T]: [Hq,T,T] (ALiBi, arXiv 2108.12409)."""
    distance = position[:, None] - position[None]
    return torch.stack([-slope * distance.double() for slope in slopes])


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], 1)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, with 1e-6 beside the squares."""
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


@dataclass(frozen=True)
class Written:
    """What the tokens of a window write: k [B,H,T,dk] of unit length, v [B,H,T,dv], g [B,H,T] or per channel
    [B,H,T,dk], None for none, and beta [B,H,T].
    """

    k: Tensor
    v: Tensor
    g: Tensor | None
    beta: Tensor


def gates(x: Tensor, p: Mapping[str, Tensor], width: int) -> tuple[Tensor | None, Tensor]:
    """g and beta from x [B,T,d]: -exp(A) softplus(W_a x + dt), where there is a W_a, and sigmoid(W_b x + b)."""
    beta = torch.sigmoid(x @ p["w_b"].T + p["b_b"]).transpose(1, 2)
    if "w_a" not in p:
        return None, beta
    g = -p["log_a"].exp() * F.softplus(x @ p["w_a"].T + p["dt"])
    if g.shape[2] != beta.shape[1]:
        return g.reshape(*g.shape[:2], -1, width).transpose(1, 2), beta
    return g.transpose(1, 2), beta


Update = Callable[[Memory, Written, int, bool], Memory]


def update_of(rule: str) -> Update:
    """(memory, what is written, token, does it decay) -> memory after it. A rule from outside is asked for its step."""
    if rule not in RULES:
        return _update_from_registry(rule)
    corrects, decays = RULES[rule]

    def update(memory: Memory, w: Written, t: int, decay: bool) -> Memory:
        k, s = w.k[:, :, t], memory[0]
        if decay and decays:
            assert w.g is not None
            fade = w.g[:, :, t].exp()
            s = (fade[..., None] if fade.dim() == 3 else fade[..., None, None]) * s
        value = w.v[:, :, t]
        if corrects:
            value = value - torch.einsum("bhkv,bhk->bhv", s, k)
        return [s + torch.einsum("bhk,bhv->bhkv", k, w.beta[:, :, t, None] * value)]

    return update


def _update_from_registry(name: str) -> Update:
    from sleepc.ops.rules import find

    rule = find(name)

    def update(memory: Memory, w: Written, t: int, decay: bool) -> Memory:
        g = w.g[:, :, t] if decay and w.g is not None else torch.zeros_like(w.beta[:, :, t])
        return list(rule.step(w.k[:, :, t], w.v[:, :, t], g, w.beta[:, :, t], memory))

    return update


def empty_memory(rule: str, w: Written) -> Memory:
    """The memory of a stream that has written nothing: one matrix [B,H,dk,dv], or what a rule from outside says."""
    batch, heads, _, dk = w.k.shape
    if rule in RULES:
        return [w.k.new_zeros(batch, heads, dk, w.v.shape[3])]
    from sleepc.ops.rules import find

    return [w.k.new_zeros(batch, *shape) for shape in find(rule).states(heads, dk, w.v.shape[3]).values()]


def memory_names(rule: str) -> tuple[str, ...]:
    """The names of a memory's tensors."""
    if rule in RULES:
        return ("S",)
    from sleepc.ops.rules import find

    return tuple(find(rule).states(1, 1, 1))


def read(q: Tensor, memory: Memory, rule: str) -> Tensor:
    """S^T q for q [B,Hq,n,dk] -> [B,Hq,n,dv]."""
    if rule not in RULES:
        from sleepc.ops.rules import find

        heads = memory[0].shape[1]
        rows = q.reshape(q.shape[0], heads, -1, q.shape[3])
        return find(rule).read(memory, rows).reshape(*q.shape[:3], -1)
    return q @ _repeat(memory[0], q.shape[1])


def answer(rule: str, q: Tensor, w: Written, memory: Memory, *, online: bool) -> tuple[Tensor, Memory]:
    """What q [B,Hq,T,dk] reads at every token, which with `online` is written before, and the memory at the end."""
    if not online:
        return read(q, memory, rule), memory
    update, out = update_of(rule), []
    for t in range(q.shape[2]):
        memory = update(memory, w, t, True)
        out.append(read(q[:, :, t : t + 1], memory, rule))
    return torch.cat(out, 2), memory


def replay(rule: str, memory: Memory | None, w: Written, first: int, passes: int) -> Memory:
    """The update over a window, for passes `first` .. `passes` - 1; only pass 0 decays."""
    update = update_of(rule)
    memory = memory or empty_memory(rule, w)
    for number in range(first, passes):
        for t in range(w.k.shape[2]):
            memory = update(memory, w, t, number == 0)
    return memory


def change(before: Sequence[Memory], after: Sequence[Memory]) -> list[float]:
    """|after - before| / |after| of each row, over all numbers of all memories; 0 where nothing changes."""
    memories = zip(before, after, strict=True)
    pairs = [(x.detach().double(), y.detach().double()) for both in memories for x, y in zip(*both, strict=True)]
    found = []
    for row in range(len(pairs[0][0]) if pairs else 0):
        apart = math.fsum(float((new[row] - old[row]).square().sum()) for old, new in pairs)
        size = math.fsum(float(new[row].square().sum()) for _, new in pairs)
        found.append(math.sqrt(apart / size) if apart else 0.0)
    return found


def put_back(new: Tensor, old: Tensor, moving: Sequence[bool]) -> Tensor:
    """`new` [B,..] in the rows that move, and `old` in the others."""
    return torch.stack([new[row] if go else old[row] for row, go in enumerate(moving)])


def split_heads(x: Tensor, widths: Sequence[tuple[int, int]]) -> list[Tensor]:
    """[B,T,sum of heads*width] -> one [B,heads,T,width] for each."""
    parts = torch.split_with_sizes(x, [heads * width for heads, width in widths], -1)
    shapes = zip(parts, widths, strict=True)
    return [p.reshape(*p.shape[:2], heads, width).transpose(1, 2) for p, (heads, width) in shapes]


def rms(x: Tensor) -> Tensor:
    """x / sqrt(mean x^2 + 1e-6) over the last dimension."""
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def causal_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise: x [B,T,C], weight [C,K] -> [B,T,C]; before the stream there are zeros."""
    taps = weight.shape[1]
    return F.conv1d(F.pad(x.transpose(1, 2), (taps - 1, 0)), weight[:, None], groups=x.shape[2]).transpose(1, 2)
