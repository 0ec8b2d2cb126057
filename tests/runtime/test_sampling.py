"""Sampling: each filter does what its definition says, and drawing follows the probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleepc.errors import SleepcError, UsageError
from sleepc.runtime.sampling import Sampling, candidates, generators, nucleus, sample, top_k

LOGITS = st.lists(st.integers(-6, 6), min_size=1, max_size=20).map(lambda values: np.array(values, dtype=np.float32))


@given(LOGITS, st.integers(0, 25))
def test_top_k_keeps_the_largest_and_of_equal_ones_the_first(logits: np.ndarray, k: int) -> None:
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert top_k(logits, k).tolist() == sorted(ranked[: k or None])


@given(st.lists(st.integers(1, 50), min_size=1), st.floats(0.01, 1.0))
def test_nucleus_is_the_smallest_that_reaches_p(weights: list[int], p: float) -> None:
    probabilities = np.sort(np.array(weights, np.float64) / sum(weights))[::-1]
    n = nucleus(probabilities, p)
    sums = np.concatenate([[0.0], probabilities.cumsum()])
    assert 1 <= n <= len(weights)
    assert sums[n - 1] < p
    assert sums[n] >= p or n == len(weights)


def test_nucleus_that_is_reached_exactly() -> None:
    assert [nucleus(np.array([0.5, 0.25, 0.25]), p) for p in (0.5, 0.75, 1.0)] == [1, 2, 3]


@given(LOGITS, st.floats(0.1, 5), st.integers(0, 25), st.floats(0.05, 1))
def test_candidates_are_a_ranked_distribution(logits: np.ndarray, temperature: float, k: int, p: float) -> None:
    ids, weights = candidates(logits, Sampling(temperature, k, p))
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights) <= 0).all()
    assert len(set(ids.tolist())) == len(ids) <= (k or len(logits))
    assert logits[ids[0]] == logits.max()
    expected = np.exp(logits[ids].astype(np.float64) / temperature)
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-9)


@settings(deadline=None)
@given(LOGITS, st.integers(0, 2**32))
def test_all_filters_at_their_narrowest_are_greedy(logits: np.ndarray, seed: int) -> None:
    greedy = sample(logits, Sampling(), np.random.default_rng(seed))
    assert greedy == int(logits.argmax())
    for narrow in (Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9), Sampling(5e-324, top_k=1)):
        assert sample(logits, narrow, np.random.default_rng(seed)) == greedy


def test_frequencies_follow_the_temperature() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.7]))
    rng = np.random.default_rng(0)
    for temperature in (0.5, 1.0, 2.0):
        drawn = [sample(logits, Sampling(temperature), rng) for _ in range(20_000)]
        expected = np.array([0.1, 0.2, 0.7]) ** (1 / temperature)
        seen = np.bincount(drawn, minlength=3) / len(drawn)
        np.testing.assert_allclose(seen, expected / expected.sum(), atol=0.015)


def test_a_tiny_temperature_is_no_overflow() -> None:
    logits = np.array([1.0, 3.0, -np.inf, 2.0], np.float32)
    ids, weights = candidates(logits, Sampling(5e-324))
    assert (ids.tolist(), weights.tolist()) == ([1], [1.0])


class Largest(np.random.Generator):
    """A generator whose uniform number is the largest below 1."""

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
        return float(np.nextafter(1, 0))


def test_a_masked_word_is_never_drawn() -> None:
    logits = np.full(1000, -np.inf)
    logits[[3, 500]] = 0.0, -40.0
    rng = Largest(np.random.PCG64(0))
    assert candidates(logits, Sampling(1.0))[0].tolist() == [3, 500]
    assert sample(logits, Sampling(1.0), rng) in (3, 500)


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_distribution(bad: list[float], temperature: float) -> None:
    with pytest.raises(SleepcError, match="are not a distribution"):
        sample(np.array(bad), Sampling(temperature), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("temperature", "k", "p"),
    [
        (-1, 0, 1),
        (np.nan, 0, 1),
        (np.inf, 0, 1),
        (1, -1, 1),
        (1, 0, 0),
        (1, 0, 1.1),
        (1, 0, np.nan),
    ],
)
def test_values_out_of_range(temperature: float, k: int, p: float) -> None:
    with pytest.raises(UsageError):
        Sampling(temperature, k, p)


def test_streams_differ_by_row_and_do_not_depend_on_the_batch() -> None:
    few = [rng.random() for rng in generators(7, 2)]
    many = [rng.random() for rng in generators(7, 5)]
    assert many[:2] == few
    assert len(set(many)) == 5
