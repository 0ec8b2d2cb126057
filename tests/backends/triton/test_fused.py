"""What stands around a memory, in Triton's interpreter, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

from sleepc.backends.triton import fused
from sleepc.ir.levels import FUSED
from sleepc.ops import functional, naive
from tests.ops.cases import normal, worst

pytestmark = pytest.mark.usefixtures("memory_that_holds_anything")
DTYPES = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
SHAPES = pytest.mark.parametrize(("heads", "tokens", "width"), [(3, 1, 20), (2, 11, 64)])


@pytest.fixture(autouse=True)
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's form is not to be used."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("there is no kernel for this")

    for name in FUSED:
        monkeypatch.setattr(functional, name, refuse)


def flags(rows: int, tokens: int) -> Tensor:
    """Ragged rows: the first is whole, the last is padding only."""
    return torch.arange(tokens) < torch.linspace(tokens, 0, rows)[:, None]


def close(got: Sequence[Tensor], want: Sequence[Tensor], dtype: torch.dtype, bound: float) -> None:
    assert [(x.dtype, x.shape) for x in got] == [(dtype, x.shape) for x in want]
    assert all(x.is_contiguous() for x in got)
    assert max(worst(x, y) for x, y in zip(got, want, strict=True)) < bound


@DTYPES
@SHAPES
def test_keys(heads: int, tokens: int, width: int, dtype: torch.dtype, bound: float) -> None:
    """They lie otherwise in memory, as what a projection gave does."""
    x, real = normal(3, tokens, heads, width, dtype=dtype).transpose(1, 2), flags(3, tokens)
    close([fused.masked_l2norm(x, real)], [naive.masked_l2norm(x, real)], dtype, bound)


@DTYPES
@pytest.mark.parametrize(("heads", "tokens", "wide"), [(3, 1, 0), (3, 6, 1), (7, 1, 1), (4, 6, 20)])
def test_gates(heads: int, tokens: int, wide: int, dtype: torch.dtype, bound: float) -> None:
    """Without decay, and with one by head or by channel; more columns than a program has."""
    real, strengths = flags(3, tokens), 3 * normal(3, tokens, heads, dtype=dtype)
    decays = (4 * normal(3, tokens, heads * wide, seed=1, dtype=dtype), normal(heads * wide, seed=2, dtype=dtype))
    given = (real, strengths, *(decays if wide else ()))
    close(fused.gates(*given), naive.gates(*given), dtype, 8 * bound)  # e to the power of what was rounded


def test_a_decay_of_a_long_half_life_is_exact() -> None:
    """65,536 tokens: 1 + e is 1 up to the last digits there. Each number by itself."""
    decays = torch.linspace(-30, 30, 61).reshape(1, 61, 1)
    real, strengths = torch.ones(1, 61, dtype=torch.bool), torch.zeros(1, 61, 1)
    got = fused.gates(real, strengths, decays, torch.zeros(1))[1].double().flatten()
    want = -torch.log1p(decays.double().exp()).flatten()
    assert ((got - want) / want).abs().max() < 1e-6


@DTYPES
@SHAPES
def test_the_mix(heads: int, tokens: int, width: int, dtype: torch.dtype, bound: float) -> None:
    """A row that has not slept keeps its window's answer, to the bit."""
    window = normal(3, heads, tokens, width, dtype=dtype)
    memory, share = normal(3, heads, tokens, width, seed=1).float(), normal(3, tokens, heads, seed=2).float()
    live = torch.tensor([True, False, True])
    got = fused.mixed(window, memory, share, live)
    close([got], [naive.mixed(window, memory, share, live)], dtype, bound)
    assert torch.equal(got[1], window[1])


@DTYPES
@SHAPES
def test_the_output_norm(heads: int, tokens: int, width: int, dtype: torch.dtype, bound: float) -> None:
    """Heads of zeros stay zeros."""
    x, weight = normal(2, heads, tokens, width, dtype=dtype), normal(width, seed=1).float()
    x[1, 0] = 0
    opening = normal(2, tokens, heads * width, seed=2, dtype=dtype)
    got, want = (each(x, weight, opening, eps=1e-6) for each in (fused.gated_norm, naive.gated_norm))
    close([got], [want], dtype, 2 * bound)


def test_gradients_and_wide_numbers_are_those_of_pytorch() -> None:
    real = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(AssertionError, match="no kernel"):
        fused.masked_l2norm(normal(1, 1, 1, 4).float().requires_grad_(), real)
    with pytest.raises(AssertionError, match="no kernel"):
        fused.gates(real, normal(1, 1, 1))
    with pytest.raises(AssertionError, match="no kernel"):
        fused.mixed(normal(1, 1, 1, 300).float(), normal(1, 1, 1, 300).float(), normal(1, 1, 1).float(), real[0])
    with pytest.raises(AssertionError, match="no kernel"):
        fused.gated_norm(*(normal(*shape).float() for shape in ((1, 1, 0, 4), (4,), (1, 0, 4))), eps=1e-6)
