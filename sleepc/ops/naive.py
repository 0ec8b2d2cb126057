"""The meaning of every operator, one token and one head at a time, in float64.

Written to be read and to compare with; shares nothing with `functional` and is as slow as it looks.
Arguments are those of `functional`; floating results are float64. Shapes: B rows, Hq query heads,
Hkv KV heads, T tokens, L window, s sinks, W = s + L slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from sleepc.masks import Mask
from sleepc.memory.registry import find
from sleepc.memory.rule import Rule, Tokens


def _memory_of(head: int, q: Tensor, heads: int) -> int:
    """The KV head that a query head uses: neighbours share one."""
    return head // (q.shape[1] // heads)


def _attend(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, sink: float, scale: float, softcap: float) -> Tensor:
    """One query q [D] over keys [K, D], values [K, Dv], bias [K] (-inf = unseen) -> [Dv]."""
    scores = [float(q @ key) * scale for key in keys]
    if softcap:
        scores = [softcap * math.tanh(x / softcap) for x in scores]
    scores = [x + float(b) for x, b in zip(scores, bias, strict=True)]
    top = max([sink, *scores])
    if top == -math.inf:
        return torch.zeros(values.shape[1], dtype=torch.float64)
    weights = [math.exp(x - top) for x in scores]
    total = math.exp(sink - top) + sum(weights)
    out = torch.zeros(values.shape[1], dtype=torch.float64)
    for weight, value in zip(weights, values, strict=True):
        out = out + weight / total * value
    return out


def _bias(mask: Tensor) -> Tensor:
    """What is added to the scores: -inf at unseen keys, which additive masks may give a minimum."""
    if mask.dtype != torch.bool:
        unseen = mask < max(torch.finfo(mask.dtype).min, torch.finfo(torch.float32).min) / 2
        return mask.double().masked_fill(unseen, -math.inf)
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_window: Tensor,
    v_window: Tensor,
    mask: Tensor,
    sink_logits: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    """Softmax attention of every query over the window's slots, then the new tokens."""
    rows, heads, tokens = q.shape[:3]
    keys, values = torch.cat([k_window, k], 2).double(), torch.cat([v_window, v], 2).double()
    bias = _bias(mask).expand(rows, heads, tokens, keys.shape[2])
    out = torch.zeros(rows, heads, tokens, v.shape[3], dtype=torch.float64)
    for b in range(rows):
        for h in range(heads):
            m = _memory_of(h, q, k.shape[1])
            sink = -math.inf if sink_logits is None else float(sink_logits[h])
            for t in range(tokens):
                query = q[b, h, t].double()
                seen = bias[b, h, t]
                out[b, h, t] = _attend(query, keys[b, m], values[b, m], seen, sink, scale, softcap)
    return out


def kept_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_window: Tensor,
    v_window: Tensor,
    mask: Tensor,
    k_kept: Tensor,
    v_kept: Tensor,
    kept_mask: Tensor,
    sink_logits: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    """Softmax attention of every query over the pairs that its KV head keeps, the window's slots, then the new
    tokens.
    """
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    rows, heads, tokens = q.shape[:3]
    for b, h, t in product(range(rows), range(heads), range(tokens)):
        m = _memory_of(h, q, k.shape[1])
        keys = torch.cat([k_kept[b], k_window[b, m], k[b, m]]).double()
        values = torch.cat([v_kept[b], v_window[b, m], v[b, m]]).double()
        others = _bias(mask).expand(rows, heads, tokens, -1)[b, h, t]
        bias = torch.cat([_bias(kept_mask)[b, m, t], others])
        sink = -math.inf if sink_logits is None else float(sink_logits[h])
        out[b, h, t] = _attend(q[b, h, t].double(), keys, values, bias, sink, scale, softcap)
    return out


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    sink_logits: Tensor | None = None,
    by_distance: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    causal: bool = False,
    sees: str = "",
    slopes: Sequence[float] = (),
) -> Tensor:
    """Softmax attention among the new tokens: a window without slots."""
    tokens = q.shape[2]
    bias = torch.zeros(1, 1, tokens, tokens, dtype=torch.float64)
    bias = bias if mask is None else _bias(mask).clone()
    if slopes:
        bias = bias.repeat(1, len(slopes), 1, 1)
    if by_distance is not None:
        bias = bias.repeat(q.shape[0], q.shape[1], 1, 1)
    for t in range(tokens):
        for j in range(tokens if causal else 0):
            for h, slope in enumerate(slopes):
                bias[:, h, t, j] -= slope * (t - j)
            if by_distance is not None and j <= t:
                bias[:, :, t, j] += by_distance[:, :, t, min(t - j, by_distance.shape[3] - 1)].double()
            if not Mask.parse(sees).naive(t, j):
                bias[..., t, j] = -math.inf
    empty_k, empty_v = k[:, :, :0], v[:, :, :0]
    return window_attention(q, k, v, empty_k, empty_v, bias, sink_logits, scale=scale, softcap=softcap)


def _slot(position: int, window: int, sinks: int) -> int:
    return position if position < sinks else sinks + (position - sinks) % window


def window_slots(positions: Tensor, *, window: int, sinks: int) -> Tensor:
    """The first tokens of a stream have the sinks, the others take turns in the ring."""
    slots = [[_slot(p, window, sinks) if p >= 0 else -1 for p in row] for row in positions.tolist()]
    return torch.tensor(slots, dtype=torch.int64).view(positions.shape)


def _played(positions: Tensor, position: Tensor, window: int, sinks: int) -> list[list[int]]:
    """The positions of every row's keys: the stream up to `position` played into slots, then the new tokens."""
    rows = []
    for b in range(positions.shape[0]):
        held = [-1] * (sinks + window)
        for past in range(int(position[b])):
            held[_slot(past, window, sinks)] = past
        rows.append(held + [int(p) for p in positions[b]])
    return rows


def window_mask(positions: Tensor, position: Tensor, *, window: int, sinks: int, sees: str = "") -> Tensor:
    """Ask for every pair whether it sees."""
    (rows, tokens), width = positions.shape, sinks + window
    out = torch.zeros(rows, 1, tokens, width + tokens, dtype=torch.bool)
    for b, keys in enumerate(_played(positions, position, window, sinks)):
        for t in range(tokens):
            i = int(positions[b, t])
            for column, j in enumerate(keys):
                allowed = i >= 0 and j >= 0 and Mask.parse(sees).naive(i, j)
                out[b, 0, t, column] = allowed and (j < sinks or i - j < window)
    return out


def window_bias(
    positions: Tensor,
    position: Tensor,
    *,
    window: int,
    sinks: int,
    slopes: Sequence[float],
    dtype: torch.dtype = torch.float64,
    sees: str = "",
) -> Tensor:
    """Take slope times distance off the score of every pair that sees. float64, whatever `dtype` is."""
    seen = window_mask(positions, position, window=window, sinks=sinks, sees=sees)
    out = torch.full((seen.shape[0], len(slopes), *seen.shape[2:]), -math.inf, dtype=torch.float64)
    for b, keys in enumerate(_played(positions, position, window, sinks)):
        for t, i in enumerate(positions[b].tolist()):
            for column, j in enumerate(keys):
                for h, slope in enumerate(slopes):
                    if seen[b, 0, t, column]:
                        out[b, h, t, column] = -slope * (i - j)
    return out


def write_slots(buffer: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """One token after the other into its slot; -1 writes nothing. Any dtype."""
    out = buffer.clone()
    for b in range(slots.shape[0]):
        for t in range(slots.shape[1]):
            if slots[b, t] >= 0:
                out[b, :, int(slots[b, t])] = new[b, :, t]
    return out


def short_conv(x: Tensor, weight: Tensor, tail: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """A column is weighed with the K-1 before it; a tail is shifted once per real token."""
    rows, tokens, _ = x.shape
    y, tails = torch.zeros(x.shape, dtype=torch.float64), tail.double().clone()
    for b in range(rows):
        columns = tail[b].double()  # [C, K-1]
        for t in range(tokens):
            columns = torch.cat([columns, x[b, t, :, None].double()], 1)
            y[b, t] = (columns * weight.double()).sum(1)
            columns = columns[:, 1:]
            if t < int(lengths[b]):
                tails[b] = columns
    return y, tails


def l2norm(x: Tensor) -> Tensor:
    """Unit length, but for an epsilon that keeps zero at zero."""
    return x.double() / (x.double().pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Row by row: each number over the root of the mean square, times its weight."""
    rows = []
    for row in x.double().reshape(-1, x.shape[-1]):
        root = math.sqrt(sum(float(value) ** 2 for value in row) / len(row) + eps)
        rows.append(row / root * weight.double())
    return torch.stack(rows).reshape(x.shape) if rows else x.double()


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pair by pair: (x_i, x_(i + D/2)) turned by the angle whose cosine and sine are column i of the tables."""
    half, out = x.shape[-1] // 2, x.double().clone()
    for i in range(half):
        a, b = x[..., i].double(), x[..., i + half].double()
        c, s = cos[..., i].double().unsqueeze(1), sin[..., i].double().unsqueeze(1)
        out[..., i], out[..., i + half] = a * c - b * s, b * c + a * s
    return out


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, *, width: int = 0
) -> list[Tensor]:
    """Output by output; with `width` so many of them are a head."""
    results = []
    for i, weight in enumerate(weights):
        columns = [(x.double() * row.double()).sum(-1) for row in weight]
        y = torch.stack(columns, -1) + (biases[i].double() if biases else 0.0)
        heads = [y[..., at : at + width] for at in range(0, y.shape[-1], width)] if width else []
        results.append(torch.stack(heads, 1) if heads else y)
    return results


def masked_l2norm(x: Tensor, real: Tensor) -> Tensor:
    """Unit length, and zeros where nothing is read."""
    return torch.where(real[:, None, :, None], l2norm(x), 0.0)


def gates(real: Tensor, strengths: Tensor, decays: Tensor | None = None, rate: Tensor | None = None) -> list[Tensor]:
    """Number by number, [B, H, T] and after that [B, H, T] or [B, H, T, dk]."""
    rows, tokens, heads = strengths.shape
    beta = torch.zeros(rows, heads, tokens, dtype=torch.float64)
    for b, t, h in product(range(rows), range(tokens), range(heads)):
        beta[b, h, t] = float(real[b, t]) / (1 + math.exp(-float(strengths[b, t, h])))
    if decays is None or rate is None:
        return [beta]
    wide = decays.shape[2] // heads
    g = torch.zeros(rows, heads, tokens, wide, dtype=torch.float64)
    for b, t, n in product(range(rows), range(tokens), range(decays.shape[2])):
        size = math.log1p(math.exp(float(decays[b, t, n])))
        g[b, n // wide, t, n % wide] = -math.exp(float(rate[n])) * size * float(real[b, t])
    return [beta, g if wide > 1 else g[..., 0]]


def mixed(window: Tensor, memory: Tensor, share: Tensor, live: Tensor) -> Tensor:
    """Row by row and head by head: the window's answer, and of one that has slept a share m of the memory's."""
    out = window.double().clone()
    for b, h in product(range(window.shape[0]), range(window.shape[1])):
        m = share[b, :, h, None].double().sigmoid() * live[b]
        out[b, h] = (1 - m) * out[b, h] + m * memory[b, h].double()
    return out


def gated_norm(x: Tensor, weight: Tensor, opening: Tensor, *, eps: float) -> Tensor:
    """Head by head: the RMS norm, times y / (1 + e^-y) of what opens it."""
    width = x.shape[3]
    normed = [rms_norm(x[:, h], weight, eps=eps) for h in range(x.shape[1])]
    opened = [opening[..., h * width : (h + 1) * width].double() for h in range(x.shape[1])]
    return torch.cat([each * y / (1 + (-y).exp()) for each, y in zip(normed, opened, strict=True)], -1)


def _tokens(rule: Rule, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, gates: Sequence[Tensor] | None) -> Tokens:
    named = {"k": k, "v": v, "g": g, "beta": beta, **dict(zip(_others(rule), gates or (), strict=True))}
    return {name: named[name].double() for name in ("k", "v", *rule.gates)}


def _others(rule: Rule) -> list[str]:
    """Gates that have no place of their own among the arguments."""
    return [name for name in rule.gates if name not in ("g", "beta")]


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Sequence[Tensor],
    gates: Sequence[Tensor] | None = None,
    *,
    rule: str,
    scale: float,
    chunk: int = 0,
) -> list[Tensor]:
    """Every token updates the memory and then reads it, as the rule's own reference has it. `chunk` means nothing."""
    how = find(rule)
    rows, heads, tokens = q.shape[:3]
    memory, learned = how.split([x.double().clone() for x in state])
    written = _tokens(how, k, v, g, beta, gates)
    out = torch.zeros(rows, heads, tokens, v.shape[3], dtype=torch.float64)
    for b in range(rows):
        for t in range(tokens):
            for m in range(k.shape[1]):
                held = [*(x[b, m].clone() for x in memory), *(x[m] for x in learned)]
                new = how.naive({n: x[b, m, t] for n, x in written.items()}, held)
                for old, value in zip(memory, new, strict=True):
                    old[b, m] = value
            for h in range(heads):
                m = _memory_of(h, q, k.shape[1])
                held = [*(x[b, m] for x in memory), *(x[m] for x in learned)]
                out[b, h, t] = scale * how.naive_read(held, q[b, h, t : t + 1].double())[0]
    return [out, *memory]


def delta_rule_read(q: Tensor, state: Sequence[Tensor], *, rule: str, scale: float) -> Tensor:
    """Every query reads the memory as it is."""
    rows, (memory, learned) = [], find(rule).split([x.double() for x in state])
    for b, h in product(range(q.shape[0]), range(q.shape[1])):
        m = _memory_of(h, q, state[0].shape[1])
        held = [*(x[b, m] for x in memory), *(x[m] for x in learned)]
        rows.append(scale * find(rule).naive_read(held, q[b, h].double()))
    return torch.stack(rows).view(*q.shape[:2], *rows[0].shape)


def replay(
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Sequence[Tensor],
    gates: Sequence[Tensor] | None = None,
    *,
    rule: str,
    passes: int,
    written: bool,
    chunk: int = 0,
) -> list[Tensor]:
    """The update over the window, `passes` times; what does not act again (decay) acts in the first one only."""
    how = find(rule)
    new, learned = how.split([x.double() for x in state])
    for n in range(1 if written else 0, passes):
        given = {"g": g, "beta": beta, **dict(zip(_others(how), gates or (), strict=True))}
        if n > 0:
            given |= {m: torch.full_like(given[m], x.at_padding) for m, x in how.gates.items() if not x.again}
        rest = [given[name] for name in _others(how)]
        if how.by_window:
            new = _window(how, _tokens(how, k, v, g, beta, rest), new, learned)
        else:
            new = delta_rule(k, k, v, given["g"], given["beta"], [*new, *learned], rest, rule=rule, scale=1.0)[1:]
    return new


def _window(rule: Rule, written: Tokens, memory: Sequence[Tensor], learned: Sequence[Tensor]) -> list[Tensor]:
    """Memories after a window, one by one."""
    new = [x.clone() for x in memory]
    for b, m in product(range(memory[0].shape[0]), range(memory[0].shape[1])):
        held = [*(x[b, m] for x in memory), *(x[m] for x in learned)]
        for old, value in zip(new, rule.naive({n: x[b, m] for n, x in written.items()}, held), strict=True):
            old[b, m] = value
    return new
