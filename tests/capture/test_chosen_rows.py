"""Rows that are chosen by values are computed for all rows, and those that were chosen are put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sleepc.capture.chosen_rows import chosen_rows
from sleepc.errors import Refusal

ROWS, WIDTH, EXPERTS = 9, 4, 3


class _Chosen(nn.Module):
    """x [N,d], taker [N] -> [N,d]: each row through the linear map of who takes it, by masks or by counts."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.maps = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor, taker: Tensor) -> Tensor:
        """The rows, mapped."""
        if self.how == "counts":
            order = taker.argsort(stable=True)
            counts: list[int] = F.one_hot(taker, EXPERTS).sum(0).tolist()
            parts = torch.split(x[order], counts)
            return torch.zeros_like(x).index_add(
                0, order, torch.cat([F.linear(*p) for p in zip(parts, self.maps, strict=True)])
            )
        y = torch.zeros_like(x)
        if self.how == "written":
            mask = taker == 0
            rows, y = x[mask], x.clone()
            y[taker != 0] = F.linear(input=y[taker != 0], weight=self.maps[0])
            x = x * 0
            y[mask] = F.relu(rows)
            return y
        for i in range(EXPERTS):
            rows = x[taker == i]
            y[taker == i] = rows.sum(0) if self.how == "sums" else F.gelu(F.linear(rows, self.maps[i]))
        return y


def exported(model: nn.Module, *given: Tensor) -> Any:
    sizes = {0: torch.export.Dim.DYNAMIC}
    with chosen_rows(model), torch.no_grad():
        return torch.export.export(model, given, dynamic_shapes=(sizes, sizes), strict=False).module()


@pytest.mark.parametrize("how", ["masks", "counts", "written"])
def test_chosen_rows_are_what_was_chosen(how: str) -> None:
    """For another number of rows than was exported, of which one takes none."""
    model = _Chosen(how)
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2))
    taker = torch.tensor([2, 0, 0, 2, 0, 2, 2, 0, 0])
    program = exported(model, x[:5], taker[:5])
    torch.testing.assert_close(program(x, taker), model(x, taker), rtol=1e-6, atol=1e-6)


class _Otherwise(_Chosen):
    """What other rows than were chosen, other parts or another order would come of."""

    def forward(self, x: Tensor, taker: Tensor) -> Tensor:
        """The rows, mapped."""
        first, y = taker == 0, torch.zeros_like(x)
        if self.how == "masks joined":
            return torch.cat([F.linear(x[first], self.maps[0]), F.linear(x[~first], self.maps[1])])
        if self.how == "other mask":
            y[taker == 1] = F.linear(x[first], self.maps[0])
            return y
        if self.how == "mask written":
            rows = x[first]
            first.logical_not_()
            y[first] = rows
            return y
        if self.how == "added":
            y[first] += F.linear(x[first], self.maps[0])
            return y
        counts: list[int] = F.one_hot(taker, EXPERTS).sum(0).tolist()
        if self.how == "count asked":
            return y if counts[0] == 0 else x
        parts = torch.split(x, counts[::-1] if self.how == "counts reversed" else counts)
        made = [F.linear(*p) for p in zip(parts, self.maps, strict=True)]
        if self.how == "joined aside":
            return torch.cat(made, dim=1)
        return torch.cat(made[::-1] if self.how == "parts reversed" else made[1:])


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("masks joined", "are joined that are not all parts of one split"),
        ("other mask", "are put where other rows were chosen"),
        ("mask written", "are put where other rows were chosen"),
        ("added", "go through add"),
        ("count asked", "go through eq"),
        ("counts reversed", "are split otherwise than by all counts in their order"),
        ("parts reversed", "are joined that are not all parts of one split"),
        ("parts left out", "are joined that are not all parts of one split"),
        ("joined aside", "are joined that are not all parts of one split"),
    ],
)
def test_rows_that_come_back_elsewhere_are_refused(how: str, what: str) -> None:
    with pytest.raises(Refusal, match=what) as caught:
        exported(_Otherwise(how), torch.ones(5, WIDTH), torch.zeros(5, dtype=torch.int64))
    assert caught.value.code == "OPERATOR"


def test_what_looks_at_several_rows_is_refused() -> None:
    with pytest.raises(Refusal, match="go through sum, which may look at several of them") as caught:
        exported(_Chosen("sums"), torch.ones(5, WIDTH), torch.zeros(5, dtype=torch.int64))
    assert caught.value.code == "OPERATOR"
