"""What `mkdocs build` needs beyond mkdocs.yml: pages outside docs/; links and lists as Python-Markdown reads them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md"}  # of the repository -> of the site
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\(docs/([^)\s]+)\)")
STARTS = re.compile(r"(?:[-*]|\d+\.) |\|")  # a list or a table


def on_config(config: Any) -> Any:
    """mkdocs.yml with every decision below the list of them."""
    decisions = sorted(path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/decisions/0*.md"))
    for section in config.nav[1:]:
        for pages in section.values():
            for page in pages:
                if isinstance(page, dict) and "Decisions" in page:
                    page["Decisions"] += decisions
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """The site's files, with the pages that stand outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A page's text, its links as the site has them."""
    place = page.file.src_uri
    source = next((where for where, name in PAGES.items() if name == place), f"docs/{place}")
    folder = posixpath.dirname(source)
    return with_gaps(LINK.sub(lambda found: link(found, folder, place), PICTURE.sub(r"![\1](\2)", markdown)))


def link(found: re.Match[str], folder: str, place: str) -> str:
    """A link from a file in `folder` of the repository, as one from the page `place`; other files are named."""
    text, target, heading = found[1], found[2], found[3] or ""
    inside = posixpath.normpath(posixpath.join(folder, target))
    if not (ROOT / inside).exists():
        return found[0]  # the build says that it is broken
    page = PAGES.get(inside) or (inside.removeprefix("docs/") if inside.startswith("docs/") else "")
    page = PAGES.get(f"{inside}/README.md", page) if (ROOT / inside).is_dir() else page
    if not page:
        return text if inside in text else f"{text} (`{inside}`)"
    return f"[{text}]({posixpath.relpath(page, posixpath.dirname(place) or '.')}{heading})"


def with_gaps(markdown: str) -> str:
    """An empty line before lists and tables that follow a line of text: GitHub needs none."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        before = lines[-1] if lines else ""
        fenced ^= line.startswith("```")
        if not fenced and STARTS.match(line) and before.strip() and not STARTS.match(before) and not in_item(lines):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def in_item(lines: list[str]) -> bool:
    """Do the lines end in an item of a list?"""
    for line in reversed(lines):
        if STARTS.match(line) or not line.strip():
            return bool(line.strip())
        if not line.startswith(" "):
            return False
    return False
