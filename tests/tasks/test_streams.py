"""What the tasks put into streams: where it stands, that nothing else gives it away, that a seed decides it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sleepc.errors import UsageError
from sleepc.tasks.copying import copying
from sleepc.tasks.planting import Sample, Setup
from sleepc.tasks.retrieval import DISTRACTORS, retrieval
from sleepc.tasks.source import StreamSource, make_source

Make = Callable[[StreamSource, Setup], list[Sample]]
SETUP = Setup((8, 16, 40), samples=3, sinks=2, seed=5)


def source(words: int = 61, opening: tuple[int, ...] = ()) -> StreamSource:
    return StreamSource(np.random.default_rng(1).integers(0, words, 500), np.arange(words), opening)


@pytest.mark.parametrize("make", [retrieval, copying])
def test_items_stand_at_their_distances_and_not_in_the_sinks(make: Make) -> None:
    samples = make(source(opening=(60,)), SETUP)
    assert len({len(s.tokens) for s in samples}) == 1
    for sample in samples:
        assert sample.tokens[0] == 60
        assert tuple(sample.items) == SETUP.distances
        for distance, item in sample.items.items():
            end = len(sample.tokens) - distance
            start = end - len(item.planted)
            assert sample.tokens[start:end].tolist() == list(item.planted)
            assert start >= SETUP.sinks + 1
            assert item.planted == (*item.question, *item.candidates[0])


def test_distractors_are_no_value_of_the_stream() -> None:
    for sample in retrieval(source(), SETUP):
        values = {item.candidates[0] for item in sample.items.values()}
        assert len(values) == len(sample.items)
        assert len({item.question for item in sample.items.values()}) == len(sample.items)
        for item in sample.items.values():
            assert len(set(item.candidates)) == 1 + DISTRACTORS
            assert not values & set(item.candidates[1:])


@pytest.mark.parametrize("make", [retrieval, copying])
def test_a_seed_decides_everything(make: Make) -> None:
    def tokens(seed: int) -> list[list[int]]:
        return [s.tokens.tolist() for s in make(source(), Setup((8, 16), 2, 1, seed))]

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


@pytest.mark.parametrize(
    ("make", "made", "setup", "said"),
    [
        (retrieval, source(), Setup((8, 10)), "3 tokens, and two distances are 2 tokens apart"),
        (retrieval, source(9), Setup((8, 16, 24)), "need 10 different tokens, and there are 9"),
        (retrieval, source(), Setup((8, 600)), "too few for 4 streams"),
        (copying, source(), Setup((8, 9)), "needs two tokens"),
    ],
)
def test_what_cannot_be_planted_is_said(make: Make, made: StreamSource, setup: Setup, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make(made, setup)


def test_pieces_come_from_all_parts_of_a_text() -> None:
    text = StreamSource(np.arange(100), np.arange(100))
    starts = [int(p[0]) for p in text.pieces(4, 20, np.random.default_rng(0))]
    assert all(20 * i <= s <= 20 * (i + 1) + 1 for i, s in enumerate(starts))
    assert [len(p) for p in text.pieces(2, 99, np.random.default_rng(0))] == [99, 99]
    assert text.pieces(1, 100, np.random.default_rng(0))[0].tolist() == list(range(100))


def test_without_a_tokenizer_streams_are_random_and_a_text_is_refused() -> None:
    made = make_source(None, None, 61, 200, np.random.default_rng(0))
    assert (len(made.ids), len(made.vocabulary), made.tokenizer) == (200, 61, None)
    with pytest.raises(UsageError, match="cannot read this text"):
        make_source(None, "some text", 61, 200, np.random.default_rng(0))
