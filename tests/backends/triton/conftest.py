"""What tests of kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def memory_that_holds_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read before it is written is infinite, so that 0 times it is an error and not 0 by chance."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def infinite(*args: Any, **options: Any) -> Tensor:
            x = make(*args, **options)
            return x.fill_(torch.inf) if x.is_floating_point() else x

        return infinite

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(Tensor, "new_empty", filled(Tensor.new_empty))
