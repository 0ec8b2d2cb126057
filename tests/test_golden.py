"""The programs of five tiny models, after every stage, are the texts in tests/golden, letter by letter."""

from __future__ import annotations

import re

import pytest

from tests.golden.texts import FOLDER, MODELS, RECIPES, differences, made, written

RULE = "If that is meant: python -m tests.golden.write, and CONTRIBUTING.md says what else a commit has to bring."


@pytest.mark.parametrize("model", MODELS)
def test_the_texts_are_those_that_are_kept(model: str) -> None:
    wrong = differences(written(model), made(model))
    assert not wrong, f"\n{wrong}\n{RULE}"


def test_nothing_else_is_kept() -> None:
    """A text of a model or a recipe that is gone would be compared with nothing."""
    for path in written():
        model, name = path.split("/")
        assert model in MODELS, path
        assert name.split(".")[0] in ("front", "blocks", *RECIPES), path
    assert sum(len(text) for text in written().values()) < 1_500_000
    assert sorted(path.name for path in (FOLDER / "changes").glob("*.py") if not re.match(r"\d{4}_", path.name)) == [
        "__init__.py"
    ]


def test_a_difference_is_told_with_its_place() -> None:
    kept = {"llama/blocks.txt": "program\n  level: STEP\n\ngraph head {\n  %0: f32[B,T] = input\n}\n"}
    new = {"llama/blocks.txt": kept["llama/blocks.txt"].replace("f32", "f64")}
    told = differences(kept, new).splitlines()
    assert told[0] == "llama/blocks.txt, line 5, in: graph head"
    assert "-  %0: f32[B,T] = input" in told
    assert "+  %0: f64[B,T] = input" in told
    assert "nothing is made" in differences(kept, {})
    assert not differences(kept, dict(kept))
