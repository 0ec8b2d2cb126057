from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sleepc.backends.eager.attention import kept_attention, window_attention
from sleepc.ops import functional, naive
from tests.ops.cases import normal, small, uniform, worst
from tests.ops.test_windows import own_mask

GROUPS = [(1, 1), (2, 1), (3, 3), (6, 2)]


def _mask(kind: str, rows: int, heads: int, tokens: int, keys: int) -> Tensor | None:
    """Random masks in which some queries see nothing."""
    if kind == "none":
        return None
    lines = 1 if kind == "shared" else rows
    seen = uniform(lines, 1 if kind != "heads" else heads, tokens, keys, seed=7) < 0.5
    if tokens > 1:
        seen[:, :, 1] = False
    if kind in ("bool", "shared"):
        return seen
    least = {"heads": -math.inf, "minimum": torch.finfo(torch.float32).min}[kind]
    return normal(*seen.shape, seed=8).masked_fill(~seen, least)


@small
@given(
    groups=st.sampled_from(GROUPS),
    tokens=st.integers(0, 6),
    kind=st.sampled_from(["none", "bool", "shared", "heads", "minimum"]),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
    causal=st.booleans(),
    distances=st.sampled_from([0, 1, 4]),
)
def test_attention_equals_the_loop(
    groups: tuple[int, int], tokens: int, kind: str, softcap: float, sinks: bool, causal: bool, distances: int
) -> None:
    heads, memories = groups
    q, k = normal(2, heads, tokens, 4), normal(2, memories, tokens, 4, seed=1)
    v = normal(2, memories, tokens, 3, seed=2)
    mask = _mask(kind, 2, heads, tokens, tokens)
    sink = normal(heads, seed=3) if sinks else None
    by_distance = normal(2, heads, tokens, distances, seed=4) if distances and causal and mask is None else None
    args = (q, k, v, mask, sink, by_distance)
    want = naive.attention(*args, scale=0.5, softcap=softcap, causal=causal)
    got = functional.attention(*args, scale=0.5, softcap=softcap, causal=causal)
    assert worst(got, want) < 1e-12


@small
@given(
    groups=st.sampled_from(GROUPS),
    tokens=st.integers(0, 7),
    window=st.integers(0, 3),
    chunk=st.integers(0, 4),
    slopes=st.booleans(),
)
def test_attention_of_a_mask_class_equals_the_loop(
    groups: tuple[int, int], tokens: int, window: int, chunk: int, slopes: bool
) -> None:
    heads, memories = groups
    q, k = normal(2, heads, tokens, 4), normal(2, memories, tokens, 4, seed=1)
    v = normal(2, memories, tokens, 3, seed=2)
    rates = [0.5**h for h in range(heads)] if slopes else []
    for causal in (True, False):
        how: dict[str, Any] = {"scale": 0.5, "causal": causal, "sees": own_mask(window, chunk), "slopes": rates}
        assert worst(functional.attention(q, k, v, **how), naive.attention(q, k, v, **how)) < 1e-12


@small
@given(
    groups=st.sampled_from(GROUPS),
    tokens=st.integers(0, 4),
    width=st.integers(1, 7),
    kind=st.sampled_from(["bool", "shared", "heads", "minimum"]),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
)
def test_window_attention_equals_the_loop(
    groups: tuple[int, int], tokens: int, width: int, kind: str, softcap: float, sinks: bool
) -> None:
    heads, memories = groups
    q, k = normal(2, heads, tokens, 4), normal(2, memories, tokens, 4, seed=1)
    v = normal(2, memories, tokens, 3, seed=2)
    held = normal(2, memories, width, 4, seed=4), normal(2, memories, width, 3, seed=5)
    mask = _mask(kind, 2, heads, tokens, width + tokens)
    assert mask is not None
    sink = normal(heads, seed=3) if sinks else None
    args = (q, k, v, *held, mask, sink)
    want = naive.window_attention(*args, scale=0.5, softcap=softcap)
    got = functional.window_attention(*args, scale=0.5, softcap=softcap)
    assert worst(got, want) < 1e-12


@small
@given(
    groups=st.sampled_from(GROUPS),
    tokens=st.integers(0, 4),
    width=st.integers(0, 5),
    slots=st.integers(0, 6),
    kind=st.sampled_from(["bool", "shared"]),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
)
def test_kept_attention_equals_the_loop(
    groups: tuple[int, int], tokens: int, width: int, slots: int, kind: str, softcap: float, sinks: bool
) -> None:
    heads, memories = groups
    q, k = normal(2, heads, tokens, 4), normal(2, memories, tokens, 4, seed=1)
    v = normal(2, memories, tokens, 3, seed=2)
    held = normal(2, memories, width, 4, seed=4), normal(2, memories, width, 3, seed=5)
    mask = _mask(kind, 2, heads, tokens, width + tokens)
    assert mask is not None
    kept = normal(2, slots, 4, seed=6), normal(2, slots, 3, seed=7), uniform(2, memories, tokens, slots, seed=8) < 0.5
    args = (q, k, v, *held, mask, *kept, normal(heads, seed=3) if sinks else None)
    want = naive.kept_attention(*args, scale=0.5, softcap=softcap)
    got = functional.kept_attention(*args, scale=0.5, softcap=softcap)
    assert worst(got, want) < 1e-12


@pytest.mark.parametrize("slots", [None, 0, 5])
@pytest.mark.parametrize("values", [4, 3])
@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_attention_over_windows_without_gradients(
    slots: int | None, values: int, tokens: int, dtype: torch.dtype, bound: float
) -> None:
    """PyTorch's kernel, taken where no gradient is wanted, is the same function, without kept pairs and with them: a
    query that sees nothing included.
    """
    q, k = normal(2, 6, tokens, 4, dtype=dtype), normal(2, 3, tokens, 4, seed=1, dtype=dtype)
    v = normal(2, 3, tokens, values, seed=2, dtype=dtype)
    held = normal(2, 3, 7, 4, seed=4, dtype=dtype), normal(2, 3, 7, values, seed=5, dtype=dtype)
    mask = torch.rand(2, 1, tokens, 7 + tokens, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[1, :, -1:] = False
    both: tuple[Any, Any] = window_attention, naive.window_attention
    kept: tuple[Tensor, ...] = ()
    if slots is not None:
        seen = uniform(2, 3, tokens, slots, seed=8) < 0.5
        seen[1, :, -1:] = False
        kept = normal(2, slots, 4, seed=6, dtype=dtype), normal(2, slots, values, seed=7, dtype=dtype), seen
        both = kept_attention, naive.kept_attention
    run, plain = both
    want = plain(q, k, v, *held, mask, *kept, scale=0.5)
    with torch.no_grad():
        got = run(q, k, v, *held, mask, *kept, scale=0.5)
    assert got.dtype == dtype
    assert worst(got.double(), want.double()) < bound
    assert torch.equal(got[1, :, -1:], torch.zeros_like(got[1, :, -1:]))


@pytest.mark.parametrize(("empty", "together"), [(0, 256), (6, 256), (6, 2)])
@pytest.mark.parametrize("slots", [None, 5])
@pytest.mark.parametrize("values", [4, 3])
def test_gradients_of_attention_over_windows(
    slots: int | None, values: int, empty: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of PyTorch's kernel are those of plain functions, and finite for a query that sees nothing; also where many
    places are `empty`, which no query sees and the kernel is not given, and where only some queries are computed
    `together`.
    """
    monkeypatch.setattr("sleepc.backends.eager.attention.MANY", min(together, 5))
    monkeypatch.setattr("sleepc.backends.eager.attention.TOGETHER", together)
    new = normal(2, 6, 5, 4), normal(2, 3, 5, 4, seed=1), normal(2, 3, 5, values, seed=2)
    mask = torch.rand(2, 1, 5, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[1, :, -1:] = False
    mask[..., :empty] = False
    leaves = [x.requires_grad_() for x in (*new, normal(2, 3, 7, 4, seed=4), normal(2, 3, 7, values, seed=5))]
    args: list[Tensor] = [*leaves, mask]
    both: tuple[Any, Any] = window_attention, functional.window_attention
    if slots is not None:
        seen = uniform(2, 3, 5, slots, seed=8) < 0.5
        seen[1, :, -1:] = False
        leaves += [normal(2, slots, 4, seed=6).requires_grad_(), normal(2, slots, values, seed=7).requires_grad_()]
        args += [*leaves[-2:], seen]
        both = kept_attention, functional.kept_attention
    outs = [run(*args, scale=0.5) for run in both]
    fused, plain = (torch.autograd.grad(out.sin().sum(), leaves) for out in outs)
    assert worst(outs[0].detach(), outs[1].detach()) < 1e-12
    for got, want in zip(fused, plain, strict=True):
        assert want.abs().max() > 0
        assert worst(got, want) < 1e-12
    assert torch.equal(fused[0][1, :, -1:], torch.zeros_like(fused[0][1, :, -1:]))


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_sees_nothing_gets_zeros(sinks: bool, dtype: torch.dtype) -> None:
    q, k, v = (normal(1, 2, 3, 4, seed=s, dtype=dtype).requires_grad_() for s in range(3))
    sink = normal(2, seed=3, dtype=dtype).requires_grad_() if sinks else None
    seen = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    seen[:, :, 1] = False
    for mask in (seen, torch.zeros(1, 1, 3, 3, dtype=dtype).masked_fill(~seen, -math.inf)):
        out = functional.attention(q, k, v, mask, sink, scale=1.0)
        assert out.dtype == dtype
        assert torch.equal(out[:, :, 1], torch.zeros_like(out[:, :, 1]))
        leaves = [x for x in (q, k, v, sink) if x is not None]
        grads = torch.autograd.grad(out.float().square().sum(), leaves)
        assert all(g.isfinite().all() for g in grads)
        assert torch.equal(grads[0][:, :, 1], torch.zeros_like(grads[0][:, :, 1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_wide(dtype: torch.dtype) -> None:
    """A score of 1e5 is infinite in float16, and 257 is 256 or 258 in bfloat16."""
    q, v = torch.ones(1, 1, 2, 1, dtype=dtype), torch.tensor([1.0, 0.0], dtype=dtype)
    k = torch.tensor([1.0, 1.0078125], dtype=dtype).view(1, 1, 2, 1)
    for scale in (128.0, 1e5):
        out = functional.attention(q, k, v.view(1, 1, 2, 1), scale=scale)
        want = torch.sigmoid(torch.tensor(-0.0078125 * scale, dtype=torch.float64))
        assert worst(out, want.expand(out.shape)) < 4e-3


def test_unseen_keys_do_not_matter_at_all() -> None:
    q, k, v = normal(1, 2, 1, 4), normal(1, 1, 1, 4, seed=1), normal(1, 1, 1, 4, seed=2)
    held = normal(1, 1, 5, 4, seed=3), normal(1, 1, 5, 4, seed=4)
    mask = torch.tensor([1, 1, 0, 0, 1, 1], dtype=torch.bool).view(1, 1, 1, 6)
    a = functional.window_attention(q, k, v, *held, mask, scale=1.0)
    other = held[0].clone(), held[1].clone()
    for x in other:
        x[:, :, 2:4] = 1e6
    assert torch.equal(functional.window_attention(q, k, v, *other, mask, scale=1.0), a)


def test_window_of_everything_is_attention() -> None:
    """Keys in the window and keys of the call are one sequence."""
    q, k, v = normal(2, 4, 9, 4), normal(2, 2, 9, 4, seed=1), normal(2, 2, 9, 4, seed=2)
    want = functional.attention(q, k, v, scale=0.5, causal=True)
    for cut in range(10):
        new = slice(cut, None)
        mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()[:, :, new]
        got = functional.window_attention(
            q[:, :, new], k[:, :, new], v[:, :, new], k[:, :, :cut], v[:, :, :cut], mask, scale=0.5
        )
        assert worst(got, want[:, :, new]) < 1e-14


def test_heads_must_group() -> None:
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2 KV heads"):
        functional.attention(normal(1, 3, 1, 2), normal(1, 2, 1, 2), normal(1, 2, 1, 2), scale=1.0)
