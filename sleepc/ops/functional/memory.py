"""Fast-weight memories: update and read, read alone, consolidation by replay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sleepc.memory.registry import find
from sleepc.memory.rule import Rule, Tokens, token_by_token
from sleepc.ops.functional.heads import group

LITERAL_PASSES = 3  # up to here the loop over passes costs no more than the affine form


def tokens_of(
    rule: Rule, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, gates: Sequence[Tensor] | None, wide: torch.dtype
) -> dict[str, Tensor]:
    """k, v and the rule's gates by name, in the states' dtype: those named g and beta have places of their own, the
    others come in the rule's order. Raises ValueError for another number of them than the rule has.
    """
    others = iter(gates or ())
    own = {"g": g, "beta": beta}
    rest = [name for name in rule.gates if name not in own]
    if len(rest) != len(gates or ()):
        raise ValueError(f"rule {rule.name} takes {len(rest)} gates in addition to g and beta, not {len(gates or ())}")
    named = {"k": k, "v": v} | {name: own[name] if name in own else next(others) for name in rule.gates}
    return {name: value.to(wide) for name, value in named.items()}


def in_again(rule: Rule, tokens: Tokens) -> dict[str, Tensor]:
    """The tokens of a pass after the first: gates that do not act again are at their values at padding."""
    shape = tokens["k"].shape[:-1]
    still = {n: tokens["k"].new_full(shape, gate.at_padding) for n, gate in rule.gates.items() if not gate.again}
    return {**tokens, **still}


def advance(
    rule: Rule, q: Tensor | None, tokens: Tokens, state: Sequence[Tensor]
) -> tuple[Tensor | None, list[Tensor]]:
    """The rule's `chunk`, or a loop of `step` for one token or if there is no chunk. T >= 1."""
    if rule.chunk is not None and tokens["k"].shape[2] > 1:
        return rule.chunk(q, tokens, state)
    return token_by_token(rule, q, tokens, state)


def _run(
    rule: Rule, q: Tensor | None, tokens: Tokens, state: Sequence[Tensor], chunk: int
) -> tuple[list[Tensor], list[Tensor]]:
    """All tokens, `chunk` at a time: q [B, Hkv, G, T, dk] or None -> (reads per chunk, state')."""
    count, (new, learned) = tokens["k"].shape[2], rule.split(state)
    if rule.by_window:
        return [], rule.step(tokens, state)
    reads, new = [], [x.clone() for x in new] if count == 0 else new
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        ask = None if q is None else q[:, :, :, part]
        out, new = advance(rule, ask, {name: x[:, :, part] for name, x in tokens.items()}, [*new, *learned])
        if out is not None:
            reads.append(out)
    return reads, new


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
    gates: Sequence[Tensor] | None = None,
    *,
    rule: str,
    scale: float,
    chunk: int = 64,
) -> list[Tensor]:
    """Every token updates the memory and then reads it: o_t = scale * S_t^T q_t.

    q [B, Hq, T, dk], k [B, Hkv, T, dk], v [B, Hkv, T, dv], g [B, Hkv, T] or [B, Hkv, T, dk] (<= 0,
    log space) and beta [B, Hkv, T] (neither is looked at by rules without such a gate), state: the
    rule's tensors, each [B, ...], float32 or float64, and after them what its layer has learned, each
    [Hkv, ...]; gates: the rule's others, each [B, Hkv, T, ..]; all is computed in the state's dtype.
    -> [o [B, Hq, T, dv] in q's dtype, *state']. The result does not depend on `chunk` (tokens
    computed at once) but for rounding. UsageError for an unknown rule, ValueError for chunk < 1, Hq
    not a multiple of Hkv, another number of gates than the rule has, or a rule that writes a window at
    once.
    """
    _check_chunk(chunk)
    how, wide = find(rule), state[0].dtype
    if how.by_window:
        raise ValueError(f"rule {rule} writes a window at once, and not token by token")
    rows = group(q, k.shape[1]).to(wide)
    reads, new = _run(how, rows, tokens_of(how, k, v, g, beta, gates, wide), state, chunk)
    if not reads:
        return [q.new_zeros(*q.shape[:3], v.shape[3]), *new]
    return [(torch.cat(reads, 3).flatten(1, 2) * scale).to(q.dtype), *new]


def delta_rule_read(q: Tensor, state: Sequence[Tensor], *, rule: str, scale: float) -> Tensor:
    """What q reads from a memory that stays as it is: scale * S^T q.

    q [B, Hq, T, dk], state as in `delta_rule` -> [B, Hq, T, dv] in q's dtype. UsageError for an
    unknown rule.
    """
    rows = group(q, state[0].shape[1]).to(state[0].dtype)
    out = find(rule).read(state, rows.flatten(2, 3))
    return (out * scale).view(*q.shape[:3], out.shape[3]).to(q.dtype)


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
    chunk: int = 64,
) -> list[Tensor]:
    """Consolidation: `passes` epochs of the update over a window, all but the first without decay.

    Shapes as in `delta_rule`; written=True means that the first epoch was done while awake, so
    passes - 1 are left. -> state'. More than three epochs of an affine rule cost as much as three:
    without decay an epoch is always the same map S -> M S + B. UsageError for an unknown rule,
    ValueError for passes < 1, chunk < 1 or another number of gates than the rule has.
    """
    _check_chunk(chunk)
    if passes < 1:
        raise ValueError(f"a window has at least one pass, not {passes}")
    how = find(rule)
    tokens = tokens_of(how, k, v, g, beta, gates, state[0].dtype)
    old, learned = how.split(state)
    new = [x.clone() for x in old] if written else _run(how, None, tokens, state, chunk)[1]
    if passes == 1:
        return new
    again = in_again(how, tokens)
    if how.affine and passes > LITERAL_PASSES:
        return [_replay_affine(how, again, new[0], passes - 1, chunk)]
    for _ in range(passes - 1):
        new = _run(how, None, again, [*new, *learned], chunk)[1]
    return new


def _replay_affine(rule: Rule, again: Tokens, state: Tensor, epochs: int, chunk: int) -> Tensor:
    """`epochs` times S -> M S + B; a run from [I | 0] with values [0 | v] ends in [M | B]."""
    k, v = again["k"], again["v"]
    dk = k.shape[3]
    start = torch.zeros_like(torch.cat([k.new_empty(*state.shape[:2], dk, dk), state], 3))
    start[..., :dk] = torch.eye(dk, dtype=state.dtype, device=state.device)
    both = _run(rule, None, {**again, "v": torch.cat([torch.zeros_like(k), v], 3)}, [start], chunk)
    step, add = both[1][0][..., :dk], both[1][0][..., dk:]
    for _ in range(epochs):
        state = step @ state + add
    return state
