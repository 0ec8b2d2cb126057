"""The example on docs/transformers.md runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from sleepc.api import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transformers.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path("example.py")
    assert made["answers"].shape == (2, 25)
    session = load("tiny-sleep").session()
    session.feed([7, 9])
    assert made["answers"][0, 5:].tolist() == [int(step[0]) for step in session.generate(20)]
    assert load("tiny-trained").report["training"]["by"] == "transformers"
