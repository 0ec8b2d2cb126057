"""Each distance is shown to see a difference: one that cannot fail proves nothing."""

import math

import pytest
import torch

from sleepc.errors import SleepcError
from sleepc.ir import compare
from sleepc.ir.compare import absolute_error, kl, max_error

inf, nan = math.inf, math.nan


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (t(1, 2), t(1, 2), 0),
        (t(0, 0.5), t(0, 0), 0.5),  # absolute where the reference is small
        (t(0, 110), t(0, 100), 0.1),  # relative to the largest where it is large
        (t(1, -inf), t(1, -inf), 0),
        (t(1, 2.5), t(-inf, 2), inf),
        (t(1, nan), t(1, nan), inf),
        (t(1, nan), t(1, 0), inf),
        (t(1, inf), t(1, 0), inf),
        (t(inf), t(-inf), inf),
        (t(), t(), 0),
    ],
)
def test_max_error(a: torch.Tensor, b: torch.Tensor, expected: float) -> None:
    assert max_error(a, b) == pytest.approx(expected)


def test_errors_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = t(0, 3, 110, inf), t(0, 1, 100, inf)
    monkeypatch.setattr(compare, "AT_ONCE", 2)
    assert max_error(a, b) == pytest.approx(0.1)
    assert absolute_error(a, b) == pytest.approx(10)
    assert absolute_error(t(1, 2, 3, nan), t(1, 2, 3, 4)) == inf
    assert max_error(t(1, 2, 3, -inf), t(1, 2, 3, inf)) == inf


def test_max_error_sees_one_wrong_value_in_low_precision_and_other_kinds() -> None:
    a = torch.zeros(1000, dtype=torch.bfloat16)
    b = a.clone()
    b[500] = 1e-3
    assert max_error(a, b) > 9e-4
    assert max_error(torch.tensor([1, 2]), torch.tensor([1, 3])) == pytest.approx(1 / 3)
    assert max_error(torch.tensor([True]), torch.tensor([False])) == 1


def test_shapes_are_not_broadcast() -> None:
    with pytest.raises(SleepcError, match="shapes"):
        max_error(torch.zeros(2, 1), torch.zeros(2, 3))
    with pytest.raises(SleepcError, match="shapes"):
        kl(torch.zeros(1, 3), torch.zeros(2, 3))


def test_kl_by_hand() -> None:
    p, q = t(0.25, 0.75), t(0.5, 0.5)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl(p.log() + 7, q.log() - 3) == pytest.approx(expected)
    assert kl(torch.stack([p, q]).log(), torch.stack([q, q]).log()) == pytest.approx(expected / 2)
    assert kl(p.log(), p.log()) == 0


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (t(0, -inf), t(0, -inf), 0),
        (t(0, -inf), t(0, 0), math.log(2)),
        (t(0, 0), t(0, -inf), inf),
        (t(0, -2000), t(0, -inf), inf),
        (t(0, nan), t(0, 0), inf),
        (t(0, 0), t(0, nan), inf),
    ],
)
def test_kl_at_the_edges(p: torch.Tensor, q: torch.Tensor, expected: float) -> None:
    assert kl(p, q) == pytest.approx(expected)


def test_kl_of_nothing() -> None:
    with pytest.raises(SleepcError, match="no row"):
        kl(torch.zeros(0, 3), torch.zeros(0, 3))
