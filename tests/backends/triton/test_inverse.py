"""The inverse of a chunk alone, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

import triton.language as tl

from sleepc.backends.triton.kernels.inverse import invert
from tests.ops.cases import normal, unit, worst

pytestmark = pytest.mark.usefixtures("memory_that_holds_anything")


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(a: Any, out: Any, C: tl.constexpr) -> None:
    at = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(out + at, invert(tl.load(a + at), C))


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("repeated", [False, True])
def test_inverse(size: int, repeated: bool) -> None:
    """Repeated tokens with strengths of 1 too, of which the doubling product makes 1e10."""
    keys = unit(normal(size, 8))
    keys = keys[:1].expand(size, 8) if repeated else keys
    a = (keys @ keys.T).tril(-1)
    out = torch.empty(size, size)
    _kernel[(1,)](a.float(), out, size)
    assert worst(out, torch.linalg.inv(torch.eye(size).double() + a)) < 1e-6
