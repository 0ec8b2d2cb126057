"""Attention is found through the seam of transformers and, without it, in eager and SDPA form: the same sites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sleepc
from sleepc.capture.export import capture_module
from sleepc.capture.seam import open_seam
from sleepc.errors import Refusal
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import Site, find_site
from sleepc.passes.pipeline import front_stages
from sleepc.passes.runner import run_stages
from tests.families import make_module

NODES = ("node", "q", "k", "v", "x")


def sites(program: ProgramGraphs) -> list[dict[str, object]]:
    found: list[Site] = [find_site(program.classes[b.cls].wake) for b in program.layout]
    return [{f.name: getattr(s, f.name) for f in dataclasses.fields(s) if f.name not in NODES} for s in found]


@pytest.mark.parametrize("form", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "mistral-5"])
def test_seam_and_rules_find_the_same(name: str, form: str) -> None:
    module = make_module(name, torch.float32)
    with open_seam(module):
        by_seam = run_stages(capture_module(module), front_stages())
    module.set_attn_implementation(form)  # type: ignore[operator]
    by_rules = run_stages(capture_module(module), front_stages())
    assert sites(by_rules) == sites(by_seam)


def test_the_seam_leaves_the_model_as_it_was() -> None:
    module = make_module("llama", torch.float32)
    before = module.config._attn_implementation  # type: ignore[union-attr]
    with open_seam(module):
        assert module.config._attn_implementation != before  # type: ignore[union-attr]
    assert module.config._attn_implementation == before  # type: ignore[union-attr]


def test_bidirectional_attention_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(11, 16), nn.Linear(16, 11)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.table(tokens)
            q = x.view(*tokens.shape, 2, 8).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(x.shape)
            return self.out(x + y)  # type: ignore[no-any-return]

    with pytest.raises(Refusal) as caught:
        run_stages(capture_module(Both()), front_stages())
    assert caught.value.code == "BIDIRECTIONAL"


LEAST = torch.finfo(torch.float32).min
Masking = Callable[[Tensor, Tensor], Tensor]  # scores [B,H,T,T] and a mask [1,1,T,T], numbers 0 and 1 -> scores


class SpelledOut(nn.Module):
    """One block of attention over permuted keys, scores in `dtype`, masked in a way of its own."""

    def __init__(self, masking: Masking, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.masking, self.dtype = masking, dtype
        self.table, self.out = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.seen = nn.Buffer(torch.ones(40, 40).tril()[None, None])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        length = tokens.shape[1]
        heads = x.view(*tokens.shape, 2, 8)
        q, turned = heads.transpose(1, 2).to(self.dtype), heads.permute(0, 2, 3, 1).to(self.dtype)
        scores = self.masking(q @ turned, self.seen[:, :, :length, :length])
        y = F.softmax(scores, -1).to(x.dtype) @ heads.transpose(1, 2)
        return self.out(x + y.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


def largest(scores: Tensor, least: float) -> Tensor:
    return torch.max(scores, torch.full((), least))


MASKINGS: dict[str, Masking] = {
    "a number that stands in a tensor": lambda w, b: torch.where(b > 0, w, torch.tensor(LEAST, dtype=w.dtype)),
    "the other way round": lambda w, b: torch.where(b == 0, -torch.inf, w / 3.0),
    "filled with a tensor": lambda w, b: w.masked_fill(b == 0, torch.tensor(LEAST, dtype=w.dtype)),
    "no less than the least number": lambda w, b: largest(w + (1 - b) * LEAST, LEAST),
    "clamped below": lambda w, b: (w.masked_fill(b == 0, LEAST)).clamp(min=LEAST),
    "a product and a sum": lambda w, b: w / 3.0 * b + -1e4 * (1 - b),
    "a product and a difference": lambda w, b: w * b - 1e10 * (1 - b),
    "a product and a mask": lambda w, b: (w * b).masked_fill(b == 0, -torch.inf),
    "a product with a number a head": lambda w, b: (w * torch.tensor([[[1.5]], [[0.5]]])).masked_fill(b == 0, LEAST),
    "less the largest": lambda w, b: (m := w.masked_fill(b == 0, LEAST)) - m.amax(-1, keepdim=True),
    "more by a number": lambda w, b: 5.0 + (w + 1).masked_fill(b == 0, LEAST),
    "a scale in a tensor": lambda w, b: (w / torch.tensor(8.0).sqrt()).masked_fill(b == 0, -torch.inf),
}


@pytest.mark.parametrize("name", MASKINGS)
def test_maskings(name: str) -> None:
    dtype = torch.float64 if name == "filled with a tensor" else torch.float32
    model = SpelledOut(MASKINGS[name], dtype)
    tokens = (torch.arange(12) * 7 % 11)[None]
    program = sleepc.convert(model, {"window": 12, "sinks": 2})
    found = torch.from_numpy(program.session().feed(tokens.numpy(), logits="all"))
    torch.testing.assert_close(found, model(tokens))


def with_einsum(heads: Tensor, hidden: Tensor) -> Tensor:
    scores = torch.einsum("bihd, bjhd -> bhij", heads, heads).masked_fill(hidden, LEAST)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), heads).flatten(2)


def with_one_head(heads: Tensor, hidden: Tensor) -> Tensor:
    x = heads.flatten(2)
    return (x @ x.mT / 4.0).masked_fill(hidden, LEAST).softmax(-1) @ x


def fused_with_one_head(heads: Tensor, hidden: Tensor) -> Tensor:
    x = heads.flatten(2)
    return F.scaled_dot_product_attention(x, x, x, attn_mask=~hidden[None])


def with_heads_first(heads: Tensor, hidden: Tensor) -> Tensor:
    x = heads.permute(2, 0, 1, 3)
    return ((x @ x.mT).masked_fill(hidden, LEAST).softmax(-1) @ x).permute(1, 2, 0, 3).flatten(2)


class LaidOut(SpelledOut):
    """One block of attention from heads [B,T,H,D] and a mask [T,T] of what is hidden, to [B,T,H D]."""

    def __init__(self, attend: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(MASKINGS["clamped below"])
        self.attend = attend

    def forward(self, tokens: Tensor) -> Tensor:
        x, length = self.table(tokens), tokens.shape[1]
        hidden = self.seen[0, 0, :length, :length] == 0
        return self.out(x + self.attend(x.view(*tokens.shape, 2, 8), hidden))  # type: ignore[no-any-return]


@pytest.mark.parametrize("attend", [with_einsum, with_one_head, fused_with_one_head])
def test_layouts(attend: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = LaidOut(attend)
    tokens = (torch.arange(12) * 7 % 11)[None]
    program = sleepc.convert(model, {"window": 12, "sinks": 2})
    found = torch.from_numpy(program.session().feed(tokens.numpy(), logits="all"))
    torch.testing.assert_close(found, model(tokens))


def test_a_layout_that_is_not_known_is_refused() -> None:
    with pytest.raises(Refusal, match="laid out"):
        run_stages(capture_module(LaidOut(with_heads_first)), front_stages())


NO_MASKINGS: dict[str, Masking] = {
    "keys that a product with 0 does not hide": lambda w, b: w * b,
    "nor a small number": lambda w, b: w * b - 100.0 * (1 - b),
    "a product with more than 1": lambda w, b: 2.0 * b * w - 1e4 * (1 - b),
    "nothing below -1": lambda w, b: largest(w.masked_fill(b == 0, LEAST), -1.0),
    "filled with -1": lambda w, b: torch.where(b > 0, w, torch.tensor(-1.0)),
    "a product with a number made of scores": lambda w, b: (w * w.mean(-1, True)).masked_fill(b == 0, LEAST),
    "a bias that is scaled with the scores": lambda w, b: (w + LEAST * (1 - b)) * torch.tensor([[[1.5]], [[0.5]]]),
    "divided by scores": lambda w, b: b / w,
    "subtracted scores": lambda w, b: b - w,
    "scores subtracted from a number": lambda w, b: 1.0 - w,
    "a cap that a number is added in": lambda w, b: (torch.tanh((w + 1.0) / 5.0) * 5.0).masked_fill(b == 0, LEAST),
}


@pytest.mark.parametrize("name", NO_MASKINGS)
def test_what_is_no_masking_is_refused(name: str) -> None:
    with pytest.raises(Refusal) as caught:
        run_stages(capture_module(SpelledOut(NO_MASKINGS[name])), front_stages())
    assert caught.value.code == "UNKNOWN_MASK"


def some_doubled(x: Tensor) -> Tensor:
    chosen = x[..., 0] > 0
    return x.index_put((chosen,), 2 * x[chosen])


class Bent(SpelledOut):
    """Another operator on the logits."""

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__(MASKINGS["filled with a tensor"])
        self.bend = bend

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bend(super().forward(tokens))


@pytest.mark.parametrize("bend", [torch.special.bessel_j0, some_doubled])
def test_operators_and_shapes_that_no_program_holds_are_refused(bend: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(Refusal) as caught:
        run_stages(capture_module(Bent(bend)), front_stages())
    assert caught.value.code == "OPERATOR"


class FirstValues(nn.Module):
    """Two blocks of attention, of which the second reads the first's values: alone, or as what its own are made of."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.table, self.out = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.maps = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B,T] -> logits [B,T,11]."""
        x, first = self.table(tokens), None
        for keys, values in (self.maps[:2], self.maps[2:]):
            v = values(x)
            if first is not None:
                v = F.gelu(first) if self.how == "alone" else v * 0.5 + first * 0.5
            first = v if first is None else first
            k, v = (y.view(*tokens.shape, 2, 8).transpose(1, 2) for y in (keys(x), v))
            x = x + F.scaled_dot_product_attention(k, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.out(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["alone", "mixed"])
def test_values_of_an_earlier_block(how: str) -> None:
    model = FirstValues(how).eval()
    tokens = (torch.arange(12) * 7 % 11)[None]
    program = sleepc.convert(model, {"window": 12, "sinks": 2})
    found = torch.from_numpy(program.session().feed(tokens.numpy(), logits="all"))
    torch.testing.assert_close(found, model(tokens))
