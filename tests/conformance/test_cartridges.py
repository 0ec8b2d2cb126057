"""A row with a cartridge computes what the original does with these keys and values in view, in every backend."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

import sleepc
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import PINNED_SCORE
from sleepc.passes.rewrite.kept_pairs import slots_of_heads
from sleepc.progress import silent
from sleepc.runtime.cartridge import FILLED, Cartridge, read_cartridge
from sleepc.runtime.session import Session
from sleepc.train.cartridge import CartridgeSettings, Making
from sleepc.verify.memory_values import without_memories
from sleepc.verify.streams import state_of
from tests.conformance.backends import RUNNABLE, WRITTEN, load, runs
from tests.families import VOCAB, WINDOW, family

SINKS, UNEQUAL = 2, [[2, 5], [0, 1], [3, 0]]
DOCUMENT = np.random.default_rng(5).integers(0, VOCAB, 3 * WINDOW + 3).tolist()
AFTER = np.random.default_rng(6).integers(0, VOCAB, 2 * WINDOW + 3).tolist()


@cache
def converted(name: str = "llama", dtype: torch.dtype = torch.float64, **keep: Any) -> sleepc.Program:
    module = family(name, dtype).module
    recipe = {"window": WINDOW, "sinks": SINKS, "keep": {"budgets": UNEQUAL}}
    return sleepc.convert(module, {**recipe, "keep": keep} if keep else recipe)


@cache
def made(slots: int | None = None) -> Cartridge:
    """What is kept of the document, with other keys and values in its place, as a training would give them."""
    begun = Making(converted(), CartridgeSettings(slots=slots)).filled(DOCUMENT, "text", silent)
    random = np.random.default_rng(0)
    names = [name for name in begun.arrays if name.partition(".")[2] in FILLED]
    return begun.filled({name: random.standard_normal(begun.arrays[name].shape) for name in names})


def original(module: Any, cartridge: Cartridge, tokens: list[int]) -> Tensor:
    """The original's logits [T,V] of tokens that come at the cartridge's position, of which each sees those of a
    window, the document's sinks, and the keys and values of its KV head in the cartridge.
    """
    gap = cartridge.position - SINKS
    read, place = [*DOCUMENT[:SINKS], *[0] * gap, *tokens], torch.arange(SINKS + gap + len(tokens))
    near = (place[:, None] - place < WINDOW) & (place >= cartridge.position)
    see = (place <= place[:, None]) & ((place < SINKS) | near)
    late = place >= cartridge.position

    def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any) -> tuple[Tensor, None]:
        pairs = cartridge.pairs.get(layer.layer_idx, (0, 0))
        owner = torch.repeat_interleave(torch.arange(2), torch.tensor(pairs))
        kept = [torch.from_numpy(cartridge.arrays[f"{layer.layer_idx}.{part}"]).to(q.dtype) for part in FILLED]
        found = []
        for head in range(q.shape[1]):
            own = head // (q.shape[1] // k.shape[1])
            scores = (q[0, head] @ k[0, own].T * scaling).masked_fill(~see, -torch.inf)
            extra = (q[0, head] @ kept[0].T * scaling).masked_fill(~(late[:, None] & (owner == own)), -torch.inf)
            weights = torch.cat([scores, extra], 1).softmax(-1)
            found.append(weights @ torch.cat([v[0, own], kept[1]]))
        return torch.stack(found, 1)[None], None

    AttentionInterface.register("cartridge", attend)
    module = copy.deepcopy(module)
    module.config._attn_implementation = "cartridge"
    with torch.no_grad():
        logits: Tensor = module(input_ids=torch.tensor([read])).logits[0, cartridge.position :]
    return logits


@pytest.mark.parametrize("backend", [*RUNNABLE, *WRITTEN])
def test_logits_are_those_of_the_original_that_sees_the_cartridge(backend: str) -> None:
    subject, cartridge = runs(backend), made()
    program = without_memories(converted(dtype=subject.dtype).graphs)
    session = Session(subject.load(program), 2)
    session.load_cartridges([cartridge], rows=[1])
    found = session.feed([AFTER[:4], AFTER], logits="all")  # row 0 has none, and is asleep at other times
    wanted = original(family("llama", subject.dtype).module, cartridge, AFTER)
    assert float((torch.from_numpy(found[1]).double() - wanted.double()).abs().max()) < subject.tolerance
    alone = Session(session.steps)
    assert np.allclose(found[0, :4], alone.feed([AFTER[:4]], logits="all")[0], atol=subject.tolerance)


def test_sleeps_keep_it_and_number_it_anew() -> None:
    session = Session(load(converted().graphs))
    session.load_cartridges([made()])
    before, spans = state_of(session), session.spans()
    assert [(span.place, span.pinned) for span in spans] == [("sinks", False), *[("slots", True)] * (len(spans) - 1)]
    tokens = {i: before[f"{i}.kept.token"][before[f"{i}.kept.token"] >= 0].tolist() for i in session.steps.budgets}
    random = np.random.default_rng(0)
    for count in range(12):
        session.feed([random.integers(0, VOCAB, WINDOW).tolist()])
        after = state_of(session)
        for i, known in tokens.items():
            pinned = after[f"{i}.kept.score"] == PINNED_SCORE
            assert after[f"{i}.kept.token"][pinned].tolist() == known
            if not count:
                assert torch.equal(after[f"{i}.kept.k"], before[f"{i}.kept.k"])
            assert torch.equal(after[f"{i}.kept.v"], before[f"{i}.kept.v"])
    assert int(after["offset"][0]) > 0  # positions were counted anew, and keys turned
    assert session.stats.emptied == 0


def test_a_part_of_the_slots_is_left_for_what_is_read_later() -> None:
    half, session = made(1), Session(load(converted().graphs))  # 1 of 11 / 6 slots for every head
    budgets, of = slots_of_heads(converted().graphs), converted().recipe.keep
    assert of is not None
    assert half.pairs == {i: tuple(n * 1 // of.slots for n in heads) for i, heads in budgets.items()}
    session.load_cartridges([half])
    session.feed([AFTER])
    state = state_of(session)
    for i, heads in half.pairs.items():
        pinned = state[f"{i}.kept.score"][0] == PINNED_SCORE
        assert int(pinned.sum()) == sum(heads)
        assert bool((state[f"{i}.kept.position"][0] >= 0).all())


def of_two(first: Cartridge, second: Cartridge) -> Cartridge:
    """Both as one, by hand."""
    arrays: dict[str, Any] = dict(first.arrays)
    pairs = {i: tuple(a + b for a, b in zip(first.pairs[i], second.pairs[i], strict=True)) for i in first.pairs}
    for i in first.pairs:
        places: list[tuple[int, int, int, int]] = []
        for which, each in enumerate((first, second)):
            owners = np.repeat(np.arange(2), each.pairs[i])
            for at, owner in enumerate(owners.tolist()):
                places.append((owner, int(each.arrays[f"{i}.kept.position"][at]), which, at))
        for part in (*FILLED, "kept.position"):
            rows = [(first, second)[which].arrays[f"{i}.{part}"][at] for _, _, which, at in sorted(places)]
            arrays[f"{i}.{part}"] = np.array(rows).reshape(-1, *first.arrays[f"{i}.{part}"].shape[1:])
    return replace(first, pairs=pairs, arrays=arrays, position=max(first.position, second.position))


def test_two_are_the_pairs_of_both() -> None:
    program = converted(slots=4, budgets="equal")
    first, second = (Making(program, CartridgeSettings(slots=2)).filled(each, "", silent) for each in (DOCUMENT, AFTER))
    session = Session(load(without_memories(program.graphs)))
    session.load_cartridges([first, second])
    wanted = original(family("llama", torch.float64).module, of_two(first, second), AFTER[:WINDOW])
    found = session.feed([AFTER[:WINDOW]], logits="all")
    assert float((torch.from_numpy(found[0]) - wanted).abs().max()) < 1e-9
    with pytest.raises(UsageError, match=r"head 0 of block 0 has 4 slots, and the cartridges 2 \+ 2 \+ 2 pairs"):
        Session(load(program.graphs)).load_cartridges([first, second, first])


def test_a_file_holds_it_and_what_is_damaged_is_refused(tmp_path: Path) -> None:
    file, cartridge = tmp_path / "text.cartridge", made()
    cartridge.save(file)
    found = read_cartridge(file)
    assert replace(found, arrays={}) == replace(cartridge, arrays={}, name=str(file))
    assert all(np.array_equal(found.arrays[name], each) for name, each in cartridge.arrays.items())
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(SleepcError, match="damaged after it was written"):
        read_cartridge(file)
    session = Session(load(converted().graphs))
    session.save_state(file.with_suffix(".state"))
    with pytest.raises(SleepcError, match="not a sleepc cartridge"):
        session.load_cartridges([file.with_suffix(".state")])
    with pytest.raises(UsageError, match="exists and is not a cartridge"):
        cartridge.save(file.with_suffix(".state"))
    assert session.position.tolist() == [0]


def refused(program: ProgramGraphs, cartridge: Cartridge) -> str:
    session = Session(load(program))
    with pytest.raises(SleepcError) as error:
        session.load_cartridges([cartridge])
    assert session.position.tolist() == [0]
    return str(error.value)


def test_what_does_not_fit_is_refused_with_the_shapes() -> None:
    cartridge = made()
    assert "other.cartridge" in refused(converted().graphs, replace(cartridge, identity="x", name="other.cartridge"))
    assert "weights, window or budgets" in refused(converted().graphs, replace(cartridge, identity="x"))
    fewer = family("llama").convert(window=WINDOW, sinks=SINKS, keep={"budgets": [[2, 5], [], [3, 0]]})[0]
    assert "1.kept.k is [1, 8] in it, and nothing here" in refused(fewer, cartridge)
    other = family("llama").convert(window=WINDOW, sinks=3, keep={"budgets": UNEQUAL})[0]
    assert "0.k is [2, 2, 8] in it, and [2, 3, 8] here" in refused(other, cartridge)
    assert "keeps no pairs" in refused(family("llama").convert(window=WINDOW, sinks=SINKS)[0], cartridge)
    narrow = family("llama").convert(window=WINDOW, sinks=SINKS, keep={"budgets": UNEQUAL, "dtype": "int8"})[0]
    assert "slots of this program hold i8" in refused(narrow, cartridge)
    cut = replace(cartridge, pairs={**cartridge.pairs, 0: (2,)})
    assert "0.kept.k is [7, 8] in it, and [2, 8] here" in refused(converted().graphs, cut)
    none = replace(cartridge, pairs={**cartridge.pairs, 0: (7,)})
    assert "block 0 has 1 KV heads with pairs in it, and 2 here" in refused(converted().graphs, none)


def test_a_row_that_has_read_something_takes_none() -> None:
    session = Session(load(converted().graphs), 2)
    session.feed([[1], []])
    with pytest.raises(UsageError, match="row 0 has read something already"):
        session.load_cartridges([made()])
    session.load_cartridges([made()], rows=[1])
    assert session.position.tolist() == [1, made().position]
    assert not session.select_rows([1]).spans()[0].pinned  # the sinks
    with pytest.raises(UsageError, match="no cartridge is given"):
        Session(load(converted().graphs)).load_cartridges([])


def test_half_precision_rounds_to_the_nearest() -> None:
    from sleepc.runtime.cartridge import _as

    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    wanted = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(_as(values, np.zeros(0, np.uint16), "bf16"), wanted)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, session = tmp_path / "text.cartridge", Session(load(converted().graphs))
    made().save(file)
    monkeypatch.setattr("sleepc.runtime.cartridge.MAX_HEADER", -2 * session.stats.state_bytes)
    with pytest.raises(SleepcError, match="too many for a cartridge of this model"):
        session.load_cartridges([file])
