"""Every pass on text: the program before it, and the program after it or the refusal."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.passes.cases import cases, passes, read

CASES = cases()


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_pass_makes_of_a_text_what_stands_there(path: Path) -> None:
    case = read(path)
    made = case.run()
    difference = difflib.unified_diff(case.result.splitlines(), made.splitlines(), "expected", "made", lineterm="")
    assert made == case.result, "\n".join([str(path.name), *difference])


def test_every_pass_has_its_cases() -> None:
    assert {path.parent.name for path in CASES} == set(passes())
