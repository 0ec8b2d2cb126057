"""Models that torch.export cannot follow: refused with the reason, where there is one that people can read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sleepc.capture.export import capture_module
from sleepc.errors import Refusal, SleepcError


class Attends(nn.Module):
    """Causal attention on what `change` makes of the features [B,T,8]."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.out, self.change = nn.Embedding(11, 8), nn.Linear(8, 11), change

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.change(self.table(tokens))
        logits: Tensor = self.out(
            F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]
        )
        return logits


def by_value(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def by_those_chosen(x: Tensor) -> Tensor:
    for expert in (x.sum(-1) > 0).nonzero():
        x = x + expert[0]
    return x


def by_length(x: Tensor) -> Tensor:
    return x * float(x.shape[1])


def fails(x: Tensor) -> Tensor:
    raise ValueError("no such luck")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (by_value, "data-dependent control flow"),
        (by_those_chosen, "data-dependent control flow"),
        (by_length, "for one length only"),
    ],
)
def test_what_depends_on_values_is_refused(change: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as caught:
        capture_module(Attends(change))
    assert caught.value.code == "OPERATOR"
    assert caught.value.fix
    assert ("test_export_errors.py:" in caught.value.what) == (reason == "data-dependent control flow")


def plainly(q: Tensor) -> Tensor:
    out = flex_attention(q, q, q)
    assert isinstance(out, Tensor)
    return out


def by_scores(q: Tensor) -> Tensor:
    out = flex_attention(q, q, q, score_mod=lambda s, b, h, i, j: torch.where(i >= j, s, -1e9))
    assert isinstance(out, Tensor)
    return out


def by_blocks(q: Tensor) -> Tensor:
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[2], q.shape[2], device="cpu")
    out = flex_attention(q, q, q, block_mask=mask)
    assert isinstance(out, Tensor)
    return out


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("attend", [plainly, by_scores, by_blocks])
def test_flex_attention_called_by_the_model_is_refused(attend: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(Refusal, match="flex_attention") as caught:
        capture_module(Attends(lambda x: attend(x[:, None])[:, 0]))
    assert caught.value.code == "OPERATOR"
    assert "scaled_dot_product_attention" in caught.value.fix


def test_other_failures_are_told_as_they_are() -> None:
    with pytest.raises(SleepcError, match="no such luck") as caught:
        capture_module(Attends(fails))
    assert not isinstance(caught.value, Refusal)
    assert torch.is_grad_enabled()
