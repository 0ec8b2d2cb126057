"""The L2 norm and one token of the short convolution, in Triton's interpreter, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

from sleepc.backends.triton.features import l2norm, short_conv
from sleepc.ops import functional, naive
from tests.ops.cases import normal, worst

pytestmark = pytest.mark.usefixtures("memory_that_holds_anything")


@pytest.fixture(autouse=True)
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's form is not to be used."""

    def refuse(*_: Any) -> None:
        raise AssertionError("there is no kernel for this")

    for name in ("l2norm", "short_conv"):
        monkeypatch.setattr(functional, name, refuse)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-7), (torch.float16, 5e-4), (torch.bfloat16, 4e-3)], ids=str
)
def test_l2norm(dtype: torch.dtype, bound: float) -> None:
    """Heads of 20, more of them than a program has, that lie otherwise in memory; zeros stay zeros."""
    x = normal(2, 5, 3, 20, dtype=dtype)
    x[1, 2] = 0
    turned = x.transpose(1, 2)
    got = l2norm(turned)
    assert (got.dtype, got.shape) == (dtype, turned.shape)
    assert worst(got, naive.l2norm(turned)) < bound


@pytest.mark.parametrize(("channels", "taps"), [(37, 4), (300, 2), (16, 3)])
def test_one_token_of_the_convolution(channels: int, taps: int) -> None:
    """A row that reads nothing keeps its tail, to the bit."""
    x, weight, tail = (normal(*shape, seed=i).float() for i, shape in enumerate(_shapes(channels, taps)))
    lengths = torch.tensor([1, 0, 1])
    got, after = short_conv(x, weight, tail, lengths)
    want, wanted = naive.short_conv(x, weight, tail, lengths)
    assert worst(got, want) < 1e-6
    assert torch.equal(after.double(), wanted)
    assert after.data_ptr() != tail.data_ptr()


def _shapes(channels: int, taps: int) -> tuple[tuple[int, ...], ...]:
    return (3, 1, channels), (channels, taps), (3, channels, taps - 1)


def test_narrow_values_and_a_tail_of_their_type() -> None:
    x, weight, tail = (normal(*shape, seed=i, dtype=torch.float16) for i, shape in enumerate(_shapes(20, 4)))
    got, after = short_conv(x, weight, tail, torch.ones(3, dtype=torch.int64))
    want, wanted = naive.short_conv(x, weight, tail, torch.ones(3, dtype=torch.int64))
    assert (got.dtype, after.dtype) == (torch.float16, torch.float16)
    assert worst(got, want) < 1e-3
    assert torch.equal(after.double(), wanted)


def test_several_tokens_and_gradients_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="no kernel"):
        short_conv(normal(1, 2, 4), normal(4, 4), normal(1, 4, 3), torch.tensor([2]))
    with pytest.raises(AssertionError, match="no kernel"):
        l2norm(normal(1, 4).float().requires_grad_())
    with pytest.raises(AssertionError, match="no kernel"):
        l2norm(normal(1, 4))
