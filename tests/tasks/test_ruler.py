"""RULER's texts: what is told stands in them once, they are as long as asked, and questions have their answers."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from sleepc.errors import UsageError
from sleepc.tasks.ruler import RULER, Chain, Keys, Needles, ruler_documents


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("name", RULER)
@pytest.mark.parametrize("length", [120, 700])
def test_texts_are_as_long_as_asked_and_the_same_again(name: str, length: int) -> None:
    kind = RULER[name](length=(length,))
    documents = ruler_documents(kind, 3, 5, words)
    assert documents == ruler_documents(kind, 3, 5, words)
    assert len({document.text for document in documents}) == 3
    for document in documents:
        assert length - 11 < words(document.text) <= length
        assert document.depth == length


def test_a_needle_stands_once_and_at_any_depth() -> None:
    places = Counter[int]()
    for document in ruler_documents(Needles(length=(120,)), 200, 1, words):
        (question,) = document.questions
        assert document.text.count(question.answers[0]) == 1
        places[document.text.index(question.answers[0]) * 4 // len(document.text)] += 1
    assert set(places) == {0, 1, 2, 3}
    assert 30 < min(places.values()) <= max(places.values()) < 70


@pytest.mark.parametrize("kind", [Needles(length=(300,), needles=4), Keys(length=(300,), questions=4)])
def test_each_key_has_the_number_that_its_line_tells(kind: Needles | Keys) -> None:
    for document in ruler_documents(kind, 3, 0, words):
        told = dict(re.findall(r"numbers for (\S+) is: (\d{7})\.", document.text))
        assert len(set(told.values())) == len(told)
        asked = [re.findall(r"number for (\S+) mentioned", question.question)[0] for question in document.questions]
        assert len(set(asked)) == 4
        assert [told[key] for key in asked] == [question.answers[0] for question in document.questions]


def test_all_names_of_a_chain_are_found_by_following_it() -> None:
    for document in ruler_documents(Chain(length=(200,), hops=3), 5, 0, words):
        (question,) = document.questions
        value = re.findall(r"value (\d{5})", question.question)[0]
        told = re.findall(r"VAR ([A-Z]{3}) = (?:VAR )?(\w+)\.", document.text)
        known, found = {value}, []
        for name, source in told:
            assert source in known, "told after what it is given by"
            known.add(name)
            found.append(name)
        assert sorted(found) == sorted(question.answers)
        assert question.score(" ".join(found[:2])) == pytest.approx(0.5)


def test_a_length_without_room_is_refused_and_so_is_one_with_more_room_than_there_are_keys() -> None:
    with pytest.raises(UsageError, match="no room for what is told"):
        Needles().document(5, np.random.default_rng(0), words)
    with pytest.raises(UsageError, match="more than the 576 keys"):
        Keys().document(20_000, np.random.default_rng(0), words)
    for wrong in (lambda: Needles(needles=41), lambda: Keys(questions=577), lambda: Chain(hops=0)):
        with pytest.raises(UsageError):
            wrong()
