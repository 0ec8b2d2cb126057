"""A conversion in another dtype is verified against the original in that dtype; unreadable texts hide nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import sleepc
from sleepc.api import load
from sleepc.verify.texts import says_something
from tests.cli.models import save_model


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.slow), "bfloat16"])
def test_verified_in_its_own_dtype(dtype: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    program = sleepc.convert(model, {"window": 8, "sinks": 2, "dtype": dtype})
    assert program.verify().ok
    program.save(tmp_path / "out")
    report = load(tmp_path / "out").verify()
    assert report.ok, [c for c in report.checks if not c.ok]


def test_a_tokenizer_that_makes_nothing_of_the_text() -> None:
    assert not says_something([0] * 40)
    assert says_something(list(range(40)))
