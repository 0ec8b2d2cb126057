from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d

from sleepc.ops import functional, naive
from tests.ops.cases import few, normal, small, worst


def _whole(x: Tensor, weight: Tensor) -> Tensor:
    """The causal convolution of a whole stream, zeros before it. [B, T, C]."""
    taps, channels = weight.shape[1], weight.shape[0]
    padded = torch.nn.functional.pad(x.mT, (taps - 1, 0))
    return conv1d(padded, weight[:, None], groups=channels).mT


@small
@given(
    tokens=st.integers(1, 12),
    taps=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_any_split_equals_the_whole_stream(tokens: int, taps: int, cuts: list[int]) -> None:
    x, weight = normal(2, tokens, 3), normal(3, taps, seed=1)
    tail, parts = torch.zeros(2, 3, taps - 1).double(), []
    edges = [0, *sorted(min(c, tokens) for c in cuts), tokens]
    for a, b in pairwise(edges):
        y, tail = functional.short_conv(x[:, a:b], weight, tail, torch.tensor([b - a, b - a]))
        parts.append(y)
    assert worst(torch.cat(parts, 1), _whole(x, weight)) < 1e-12
    padded = torch.nn.functional.pad(x.mT, (taps - 1, 0))
    assert torch.equal(tail, padded[:, :, tokens:])


@small
@given(
    tokens=st.integers(0, 6),
    taps=st.integers(1, 5),
    lengths=st.lists(st.integers(0, 6), min_size=3, max_size=3),
)
def test_ragged_rows_equal_the_loop(tokens: int, taps: int, lengths: list[int]) -> None:
    x, weight, tail = normal(3, tokens, 4), normal(4, taps, seed=1), normal(3, 4, taps - 1, seed=2)
    length = torch.tensor(lengths).clamp(max=tokens)
    y, new = functional.short_conv(x, weight, tail, length)
    want, kept = naive.short_conv(x, weight, tail, length)
    assert worst(y, want) < 1e-12
    assert torch.equal(new, kept)


@pytest.mark.parametrize("split", [1, 2, 3, 7])
def test_ragged_rows_equal_each_row_alone(split: int) -> None:
    """Rows of 7, 3 and 0 tokens, fed in pieces with padding behind; the padding is poison."""
    x, weight, lengths = normal(3, 7, 2), normal(2, 4, seed=1), torch.tensor([7, 3, 0])
    x = x.masked_fill((torch.arange(7) >= lengths[:, None])[..., None], 1e9)
    tail, parts = torch.zeros(3, 2, 3).double(), []
    for a in range(0, 7, split):
        piece = x[:, a : a + split]
        left = (lengths - a).clamp(0, piece.shape[1])
        y, tail = functional.short_conv(piece, weight, tail, left)
        parts.append(y)
    for b, n in enumerate(lengths.tolist()):
        alone, end = functional.short_conv(x[b : b + 1, :n], weight, torch.zeros(1, 2, 3).double(), torch.tensor([n]))
        assert worst(torch.cat(parts, 1)[b : b + 1, :n], alone) < 1e-12
        assert torch.equal(tail[b : b + 1], end)


def test_convolution_keeps_its_dtypes() -> None:
    x, weight, tail = (normal(*s, dtype=torch.bfloat16) for s in ((1, 5, 2), (2, 4), (1, 2, 3)))
    y, new = functional.short_conv(x, weight, tail, torch.tensor([5]))
    assert y.dtype == new.dtype == torch.bfloat16
    assert worst(y, naive.short_conv(x, weight, tail, torch.tensor([5]))[0]) < 8e-3


@few
@given(size=st.integers(1, 6), rows=st.integers(0, 3))
def test_l2norm_equals_its_meaning(size: int, rows: int) -> None:
    x = normal(rows, 2, size)
    assert worst(functional.l2norm(x), naive.l2norm(x)) < 1e-14


def test_l2norm_is_computed_wide() -> None:
    """In half precision the sum of squares of 300s overflows; zero stays zero."""
    x = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert torch.equal(functional.l2norm(x), torch.full((1, 4), 0.5, dtype=torch.float16))
    zero = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(functional.l2norm(zero).sum(), zero)
    assert grad.isfinite().all()


@few
@given(size=st.integers(1, 6), rows=st.integers(0, 3))
def test_rms_norm_equals_its_meaning(size: int, rows: int) -> None:
    x, weight = normal(rows, 2, size), normal(size, seed=1)
    assert worst(functional.rms_norm(x, weight, eps=1e-3), naive.rms_norm(x, weight, eps=1e-3)) < 1e-14


@few
@given(half=st.integers(1, 3), tokens=st.integers(0, 3))
def test_rotary_equals_its_meaning(half: int, tokens: int) -> None:
    x = normal(2, 3, tokens, 2 * half)
    cos, sin = (normal(2, tokens, 2 * half, seed=seed) for seed in (1, 2))
    assert worst(functional.rotary(x, cos, sin), naive.rotary(x, cos, sin)) < 1e-14


@few
@given(tokens=st.integers(0, 3), width=st.sampled_from((0, 1, 2)), biased=st.booleans())
def test_linears_equal_their_meaning(tokens: int, width: int, biased: bool) -> None:
    maps, biases = [normal(4, 3, seed=1), normal(2, 3, seed=2)], [normal(4, seed=3), normal(2, seed=4)]
    given = (normal(2, tokens, 3), maps, biases if biased else None)
    for got, want in zip(functional.linears(*given, width=width), naive.linears(*given, width=width), strict=True):
        assert got.shape == want.shape
        assert worst(got, want) < 1e-14


@few
@given(tokens=st.integers(0, 3), heads=st.integers(1, 3), wide=st.integers(1, 3), rows=st.integers(1, 2))
def test_what_stands_around_a_memory_equals_its_meaning(tokens: int, heads: int, wide: int, rows: int) -> None:
    real = torch.arange(tokens) < torch.tensor([[tokens], [1]])[:rows]
    by_head, columns = normal(rows, heads, tokens, wide), normal(rows, tokens, heads * wide, seed=1)
    asked, rate, live = normal(rows, tokens, heads, seed=2), normal(heads * wide, seed=3), torch.tensor([True, False])
    cases: list[tuple[str, tuple[Tensor, ...], dict[str, float]]] = [
        ("masked_l2norm", (by_head, real), {}),
        ("gates", (real, asked), {}),
        ("gates", (real, asked, columns, rate), {}),
        ("mixed", (by_head, 2 * by_head + 1, asked, live[:rows]), {}),
        ("gated_norm", (by_head, rate[:wide], columns), {"eps": 1e-3}),
    ]
    for name, tensors, options in cases:
        got, want = (getattr(each, name)(*tensors, **options) for each in (functional, naive))
        for a, b in zip(*(x if isinstance(x, list) else [x] for x in (got, want)), strict=True):
            assert a.shape == b.shape
            assert worst(a, b) < 1e-14
