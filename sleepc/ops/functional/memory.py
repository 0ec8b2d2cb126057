"""Fast-weight memories: update and read, read alone, consolidation by replay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sleepc.ops import rules
from sleepc.ops.functional.heads import group
from sleepc.ops.rules import Rule

LITERAL_PASSES = 3  # up to here the loop over passes costs no more than the affine form


def _run(
    rule: Rule,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Sequence[Tensor],
    chunk: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """All tokens, `chunk` at a time: q [B, Hkv, G, T, dk] or None -> (reads per chunk, state')."""
    reads, new = [], [x.clone() for x in state] if k.shape[2] == 0 else list(state)
    for start in range(0, k.shape[2], chunk):
        part = slice(start, start + chunk)
        ask = None if q is None else q[:, :, :, part]
        out, new = rule.advance(ask, k[:, :, part], v[:, :, part], g[:, :, part], beta[:, :, part], new)
        if out is not None:
            reads.append(out)
    return reads, new


def _still(k: Tensor) -> Tensor:
    """g = 0: no decay. [B, H, T]."""
    return k.new_zeros(k.shape[:3])


def _check_chunk(chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"a chunk has at least one token, not {chunk}")


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Sequence[Tensor],
    *,
    rule: str,
    scale: float,
    chunk: int = 64,
) -> list[Tensor]:
    """Every token updates the memory and then reads it: o_t = scale * S_t^T q_t.

    q [B, Hq, T, dk], k [B, Hkv, T, dk], v [B, Hkv, T, dv], g [B, Hkv, T] or [B, Hkv, T, dk] (<= 0,
    log space; not looked at by rules without decay), beta [B, Hkv, T], state: the rule's tensors,
    each [B, ...], float32 or float64; all is computed in the state's dtype. -> [o [B, Hq, T, dv] in
    q's dtype, *state']. The result does not depend on `chunk` (tokens computed at once) but for
    rounding. UsageError for an unknown rule, ValueError for chunk < 1 or Hq not a multiple of Hkv.
    """
    _check_chunk(chunk)
    how, wide = rules.find(rule), state[0].dtype
    rows, k, v, beta = group(q, k.shape[1]).to(wide), k.to(wide), v.to(wide), beta.to(wide)
    g = g.to(wide) if how.decays else _still(k)
    reads, new = _run(how, rows, k, v, g, beta, state, chunk)
    if not reads:
        return [q.new_zeros(*q.shape[:3], v.shape[3]), *new]
    return [(torch.cat(reads, 3).flatten(1, 2) * scale).to(q.dtype), *new]


def delta_rule_read(q: Tensor, state: Sequence[Tensor], *, rule: str, scale: float) -> Tensor:
    """What q reads from a memory that stays as it is: scale * S^T q.

    q [B, Hq, T, dk], state as in `delta_rule` -> [B, Hq, T, dv] in q's dtype. UsageError for an
    unknown rule.
    """
    rows = group(q, state[0].shape[1]).to(state[0].dtype)
    out = rules.find(rule).read(state, rows.flatten(2, 3))
    return (out * scale).view(*q.shape[:3], out.shape[3]).to(q.dtype)


def replay(
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Sequence[Tensor],
    *,
    rule: str,
    passes: int,
    written: bool,
    chunk: int = 64,
) -> list[Tensor]:
    """Consolidation: `passes` epochs of the update over a window, all but the first with g = 0.

    Shapes as in `delta_rule`; written=True means that the first epoch was done while awake, so
    passes - 1 are left. -> state'. More than three epochs of an affine rule cost as much as three:
    without decay an epoch is always the same map S -> M S + B. UsageError for an unknown rule,
    ValueError for passes < 1 or chunk < 1.
    """
    _check_chunk(chunk)
    if passes < 1:
        raise ValueError(f"a window has at least one pass, not {passes}")
    how, wide = rules.find(rule), state[0].dtype
    k, v, beta, still = k.to(wide), v.to(wide), beta.to(wide), _still(k).to(wide)
    new = [x.clone() for x in state]
    if not written:
        new = _run(how, None, k, v, g.to(wide) if how.decays else still, beta, new, chunk)[1]
    if how.affine and passes > LITERAL_PASSES:
        return [_replay_affine(how, k, v, still, beta, new[0], passes - 1, chunk)]
    for _ in range(passes - 1):
        new = _run(how, None, k, v, still, beta, new, chunk)[1]
    return new


def _replay_affine(
    rule: Rule,
    k: Tensor,
    v: Tensor,
    still: Tensor,
    beta: Tensor,
    state: Tensor,
    epochs: int,
    chunk: int,
) -> Tensor:
    """`epochs` times S -> M S + B; a run from [I | 0] with values [0 | v] ends in [M | B]."""
    dk = k.shape[3]
    start = torch.zeros_like(torch.cat([k.new_empty(*state.shape[:2], dk, dk), state], 3))
    start[..., :dk] = torch.eye(dk, dtype=state.dtype, device=state.device)
    both = _run(rule, None, k, torch.cat([torch.zeros_like(k), v], 3), still, beta, [start], chunk)
    step, add = both[1][0][..., :dk], both[1][0][..., dk:]
    for _ in range(epochs):
        state = step @ state + add
    return state
