"""Tokens that are never to be chosen, and ends that are no tokens."""

from __future__ import annotations

import numpy as np
import pytest

from sleepc.errors import UsageError
from sleepc.runtime.sampling import without
from sleepc.runtime.session import Session
from tests.runtime.fake import FakeSteps


def test_what_is_never_chosen_leaves_the_logits_as_they_are() -> None:
    logits = np.array([0.0, 3.0, 2.0], dtype=np.float32)
    assert without(logits, np.array([1])).tolist() == [0.0, -np.inf, 2.0]
    assert logits.tolist() == [0.0, 3.0, 2.0]
    assert without(logits, np.array([], dtype=np.int64)) is logits


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_no_row_says_it(temperature: float) -> None:
    session = Session(FakeSteps(window=4, vocab=8), 3)
    session.feed([[1, 2], [3], [4, 5, 6]])
    never = [0, 2, 4, 6]
    said = np.stack(list(session.generate(20, temperature=temperature, seed=0, never=never)))
    assert set(said.ravel().tolist()) <= {1, 3, 5, 7}


@pytest.mark.parametrize("ids", [[8], [-1], [1, 99]])
@pytest.mark.parametrize("option", ["stop_ids", "never"])
def test_ids_that_are_no_tokens_are_refused_at_once(ids: list[int], option: str) -> None:
    session = Session(FakeSteps(window=4, vocab=8))
    session.feed([1])
    with pytest.raises(UsageError, match="no token"):
        session.generate(1, **{option: ids})  # type: ignore[arg-type]
