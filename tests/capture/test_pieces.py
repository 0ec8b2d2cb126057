"""What is filled piece by piece is joined; so are keys made of parts, before some of them get positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sleepc.capture.export import capture_module
from sleepc.errors import Refusal
from sleepc.ir.compare import max_error
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.interp import Runner
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.pipeline import front_stages
from sleepc.passes.runner import run_stages
from tests.capture.flat import Through, captured, outputs

aten = torch.ops.aten
VOCAB, WIDTH = 11, 6


def filled(x: Tensor) -> Tensor:
    y = x.new_empty((*x.shape[:2], 4))
    y[..., 1:] = x[..., 3:]
    y[..., :1] = x[..., :1].cos()
    return y * y


def filled_from_the_end(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[..., -2:] = x[..., :2]
    y[..., :-2] = x[..., 2:]
    return y


def filled_twice(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[..., :4] = x[..., 2:]
    y[..., 2:] = x[..., :4]
    return y


def filled_and_read_in_between(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[..., :2] = x[..., 4:]
    seen = y[..., :2] * 3
    y[..., 2:] = seen.repeat(1, 1, 2)
    return y


def filled_from_what_changes(x: Tensor) -> Tensor:
    y, part = torch.empty_like(x), x[..., :2] * 2
    y[..., :2] = part
    part.add_(1.0)
    y[..., 2:] = part.repeat(1, 1, 2)
    return y


def count(graph: Graph, *operators: object) -> int:
    return sum(is_call(node, *operators) for node in graph.calls())


@pytest.mark.parametrize(
    ("change", "joined"),
    [
        (filled, 1),
        (filled_from_the_end, 1),
        (filled_twice, 0),
        (filled_and_read_in_between, 0),
        (filled_from_what_changes, 0),
    ],
)
def test_what_is_filled_piece_by_piece_is_joined(change: Callable[[Tensor], Tensor], joined: int) -> None:
    model = Through(change)
    program = captured(model)
    assert count(program.embed, aten.cat.default) == joined
    assert count(program.embed, aten.copy.default) == (0 if joined else 2)
    for shape in ((1, 4), (2, 7)):
        tokens = torch.randint(0, VOCAB, shape)
        with torch.no_grad():
            assert max_error(outputs(program, tokens), model(tokens)) == 0


class Latent(nn.Module):
    """One block. Keys are four channels of their own in each head, and two that all heads share, with positions
    (`early`: before they are projected).
    """

    def __init__(self, early: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(VOCAB, 12), nn.Linear(12, VOCAB)
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.down, self.shared = nn.Linear(12, 8), nn.Linear(12, 2)
        self.early = early

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        rows, length, _ = x.shape
        q, v = (part(x).view(rows, length, 2, 6).transpose(1, 2) for part in (self.q, self.v))
        angle = position_ids[:, None, :, None].float()
        read = x * angle[:, 0].cos() if self.early else x
        shared = _turn(self.shared(read).view(rows, 1, length, 2), angle)
        own = self.down(x).view(rows, length, 2, 4).transpose(1, 2)
        q = torch.cat([q[..., :4], _turn(q[..., 4:], angle)], -1)
        k = torch.cat([own, shared.expand(-1, 2, -1, -1)], -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + y.transpose(1, 2).reshape(x.shape)
        logits: Tensor = self.out(x)
        return logits


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def test_a_key_of_parts_is_joined_before_positions() -> None:
    model = Latent()
    program = run_stages(capture_module(model), front_stages())
    graph = program.classes[program.layout[0].cls].wake
    site = find_site(graph)
    assert site.rotated
    assert site.k is not site.node.args[1]
    assert site.k.meta["type"].dims == ("B", 2, "T", 6)
    values = {port: program.params[key].materialise() for port, key in program.layout[0].params.items()}
    h, positions = torch.randn(2, 5, 12), torch.zeros(2, 5, dtype=torch.int64)
    ports = {name: positions for name in graph.ports("input") if name != "h"}
    graph.set_returns({"before": site.k, "k": site.node.args[1]})  # type: ignore[dict-item]
    found = Runner(graph)({**values, **ports, "h": h})
    assert max_error(found["before"], found["k"]) == 0  # at position 0 a rotation is none


def test_a_key_of_parts_that_are_not_found_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        run_stages(capture_module(Latent(early=True)), front_stages())
    assert caught.value.code == "MLA"
