"""A kind of mask that sleepc has not: one value says what it means, one function how ONNX spells it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import sleepc
from sleepc.api import Program
from sleepc.backends.onnx import windows
from sleepc.backends.onnx.call import Call
from sleepc.errors import SleepcError, UsageError
from sleepc.masks import KINDS, Kind, Mask, register
from sleepc.masks.mask import nearest

VOCAB, WINDOW, SINKS = 17, 8, 2


def guess(seen: Tensor) -> int:
    """The distance of the two latest keys that the last token sees."""
    at = seen[-1].nonzero().flatten().tolist()
    return int(at[-1] - at[-2]) if len(at) > 1 else 0


DILATED = Kind(
    name="dilated",
    sees=lambda i, j, n: (i - j) % n == 0,
    naive=lambda i, j, n: j in range(i, -1, -n),
    guess=guess,
    reach=lambda n: None,
    words=lambda n: f"every token {n} away",
    tokens=lambda n: f"every token {n} away",
)


def spell(c: Call, queries: ir.Value, keys: ir.Value, n: int) -> ir.Value:
    number = c.e.const(n, torch.int64)
    return c.e("Equal", c.e("Mod", c.e("Sub", queries, keys), number), c.e.const(0, torch.int64))


@pytest.fixture(autouse=True)
def dilated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, DILATED.name, DILATED)


class Dilated(nn.Module):
    """Two blocks of two heads, whose tokens see every third one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.where, self.out = nn.Embedding(VOCAB, 8), nn.Embedding(64, 8), nn.Linear(8, VOCAB)
        self.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(8, 24), nn.Linear(8, 8)]) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        at = torch.arange(tokens.shape[1], device=tokens.device)
        distance = at[:, None] - at
        mask = (distance >= 0) & (distance % 3 == 0)
        h = self.words(tokens) + self.where(at)
        for block in self.blocks:
            qkv, o = block.children()
            q, k, v = (x.unflatten(2, (2, 4)).transpose(1, 2) for x in (2 * qkv(h)).split(8, 2))
            y = nn.functional.scaled_dot_product_attention(q, k, v, mask)
            h = h + o(y.transpose(1, 2).flatten(2))
        logits: Tensor = self.out(h)
        return logits


@pytest.fixture
def program() -> Program:
    return sleepc.convert(Dilated(), {"window": WINDOW, "sinks": SINKS})


def test_it_is_recognised_shown_and_verified(program: Program) -> None:
    assert [block.mask for block in sleepc.inspect(Dilated(), {"window": WINDOW}).blocks] == ["every token 3 away"] * 2
    assert "dilated(3)" in [node.kwargs.get("sees") for node in program.graphs.embed.calls()]
    found = program.verify(against=Dilated())
    assert found.ok, found.checks


def test_another_number_is_found(program: Program) -> None:
    for node in program.graphs.embed.calls():
        if node.kwargs.get("sees"):
            node.kwargs = {**node.kwargs, "sees": "dilated(2)"}
    found = program.verify(against=Dilated())
    assert {check.invariant for check in found.checks if not check.ok} >= {2, 4}


def test_onnx_takes_it_as_it_is_spelled(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.save(tmp_path / "artifact")
    with pytest.raises(SleepcError, match="'dilated' have no ONNX form"):
        program.export(tmp_path / "refused", tokens=list(range(16)) * 8)
    monkeypatch.setitem(windows.SPELLINGS, DILATED.name, spell)
    program.export(tokens=list(range(16)) * 8)
    ids = np.random.default_rng(0).integers(0, VOCAB, (1, 29))
    wanted = program.session().feed(ids, logits="all")[0]
    found = sleepc.load(tmp_path / "artifact").session(backend="onnx").feed(ids, logits="all")[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_name_is_taken_once_and_a_literal_is_checked() -> None:
    with pytest.raises(UsageError, match="a kind of mask named 'dilated' already"):
        register(DILATED)
    assert str(Mask.parse("window(5)&dilated(3)")) == "window(5)&dilated(3)"
    for wrong in ("dilated", "dilated(0)", "gone(3)", "window(5)&", "window(-1)", "window( 5)"):
        with pytest.raises(SleepcError, match="not a mask"):
            Mask.parse(wrong)


def test_what_a_grid_is_nearest_to() -> None:
    at = torch.arange(12)
    seen = (at <= at[:, None]) & (at[:, None] - at < 4)
    seen[9, 2] = True
    assert nearest(seen) == (Mask.parse("window(4)"), 9, 2)
