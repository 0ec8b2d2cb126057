"""The README's Python block runs as it stands, and what pages link to is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_python_blocks_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        script = tmp_path / "block.py"
        script.write_text(block)
        runpy.run_path(str(script), run_name="__main__")
        assert "sleeps" in capsys.readouterr().out


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_it_names_is_there(page: Path) -> None:
    """Files, and headings in them."""
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        found = (page.parent / name) if name else page
        assert found.exists(), target
        assert not heading or heading in _headings(found), target


def _headings(page: Path) -> set[str]:
    """As links spell them: small letters, digits and hyphens."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}
