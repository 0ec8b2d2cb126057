"""A model that counts positions itself, in many spellings, gets them from outside: one row for each sequence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sleepc.capture.export import capture_module
from sleepc.errors import Refusal
from sleepc.ir.compare import max_error
from sleepc.ir.interp import Runner
from sleepc.passes.front.bind_positions import BindPositions
from sleepc.passes.front.drop_noops import DropNoops

VOCAB, WIDTH, ROWS = 17, 8, 12
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


class Counts(nn.Module):
    """Adds what `form` makes of a count [T], features [B,T,8] and a table to the features."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.table, self.out = (
            nn.Embedding(VOCAB, WIDTH),
            nn.Embedding(ROWS, WIDTH),
            nn.Linear(WIDTH, VOCAB),
        )
        self.form = form

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        count = torch.arange(tokens.shape[1], device=x.device)
        logits: Tensor = self.out(x + self.form(count, x, self.table.weight))
        return logits


def looked_up(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    return nn.functional.embedding(count + 1, table)


def unsqueezed_late(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    return nn.functional.embedding((count + 0).unsqueeze(0) + 1, table)


def both_ways(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    later = count + 1
    return table[later] + table[later.unsqueeze(0)] * later.unsqueeze(1)


def repeated(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    return table[count.unsqueeze(0).repeat(x.shape[0], 1)]


def expanded(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    return table[count.expand(x.shape[0], -1)]


def viewed(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    return table[count.view(1, -1)] + count.view(-1, 1).float() + count.expand(x.shape[0], -1).reshape(*x.shape[:2], 1)


def halves(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    made = table[count][None, None, :, :]
    a, b = made.chunk(2, dim=-1)
    turned = torch.stack([b, a], -1).reshape_as(made)
    return turned[:, 0].transpose(1, 2).transpose(-1, -2)


def along_tokens(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    angle = torch.cat([count[:, None].float() * 0.1, count.cumsum(0)[:, None].float()], dim=1)
    return angle.flip(1).transpose(0, 1).sin().transpose(0, 1).repeat(1, 4)


@pytest.mark.parametrize(
    "form", [looked_up, unsqueezed_late, both_ways, repeated, expanded, viewed, halves, along_tokens]
)
def test_rows_of_positions(form: Form) -> None:
    model = Counts(form)
    program = capture_module(model)
    DropNoops().run(program)
    assert BindPositions().run(program) == 1
    values = {name: param.materialise() for name, param in program.params.items()}
    tokens = torch.randint(0, VOCAB, (3, 10))
    rows = (
        {0: slice(0, 5), 1: slice(3, 8), 2: slice(5, 10)}
        if form is not along_tokens
        else dict.fromkeys(range(3), slice(0, 5))
    )
    with torch.no_grad():
        wanted = torch.stack([model(tokens[i : i + 1])[0, part] for i, part in rows.items()])
    positions = torch.stack([torch.arange(10)[part] for part in rows.values()])
    read = torch.stack([tokens[i, part] for i, part in rows.items()])
    found = Runner(program.embed)({**values, "tokens": read, "positions": positions})["logits"]
    assert max_error(found, wanted) < 1e-6


def test_positions_that_are_given_are_left_alone() -> None:
    class Both(Counts):
        def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:  # type: ignore[override]
            given = position_ids.unsqueeze(2).float().cos()
            return super().forward(input_ids) * given.transpose(0, 1).transpose(0, 1)

    model = Both(unsqueezed_late)
    program = capture_module(model)
    DropNoops().run(program)
    assert BindPositions().run(program) == 1
    values = {name: param.materialise() for name, param in program.params.items()}
    tokens, positions = torch.randint(0, VOCAB, (2, 6)), torch.arange(6).expand(2, 6)
    with torch.no_grad():
        wanted = model(tokens, positions)
    found = Runner(program.embed)({**values, "tokens": tokens, "positions": positions})["logits"]
    assert max_error(found, wanted) < 1e-6


def over_all_rows(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    return table[count] * torch.outer(count.float(), count.float()).sum(1)[:, None]


def backwards(count: Tensor, x: Tensor, table: Tensor) -> Tensor:
    return torch.arange(x.shape[1] - 1, -1, -1)[:, None] * table[count]


@pytest.mark.parametrize("form", [over_all_rows, backwards])
def test_other_ways_are_refused(form: Form) -> None:
    program = capture_module(Counts(form))
    DropNoops().run(program)
    with pytest.raises(Refusal) as caught:
        BindPositions().run(program)
    assert caught.value.code == "POSITIONS"
