"""Convolutions over tokens that are called as PyTorch's own become ours, with what they make of the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sleepc.capture.plain_convolutions import plain_convolutions
from sleepc.ops import RECURRENCES


class Convolutions(nn.Module):
    """Two that share their padding: by channel, and by group of channels."""

    def __init__(self, bias: bool, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 8, 2, groups=8, bias=bias)
        self.second = nn.Conv1d(8, 6, 3, groups=2, bias=bias, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,8,T] -> [B,6,T]."""
        y: Tensor = self.second(self.first(F.pad(x, (3, 0))))
        return y


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts convolutions of ours."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in RECURRENCES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("bias", "stride", "ours"), [(True, 1, 3), (False, 1, 3), (True, 2, 1)])
def test_they_are_the_same_numbers(bias: bool, stride: int, ours: int) -> None:
    """A stride is not understood: what has one is left as it is."""
    torch.manual_seed(0)
    model, x = Convolutions(bias, stride).double(), torch.randn(2, 8, 9, dtype=torch.float64)
    wanted = model(x)
    counting = Counting()  # type: ignore[no-untyped-call]
    with plain_convolutions(model), counting, torch.no_grad():
        found = model(x)
    torch.testing.assert_close(found, wanted)
    assert counting.count == ours
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=0)
