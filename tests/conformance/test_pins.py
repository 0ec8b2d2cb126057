"""Spans that a person pins stay in the slots through sleeps, and what is dropped is not seen any more."""

from __future__ import annotations

import re
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import PINNED_SCORE
from sleepc.runtime.pins import Kept, Share, Span
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify.memory_values import without_memories
from sleepc.verify.streams import state_of
from tests.conformance.backends import RUNNABLE, WRITTEN, load, runs
from tests.conformance.test_what_is_kept_is_exact import LENGTHS, SINKS, UNEQUAL, original
from tests.families import VOCAB, WINDOW, family
from tests.runtime.fake import FakeSteps

MANY = [[4, 6], [0, 5], [3, 0]]
TOKENS = np.random.default_rng(12).integers(0, VOCAB, (2, LENGTHS[0]))


@cache
def converted(name: str = "llama", dtype: torch.dtype = torch.float64, budgets: str = "UNEQUAL") -> ProgramGraphs:
    keep = {"UNEQUAL": {"budgets": UNEQUAL}, "MANY": {"budgets": MANY}, "slots": {"slots": 3}}[budgets]
    return family(name, dtype).convert(window=WINDOW, sinks=SINKS, keep=keep)[0]


@cache
def steps_of(name: str = "llama", budgets: str = "UNEQUAL") -> Steps:
    return load(converted(name, budgets=budgets))


def slots_of(session: Session, layer: int, head: int, row: int = 0) -> tuple[list[int], list[int]]:
    """The tokens that a head keeps, and those of them that are pinned."""
    state, budget = state_of(session), session.steps.budgets[layer]
    at = slice(sum(budget[:head]), sum(budget[: head + 1]))
    tokens, score = state[f"{layer}.kept.token"][row, at], state[f"{layer}.kept.score"][row, at]
    assert tokens.tolist() == sorted(tokens.tolist())  # empty slots first
    return tokens[tokens >= 0].tolist(), tokens[score == PINNED_SCORE].tolist()


# What a person does once so many tokens were read: keep, unpin or drop, row, span.
SCRIPT: dict[int, list[tuple[str, int, tuple[int, int]]]] = {
    WINDOW - 2: [("keep", 0, (2, 5)), ("drop", 1, (3, 5))],
    2 * WINDOW: [("keep", 1, (WINDOW, WINDOW + 4)), ("drop", 0, (3, 4))],
    2 * WINDOW + 5: [("drop", 0, (WINDOW + 6, 2 * WINDOW + 2)), ("keep", 1, (2 * WINDOW, 2 * WINDOW + 3))],
    3 * WINDOW + 2: [("unpin", 1, (WINDOW, 3 * WINDOW)), ("keep", 0, (3 * WINDOW, 3 * WINDOW + 2))],
    4 * WINDOW + 1: [("drop", 1, (WINDOW, 2 * WINDOW + 1)), ("drop", 0, (4 * WINDOW, 4 * WINDOW + 1))],
}


def held(steps: Any, program: ProgramGraphs) -> tuple[Tensor, list[Tensor]]:
    """Logits [B,T,V] of the script, and for each layer the mask [B,Hkv,T,T] of what queries may see."""
    session, logits, length = Session(steps, batch=2), [], TOKENS.shape[1]
    token = torch.arange(length)
    seen = [torch.zeros(2, 2, length, length, dtype=torch.bool) for _ in program.layout]
    gone, real = torch.zeros(2, length, dtype=torch.bool), np.arange(length) < np.array(LENGTHS)[:, None]
    cuts = sorted({0, length, *SCRIPT, *range(WINDOW, length, WINDOW)})
    for start, end in pairwise(cuts):
        for what, row, span in SCRIPT.get(start, []):
            getattr(session, what)(span, row=row)
            if what == "drop":
                gone[row, max(span[0], SINKS) : span[1]] = True
        now, part = state_of(session), slice(start, end)
        for layer, mask in enumerate(seen):
            near = (token[part, None] - token < WINDOW) | (token < SINKS)
            mask[:, :, part] = near & (token <= token[part, None]) & ~gone[:, None, None]
            owners = torch.repeat_interleave(torch.tensor(steps.budgets[layer]))
            for row, slot in (now[f"{layer}.kept.token"] >= 0).nonzero().tolist():
                p = int(now[f"{layer}.kept.token"][row, slot])
                mask[row, owners[slot], token[part][token[part] - p >= WINDOW], p] = True
        assert not any((mask[:, :, part] & gone[:, None, None]).any() for mask in seen)
        logits.append(torch.from_numpy(session.feed(TOKENS[:, part], mask=real[:, part], logits="all")))
    return torch.cat(logits, 1), seen


@pytest.mark.parametrize("backend", [*RUNNABLE, *WRITTEN])
def test_logits_are_those_of_the_original_that_sees_what_was_held(backend: str) -> None:
    subject = runs(backend)
    program = without_memories(converted(dtype=subject.dtype))
    found, seen = held(subject.load(program), program)
    wanted = original(family("llama", subject.dtype).module, TOKENS, seen, "float")
    for row, end in enumerate(LENGTHS):
        assert float((found[row, :end].double() - wanted[row, :end].double()).abs().max()) < subject.tolerance


# The tokens read before it, a span, and what a head with `slots` slots then keeps of it, whatever is read later. Pairs
# of a window that has ended are there as far as the head chose them then: None.
CASES: list[tuple[int, tuple[int, int], bool]] = [
    (WINDOW - 1, (3, 6), True),
    (WINDOW - 1, (0, WINDOW - 1), True),
    (3 * WINDOW - 1, (2 * WINDOW, 3 * WINDOW - 1), True),
    (2 * WINDOW + 4, (WINDOW + 2, 2 * WINDOW + 3), False),  # one part is chosen already, the other is to be
    (3 * WINDOW, (WINDOW, 2 * WINDOW), False),  # all of it is chosen
    (3 * WINDOW, (0, 3 * WINDOW), False),
]


@pytest.mark.parametrize(("read", "span", "in_window"), CASES)
def test_what_is_pinned_stays_as_far_as_there_are_slots(read: int, span: tuple[int, int], in_window: bool) -> None:
    session = Session(steps_of(budgets="MANY"))
    session.feed([TOKENS[0, :read].tolist()])
    before = {at: slots_of(session, *at)[0] for at in ((i, head) for i in range(3) for head in range(2))}
    answer = session.keep(span)
    first, wanted = read - int(session.since[0]), range(max(span[0], SINKS), span[1])
    lost = set(wanted)
    for (layer, head), had in before.items():
        slots = MANY[layer][head]
        known = [t for t in had if t in wanted] + [t for t in wanted if t >= first]
        kept = known[:slots]
        lost -= set(kept)
        share = Share(len(kept), len(known) - len(kept), len(wanted) - len(known))
        assert answer.heads[layer][head] == share, (layer, head)
        assert not in_window or share.gone == 0
    assert (answer.sinks, answer.lost) == (span[1] - span[0] - len(wanted), len(lost))
    for _ in range(2):
        session.feed([np.random.default_rng(1).integers(0, VOCAB, 3 * WINDOW).tolist()])
        for (layer, head), had in before.items():
            known = [t for t in had if t in wanted] + [t for t in wanted if t >= first]
            tokens, pinned = slots_of(session, layer, head)
            assert [t for t in tokens if t in wanted] == pinned == known[: MANY[layer][head]]
            assert len(tokens) == MANY[layer][head]  # what is left of the slots is used as ever


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_pinned_pairs_stay_and_dropped_tokens_do_not_come_back(data: st.DataObject) -> None:
    session, read, gone = Session(steps_of(budgets="MANY")), 0, set[int]()
    for _ in range(8):
        before = {(i, h): slots_of(session, i, h)[1] for i in range(3) for h in range(2)}
        dropped = set[int]()
        what = data.draw(st.sampled_from(["feed", "keep", "drop"]))
        if what == "feed" or not read:
            count = data.draw(st.integers(1, 2 * WINDOW))
            session.feed([TOKENS[0, :count].tolist()], logits="none")
            read += count
        else:
            start = data.draw(st.integers(0, read - 1))
            span = range(start, data.draw(st.integers(start + 1, read)))
            answer = getattr(session, what)(span)
            assert answer.window + answer.sinks <= len(span)
            dropped = set(span[max(SINKS - start, 0) :]) if what == "drop" else set()
        gone |= dropped
        spans = session.spans()
        assert not gone & {t for span in spans for t in range(span.start, span.stop)}
        assert [s.start for s in spans] == sorted(s.start for s in spans)
        for (layer, head), pinned in before.items():
            tokens, now = slots_of(session, layer, head)
            assert not gone & set(tokens)
            assert set(pinned) - dropped <= set(now)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("at", [3, WINDOW + 2, 2 * WINDOW + 1])
def test_what_a_dropped_span_was_does_not_matter(name: str, at: int) -> None:
    """Nobody has seen it: in windows of other lengths too, and what the window's tokens write into memories."""
    found = []
    for seed in (1, 2):
        session = Session(steps_of(name, budgets="slots"))
        session.feed([TOKENS[0, :at].tolist()])
        session.feed([np.random.default_rng(seed).integers(0, VOCAB, 4).tolist()])
        assert session.drop((at, at + 4)).window == 4
        found.append((session.feed([TOKENS[0, at:].tolist()], logits="all"), state_of(session)))
    assert np.array_equal(found[0][0], found[1][0])
    for state, value in found[0][1].items():
        if not re.fullmatch(r"\d+\.[kv]", state):  # the ring, where it may still lie unseen
            assert torch.equal(value, found[1][1][state]), state


def test_rows_are_marked_alone_and_files_and_copies_go_on_with_it(tmp_path: Path) -> None:
    one, plain = Session(steps_of(), batch=2), Session(steps_of(), batch=2)
    for session in (one, plain):
        session.feed(TOKENS[:, : WINDOW + 3])
    one.keep((WINDOW, WINDOW + 2), row=1)
    one.drop((WINDOW + 1, WINDOW + 3), row=1)
    one.save_state(tmp_path / "state")
    copy, other = one.select_rows([1]), Session(steps_of(), batch=2)
    other.load_state(tmp_path / "state")
    before = one.snapshot()
    out = [session.feed(TOKENS[:, WINDOW + 3 :], logits="all") for session in (one, plain, other)]
    assert np.array_equal(out[0], out[2])
    assert np.array_equal(out[0][0], out[1][0])
    assert not np.array_equal(out[0][1], out[1][1])
    assert np.allclose(copy.feed(TOKENS[1:, WINDOW + 3 :], logits="all")[0], out[0][1], rtol=0, atol=1e-12)
    assert [s for s in one.spans(1) if s.pinned] == [s for s in copy.spans() if s.pinned] != []
    one.restore(before)
    assert np.array_equal(one.feed(TOKENS[:, WINDOW + 3 :], logits="all"), out[0])


def test_pins_are_the_same_tokens_after_positions_are_renumbered() -> None:
    session = Session(steps_of(budgets="MANY"))
    session.feed([TOKENS[0, : WINDOW - 1].tolist()])
    session.keep((3, 6))
    session.feed([TOKENS[1, :9].tolist()])
    early = state_of(session)
    text = np.random.default_rng(2).integers(0, VOCAB, 20 * WINDOW).tolist()
    session.feed([[*text, 1]])
    late = state_of(session)
    assert int(late["offset"]) > 0
    for layer, head in ((0, 0), (0, 1), (1, 1), (2, 0)):
        assert slots_of(session, layer, head)[1] == [3, 4, 5]
    for layer in range(3):
        for token in (3, 4, 5):
            at = [state[f"{layer}.kept.token"][0] == token for state in (early, late)]
            assert at[0].any()
            assert torch.equal(early[f"{layer}.kept.v"][0, at[0]], late[f"{layer}.kept.v"][0, at[1]])
    last = int(session.position[0])
    assert session.keep((last - 1, last)).window == 1
    assert session.drop((3, 5)).pairs == 8
    assert [(s.start, s.stop) for s in session.spans() if s.pinned] == [(5, 6), (last - 1, last)]


def test_where_positions_begin_again_nothing_is_left_of_it() -> None:
    session = Session(steps_of("gptj", budgets="slots"))
    session.feed([np.random.default_rng(3).integers(0, VOCAB, 64 - WINDOW + 1).tolist()])
    at = int(session.position[0])
    session.keep((at - 1, at))
    session.drop((at - 4, at - 1))
    session.feed([TOKENS[0, :WINDOW].tolist()])
    assert session.stats.emptied == 1
    state = state_of(session)
    assert not state["pinned"].any()
    assert (state[f"gap.{WINDOW}"] == -1).all()
    session.feed([TOKENS[0, : 2 * WINDOW].tolist()])
    assert {s.start for s in session.spans()} >= {0, int(session.position[0]) - WINDOW}


@pytest.mark.parametrize(
    ("span", "row", "said"),
    [
        ((3, 20), 0, "has read 9 tokens, and the span is 3 … 19"),
        ((-1, 3), 0, "the span is -1 … 2"),
        ((4, 4), 0, "it is empty"),
        ((5, 3), 0, "it is empty"),
        (range(0, 8, 2), 0, "not a span"),
        ("ab", 0, "not a span"),
        ((1, 2, 3), 0, "not a span"),
        ((1.0, 2), 0, "not a whole number"),
        ((1, 2), 2, "there is no row 2"),
        ((1, 2), None, "which of the 2 rows"),
        ((0, 1), 1, "has read 0 tokens"),
    ],
)
def test_what_is_no_span_is_refused_and_changes_nothing(span: Any, row: int | None, said: str) -> None:
    session = Session(steps_of(), batch=2)
    session.feed([list(range(9)), []])
    before = state_of(session)
    for call in (session.keep, session.unpin, session.drop):
        with pytest.raises(UsageError, match=said):
            call(span, row=row)
    assert all(torch.equal(value, state_of(session)[name]) for name, value in before.items())


def test_programs_that_keep_nothing_have_nothing_to_pin() -> None:
    session = Session(FakeSteps())
    session.feed([[1, 2, 3]])
    marks = (session.keep, session.unpin, session.drop)
    for call in (*(partial(mark, (0, 1)) for mark in marks), session.spans):
        with pytest.raises(UsageError, match="keeps no pairs"):
            call()
    assert session.position.tolist() == [3]


def test_answers_are_said_in_words() -> None:
    session = Session(steps_of(budgets="MANY"))
    session.feed([list(range(WINDOW - 1))])
    answer = session.keep(Span(1, 6, "window", False, 0))
    assert str(answer) == (
        "5 tokens: of 6 KV heads 3 keep them all, and 1 a part; 1 are sinks; "
        "those in the window go into the slots at the next sleep"
    )
    assert isinstance(answer, Kept)
    assert "fast weights keep what they took" in str(session.drop((1, 6)))


def test_a_long_text_is_pinned_before_its_sleeps() -> None:
    session, start, stop = Session(steps_of(budgets="MANY"), batch=2), 3, 2 * WINDOW + 3
    session.feed(TOKENS[:, :start])
    session.feed([TOKENS[0, start:stop].tolist(), [1, 2]], pin=True)
    answer = session.keep((start, stop), row=0)
    for layer, budget in enumerate(MANY):
        for head, slots in enumerate(budget):
            assert slots_of(session, layer, head) == (list(range(start, start + slots)),) * 2
            assert answer.heads[layer][head].kept == slots
    session.feed(TOKENS[:, : 3 * WINDOW])
    assert slots_of(session, 0, 1)[1] == list(range(start, start + MANY[0][1]))
    assert slots_of(session, 0, 1, row=1)[1] == [3, 4]
    with pytest.raises(UsageError, match="keeps no pairs"):
        Session(FakeSteps()).feed([1], pin=True)


def test_what_is_unpinned_is_chosen_like_the_rest_and_gives_its_slots_to_what_comes() -> None:
    """In the window nothing is left of the pin; in slots the pairs stay until others come, and are the first to go."""
    once, never = (Session(steps_of(budgets="MANY"), batch=2) for _ in range(2))
    for session in (once, never):
        session.feed(TOKENS[:, : WINDOW - 1])
    once.keep((3, 6), row=1)
    answer = once.unpin((2, 5), row=1)
    assert (answer.window, answer.pairs) == (2, 0)
    assert once.unpin((5, 6), row=1).window == 1
    assert all(torch.equal(value, state_of(never)[name]) for name, value in state_of(once).items())
    once.keep((3, 6), row=1)
    once.feed(TOKENS[:, :WINDOW])
    held = {(i, h): slots_of(once, i, h, row=1) for i in range(3) for h in range(2)}
    pinned = sum(len(each) for _, each in held.values())
    assert (once.unpin((0, 1), row=1).pairs, once.unpin((0, 7), row=0).pairs) == (0, 0)  # sinks; the other row
    assert (once.unpin((4, 6), row=1).pairs, pinned) == (8, 12)
    for at, (tokens, _) in held.items():
        assert slots_of(once, *at, row=1) == (tokens, [3] if 3 in tokens else [])
    assert [s.start for s in once.spans(1) if s.pinned] == [3]
    once.feed(TOKENS[:, : 2 * WINDOW])
    for layer, budget in enumerate(MANY):
        for head, slots in enumerate(budget):
            tokens, now = slots_of(once, layer, head, row=1)
            assert len(tokens) == slots
            assert not {4, 5} & set(tokens)
            assert now == ([3] if slots else [])
    assert str(once.unpin((4, 6), row=1)) == "2 tokens: none was pinned"
