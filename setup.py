"""The README as a package index can show it, without the files beside it. All else is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!http)[^)]*\)")
LINK = re.compile(r"\[([^\]]*)\]\((?!http|#)([^)\s]+)\)")


def readme_alone(text: str) -> str:
    """Pictures of the repository as what they show, in words, and links into it as names of its files."""
    return LINK.sub(r"\1 (`\2`)", PICTURE.sub(r"*(A picture in the repository: \1.)*", text))


if __name__ == "__main__":
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    setup(long_description=readme_alone(text), long_description_content_type="text/markdown")
