"""A model is called as before once it was captured, whatever was set on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sleepc.capture.chosen_rows import chosen_rows
from sleepc.capture.dense_experts import dense_experts
from sleepc.capture.replaced import forward_replaced


class _Experts(nn.Module):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Something."""
        return hidden_states * top_k_weights


def twice(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What a hook sets on a module, as packages that move weights do."""
    return 2 * hidden_states


@pytest.mark.parametrize("hooked", [False, True])
def test_a_forward_comes_back(hooked: bool) -> None:
    module = _Experts()
    if hooked:
        module.forward = twice  # type: ignore[method-assign]
    before, given = vars(module).get("forward"), [torch.ones(2)] * 3
    with pytest.raises(ZeroDivisionError), forward_replaced(module, lambda *_: 1 / 0):
        module(*given)
    with dense_experts(module), chosen_rows(module):
        assert vars(module)["forward"] is not before
    assert vars(module).get("forward") is before
    assert torch.equal(module(*given), torch.ones(2) * (2 if hooked else 1))
