"""What a model chooses by the length of its call is chosen at conversion; what it computes from it is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

import sleepc
from sleepc.api import Program
from sleepc.capture.export import capture_module
from sleepc.errors import Refusal, SleepcWarning
from sleepc.ir.compare import max_error
from sleepc.passes.pipeline import front_stages
from sleepc.passes.runner import run_stages
from sleepc.verify.original import Original
from tests.capture.flat import captured
from tests.families import VOCAB, make_module

BORDER, SHORT, LONG = 32, 20, 60
FACTORS: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": BORDER}
FACTORS |= {"factor": 4.0, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 5.0, 9.0]}
# Rope of one kind for all layers, and one for each kind of layer, of which one is chosen by length.
PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
KINDS: dict[str, dict[str, Any]] = {
    "phi3": {
        "num_hidden_layers": 1,
        "original_max_position_embeddings": BORDER,
        "max_position_embeddings": 128,
        "rope_parameters": FACTORS,
    },
    "gemma3": {
        "max_position_embeddings": 128,
        "rope_parameters": {"full_attention": FACTORS, "sliding_attention": PLAIN},
    },
}


@cache
def model(kind: str) -> nn.Module:
    return make_module(kind, torch.float64, **KINDS[kind])


@cache
def program(kind: str, factors: str) -> Program:
    return sleepc.convert(model(kind), {"window": 64, "sinks": 2, "rope_factors": factors})


def tokens(length: int) -> Tensor:
    return torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("factors", "length"), [("short", BORDER), ("long", 33)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_original_does_in_calls_of_that_length(kind: str, factors: str, length: int) -> None:
    ids, converted = tokens(length), program(kind, factors)
    assert (converted.graphs.upto, converted.graphs.beyond) == (
        (BORDER, None) if factors == "short" else (None, BORDER)
    )
    wanted = Original(model(kind))(ids)[0]
    for size in (length, 7, 1):
        session = converted.session()
        found = torch.cat(
            [torch.from_numpy(session.feed(part.numpy(), logits="all")[0]) for part in torch.split(ids[0], size)]
        )
        assert max_error(found, wanted) < 1e-5  # these models rotate in float32


def test_the_two_sets_differ() -> None:
    ids = tokens(SHORT)[0].tolist()
    short, long = (program("phi3", f).session().feed(ids) for f in ("short", "long"))
    assert abs(short - long).max() > 0.1


@pytest.mark.parametrize("factors", ["short", "long"])
def test_it_is_verified_against_calls_of_that_length(factors: str) -> None:
    report = program("phi3", factors).verify(tokens=tokens(200)[0].tolist())
    assert report.ok, [c for c in report.checks if not c.ok]


def test_nothing_is_left_in_the_model() -> None:
    program("phi3", "short")
    assert not any(isinstance(x, FakeTensor) for part in model("phi3").modules() for x in vars(part).values())
    assert Original(model("phi3"))(tokens(LONG)).isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_as_files(dtype: str, tmp_path: Path) -> None:
    """Saved, loaded and exported; in another dtype than the checkpoint's its factors are made without the weights."""
    original = make_module("phi3", torch.float32, **KINDS["phi3"])
    original.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    recipe = {"window": 64, "sinks": 2, "rope_factors": "long", "dtype": dtype}
    made = sleepc.convert(tmp_path / "model", recipe)
    ids = tokens(LONG)
    wanted = Original(original.to(getattr(torch, dtype)))(ids)[0]
    loaded = sleepc.load(made.save(tmp_path / "artifact"))
    assert (loaded.graphs.upto, loaded.graphs.beyond) == (None, BORDER)
    sessions = [loaded.session()]
    if dtype == "float32":
        loaded.export(tokens=torch.randint(0, VOCAB, (300,)).tolist())
        sessions.append(loaded.session(backend="onnx"))
    for session in sessions:
        assert max_error(torch.from_numpy(session.feed(ids.numpy(), logits="all")[0]), wanted) < 1e-5


def test_a_text_that_passes_the_border_is_told_once() -> None:
    converted = program("phi3", "short")
    session = converted.session(2)
    session.feed([[1] * BORDER, [2] * 5])
    kept = session.snapshot()
    with pytest.warns(SleepcWarning, match="longer than 32 tokens"):
        session.feed([[3], [4]])
    session.feed([[3] * 5, [4] * BORDER])  # warnings are errors here
    session.restore(kept)
    program("phi3", "long").session().feed([1] * 2 * BORDER)  # has nothing to tell


@pytest.mark.parametrize("kind", ["phimoe", "olmo2", "gemma3"])
def test_what_its_code_branches_on_is_refused_in_a_few_words(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    rope: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    if kind == "phimoe":
        from transformers import PhimoeConfig, PhimoeForCausalLM

        scaled = {**FACTORS, "short_mscale": 1.1, "long_mscale": 1.3}
        sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
        config = PhimoeConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=16, num_local_experts=2, rope_parameters=scaled, **sizes
        )
        made: nn.Module = PhimoeForCausalLM(config)
    else:
        nested = {"full_attention": rope, "sliding_attention": PLAIN}
        made = make_module(kind, torch.float32, rope_parameters=nested if kind == "gemma3" else rope)
    capfd.readouterr()
    with pytest.raises(Refusal, match="how long the call is") as caught:
        sleepc.convert(made, {"window": 8})
    assert caught.value.code == "POSITIONS"
    assert ("longrope" if kind == "phimoe" else "dynamic") in caught.value.what
    assert ("rope_type default" in caught.value.fix) == (kind != "phimoe"), "it would be another model"
    assert len(str(caught.value)) < 500
    assert "def forward" not in "".join(capfd.readouterr())


class Rotates(nn.Module):
    """One layer of attention whose positions are scaled by what `scale` makes of the largest of them."""

    def __init__(self, scale: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out, self.scale = nn.Embedding(11, 8), nn.Linear(8, 11), scale

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        angle = position_ids[..., None].float() * self.scale(position_ids.amax() + 1)
        heads = x.view(*x.shape[:2], 2, 4).transpose(1, 2)
        q = heads * angle.cos()[:, None, :, :4]
        y = F.scaled_dot_product_attention(q, q, heads, is_causal=True)
        logits: Tensor = self.out(x + y.transpose(1, 2).reshape(x.shape))
        return logits


def by_tensors(length: Tensor) -> Tensor:
    return torch.where(length > BORDER, torch.tensor(0.1), torch.tensor(0.2))


def by_numbers(length: Tensor) -> Tensor:
    return torch.where(length <= BORDER, 0.2, 0.1)


def by_a_table(length: Tensor) -> Tensor:
    return torch.where((length > BORDER)[None], torch.tensor([0.1, 0.3]).repeat(4), torch.full((8,), 0.2))


@pytest.mark.parametrize("scale", [by_tensors, by_numbers, by_a_table])
@pytest.mark.parametrize(("factors", "length"), [("short", SHORT), ("long", LONG)])
def test_other_spellings(scale: Callable[[Tensor], Tensor], factors: Any, length: int) -> None:
    made, ids = Rotates(scale), torch.randint(0, 11, (1, length))
    converted = sleepc.convert(made, {"window": LONG, "sinks": 0, "rope_factors": factors})
    assert (converted.graphs.upto or converted.graphs.beyond) == BORDER
    with torch.no_grad():
        wanted = made(ids, torch.arange(length)[None])[0]
    assert max_error(torch.from_numpy(converted.session().feed(ids.numpy(), logits="all")[0]), wanted) < 1e-5


def by_its_logarithm(length: Tensor) -> Tensor:
    return length.clamp(min=BORDER).float().log()


def by_a_sum(length: Tensor) -> Tensor:
    return 0.1 + 0.1 * (length > BORDER).float()


@pytest.mark.parametrize("scale", [by_its_logarithm, by_a_sum])
def test_what_is_computed_from_the_length_is_refused(scale: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(Refusal, match="the length of its call") as caught:
        run_stages(capture_module(Rotates(scale)), front_stages())
    assert caught.value.code == "POSITIONS"


class Writes(nn.Module):
    """Writes a buffer while it runs: before it reads it, or only to be read at the next call."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out, self.first = nn.Embedding(11, 8), nn.Linear(8, 11), first
        self.note: Tensor
        self.register_buffer("note", torch.ones(8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        if self.first:
            self.note.copy_(self.out.weight[0])
        y = (x * self.note)[:, None]
        self.note.mul_(0.5)
        logits: Tensor = self.out(x + F.scaled_dot_product_attention(y, y, y, is_causal=True)[:, 0])
        return logits


def test_outputs_are_found_by_their_role() -> None:
    made, ids = Writes(first=True), torch.randint(0, 11, (1, 8))
    converted = sleepc.convert(made, {"window": 8, "sinks": 0})
    with torch.no_grad():
        wanted = made(ids)[0]
    assert max_error(torch.from_numpy(converted.session().feed(ids.numpy(), logits="all")[0]), wanted) < 1e-5


def test_a_buffer_that_carries_something_to_the_next_call_is_refused() -> None:
    with pytest.raises(Refusal, match="note") as caught:
        captured(Writes(first=False))
    assert caught.value.code == "RECURRENT"
