"""Errors go from process to process: a worker's failure is told as what it was."""

from __future__ import annotations

from copy import copy

import pytest

from sleepc.errors import Refusal, SleepcError, UsageError
from sleepc.ir.diagnose import InvalidProgram

ERRORS = [
    SleepcError("what", where="where", fix="fix"),
    UsageError("what"),
    Refusal("MLA", "what", where="where"),
    InvalidProgram("V11", "what", fix="fix"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_in_another_process(error: SleepcError) -> None:
    again = copy(error)  # by what a queue between processes uses too
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.exit_code == error.exit_code
