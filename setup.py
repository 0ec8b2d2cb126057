"""The README as a package index can show it, without the files beside it. All else is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
PICTURE = re.compile(r"!\[[^\]]*\]\((?!http)([^)]*)\)")
LINK = re.compile(r"\[([^\]]*)\]\((?!http|#)([^)\s]+)\)")


def readme_alone(text: str) -> str:
    """Pictures as text, and links into the repository as names of its files."""
    return LINK.sub(r"\1 (`\2`)", PICTURE.sub(_as_text, text))


def _as_text(picture: re.Match[str]) -> str:
    """The same drawn in characters: a file of the same name."""
    drawing = (ROOT / picture[1]).with_suffix(".txt").read_text(encoding="utf-8")
    return f"```text\n{drawing.rstrip()}\n```"


if __name__ == "__main__":
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(long_description=readme_alone(text), long_description_content_type="text/markdown")
