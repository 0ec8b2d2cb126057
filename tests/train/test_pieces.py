"""Pieces hold what their documents hold, never two of them, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer, load_tokenizer
from sleepc.train.pieces import Piece, batch_of, pieces, repeated, shuffled
from sleepc.train.texts import Document
from tests.cli.models import save_model
from tests.families import VOCAB

OPENING = 1


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One that puts OPENING before every text."""
    tokenizer = load_tokenizer(save_model(tmp_path_factory.mktemp("model")))
    tokenizer.inner.post_processor = processors.TemplateProcessing(
        single=f"w{OPENING} $A", special_tokens=[(f"w{OPENING}", OPENING)]
    )
    return tokenizer


def written(documents: Iterable[list[list[int]]]) -> Iterator[Document]:
    """Documents of parts of ids, as texts."""
    return (iter(["".join(f"w{i}\n" for i in part) for part in parts]) for parts in documents)


def counting(sizes: Iterable[int]) -> list[list[list[int]]]:
    """Documents of so many tokens, in parts of 5. All tokens are different: 2, 3, ..."""
    ids = iter(range(2, VOCAB))
    found = []
    for size in sizes:
        document = list(islice(ids, size))
        found.append([document[at : at + 5] for at in range(0, size, 5)])
    return found


def lists(found: Iterable[Piece]) -> list[list[int]]:
    return [piece.tokens.tolist() for piece in found]


@given(st.lists(st.integers(0, 20), max_size=3), st.integers(2, 9), st.integers(2, 12), st.booleans())
def test_pieces_are_their_documents(
    plain: Tokenizer, opened: Tokenizer, sizes: list[int], length: int, least: int, opens: bool
) -> None:
    documents = counting(sizes)
    room = length - opens
    found = list(pieces(written(documents), opened if opens else plain, length, least))
    assert all(piece.tokens.dtype == np.int64 for piece in found)
    if opens:
        assert all(piece.tokens[0] == OPENING for piece in found)
    bodies = iter([piece.tokens[int(opens) :].tolist() for piece in found])
    for document in documents:
        ids = [i for part in document for i in part]
        rest = len(ids) % room
        kept = len(ids) if rest and rest + opens >= least else len(ids) - rest
        for at in range(0, kept, room):
            assert next(bodies) == ids[at : min(at + room, kept)]
    assert next(bodies, None) is None


def test_a_document_is_read_as_far_as_it_is_asked_for(plain: Tokenizer) -> None:
    taken = 0

    def endless() -> Document:
        nonlocal taken
        while True:
            taken += 1
            yield " ".join(f"w{i}" for i in range(10))

    found = pieces([endless()], plain, 5, 5)
    for number in range(50):
        assert next(found).tokens.tolist() == list(range(5 * (number % 2), 5 * (number % 2) + 5))
        assert taken == number // 2 + 1


def test_no_room_beside_the_opening(opened: Tokenizer) -> None:
    with pytest.raises(UsageError, match="have no room"):
        pieces([], opened, 1, 1)


@pytest.mark.parametrize("texts", [["was nun " * 8], ["ein"] * 3, ["nichts " * 1000]])
def test_a_text_that_the_tokenizer_does_not_know(opened: Tokenizer, texts: list[str]) -> None:
    with pytest.raises(UsageError, match="cannot read this text"):
        next(pieces((iter([text]) for text in texts), opened, 6, 2))


def test_a_document_may_begin_dully(plain: Tokenizer) -> None:
    found = lists(pieces(written([[[5] * 12, [1, 2, 3, 4]]]), plain, 4, 2))
    assert found == [[5] * 4] * 3 + [[1, 2, 3, 4]]


def numbered(count: int) -> list[Piece]:
    return [Piece(np.array([i])) for i in range(count)]


@given(st.integers(0, 40), st.integers(0, 2**40), st.integers(0, 50))
def test_shuffling_loses_nothing_and_a_seed_decides(count: int, seed: int, buffer: int) -> None:
    once = lists(shuffled(numbered(count), seed, buffer))
    assert sorted(once) == lists(numbered(count))
    assert once == lists(shuffled(numbered(count), seed, buffer))
    assert all(number < at + max(buffer, 1) + 1 for at, (number,) in enumerate(once)), "more than the buffer was held"


def test_shuffling_moves_pieces_and_seeds_and_epochs_differ() -> None:
    orders = [lists(shuffled(numbered(40), seed, 16, epoch)) for seed in (1, 2, 2**32 + 1) for epoch in range(3)]
    assert lists(numbered(40)) not in orders
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_epochs_differ_and_a_resumed_stream_goes_on(plain: Tokenizer) -> None:
    def stream() -> Iterator[Piece]:
        return repeated(lambda epoch: shuffled(pieces(written(counting([30])), plain, 4, 2), 3, 4, epoch))

    first = lists(islice(stream(), 24))
    assert sorted(first[:8]) == sorted(first[8:16]) == sorted(first[16:])
    assert first[:8] != first[8:16]
    assert lists(islice(stream(), 11, 24)) == first[11:]


def test_an_empty_epoch_ends_it(plain: Tokenizer) -> None:
    found = repeated(lambda epoch: pieces(written(counting([3])), plain, 8, 4))
    with pytest.raises(UsageError, match="no piece to train on"):
        next(found)


def test_a_batch() -> None:
    asked = Piece(np.array([5, 6, 7]), np.array([-1, 9, 2]))
    tokens, lengths, labels = batch_of([Piece(np.array([3, 4])), asked, Piece(np.array([8]))])
    assert tokens.tolist() == [[3, 4, 0], [5, 6, 7], [8, 0, 0]]
    assert lengths.tolist() == [2, 3, 1]
    assert labels.tolist() == [[4, -1, -1], [-1, 9, 2], [-1, -1, -1]]
    assert tokens.dtype == lengths.dtype == labels.dtype == np.int64


def test_a_piece_is_asked_for_its_end() -> None:
    piece = Piece(np.array([3, 4, 5, 6]))
    assert piece.asked().tolist() == [4, 5, 6, -1]
    assert piece.at_its_end(2).asked().tolist() == [-1, 5, 6, -1]
    assert piece.at_its_end(9).asked().tolist() == [4, 5, 6, -1]
