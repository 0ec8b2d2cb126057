"""A mask means what it does on numbers: windows, chunks, biases that grow with distance, and what is none of these."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sleepc
from sleepc.capture.export import capture_module
from sleepc.errors import Refusal
from sleepc.ir.program import ProgramGraphs
from sleepc.masks import Mask
from sleepc.passes.analysis.find_sites import Site, find_site
from sleepc.passes.analysis.read_mask import Grid, Meaning, classify, looks_ahead
from sleepc.passes.pipeline import front_stages
from sleepc.passes.runner import run_stages

TOKENS = 40
QUERY, KEY = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)
CAUSAL = KEY <= QUERY
HEADS = 4
SLOPES = torch.tensor([0.5**h for h in range(1, HEADS + 1)], dtype=torch.float64)


def grid(seen: Tensor, bias: Tensor | None = None, step: float = 1e-12) -> Grid:
    return Grid(seen[None], None if bias is None else torch.where(seen, bias, 0)[None], step)


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (CAUSAL, ""),
        (CAUSAL & (QUERY - KEY < 7), "window(7)"),
        (CAUSAL & (QUERY // 6 == KEY // 6), "chunk(6)"),
        (CAUSAL & (QUERY // 39 == KEY // 39), "chunk(39)"),
        (CAUSAL & ((QUERY - KEY < 7) | (KEY < 2)), None),
        (CAUSAL & (KEY % 2 == 0), None),
        (CAUSAL & (QUERY // 6 == KEY // 6) & (QUERY - KEY < 4), None),
    ],
)
def test_who_sees_whom(seen: Tensor, wanted: str | None) -> None:
    assert not looks_ahead(grid(seen))
    assert classify(grid(seen)) == (None if wanted is None else Meaning(Mask.parse(wanted), ()))


def test_who_looks_ahead() -> None:
    assert looks_ahead(grid(CAUSAL | (KEY < 3)))


def test_a_bias_that_grows_with_distance() -> None:
    bias = SLOPES[:, None, None] * (KEY - QUERY)
    assert classify(grid(CAUSAL, bias)) == Meaning(Mask(), tuple(SLOPES.tolist()))
    assert classify(grid(CAUSAL & (QUERY - KEY < 7), bias)) == Meaning(Mask.parse("window(7)"), tuple(SLOPES.tolist()))
    for other in (-(QUERY - KEY + 1.0).log(), -((QUERY - KEY) ** 2.0), -(QUERY - KEY).clamp(max=20) * 1.0):
        assert classify(grid(CAUSAL, other[None].double())) is None


class Biased(nn.Module):
    """One block whose scores get `bias(T)` [H,1 or T,T], spelled out, heads folded into the batch."""

    def __init__(self, bias: object) -> None:
        super().__init__()
        self.bias = bias
        self.table, self.out = nn.Embedding(11, 16), nn.Linear(16, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        (rows, length), width = tokens.shape, 16 // HEADS
        q = x.view(rows, length, HEADS, width).transpose(1, 2).reshape(rows * HEADS, length, width)
        scores = torch.bmm(q, q.transpose(1, 2)).view(rows, HEADS, length, length) * 0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = (scores + self.bias(length)).masked_fill(hidden, -torch.inf)  # type: ignore[operator]
        y = torch.bmm(F.softmax(scores, -1).view(rows * HEADS, length, length), q)
        y = y.view(rows, HEADS, length, width).transpose(1, 2).reshape(x.shape)
        return self.out(x + y)  # type: ignore[no-any-return]


def site(model: nn.Module) -> Site:
    program: ProgramGraphs = run_stages(capture_module(model), front_stages())
    return find_site(program.classes[program.layout[0].cls].wake)


@pytest.mark.parametrize("of_keys", [True, False])
def test_slopes_of_a_spelled_out_model(of_keys: bool) -> None:
    """Numbers that are added to all keys of a query mean nothing."""
    slopes = SLOPES.float().view(HEADS, 1, 1)

    def bias(length: int) -> Tensor:
        j = torch.arange(length)
        return slopes * (j if of_keys else j - j[:, None] + 3)

    assert site(Biased(bias)).slopes == tuple(SLOPES.tolist())


def test_inspect_tells_of_the_bias() -> None:
    def bias(length: int) -> Tensor:
        return SLOPES.float().view(HEADS, 1, 1) * torch.arange(length)

    found = sleepc.inspect(Biased(bias), {"window": 8, "sinks": 2})
    assert [block.mask for block in found.blocks] == ["causal, less with distance"]


def test_a_bias_of_another_kind_is_refused() -> None:
    def bias(length: int) -> Tensor:
        j = torch.arange(length)
        return -torch.log1p((j[:, None] - j).abs().float()).expand(HEADS, length, length)

    with pytest.raises(Refusal) as caught:
        site(Biased(bias))
    assert caught.value.code == "UNKNOWN_MASK"
