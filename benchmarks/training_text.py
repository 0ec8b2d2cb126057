"""Prose that is on every machine with this project: what libraries say of themselves. None of it is measured on."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

LEAST = 200  # characters of a docstring
SKIPPED = {"site-packages", "test", "tests", "idle_test", "pydoc_data"}  # pydoc_data: the topics that are measured on
PACKAGES = ("torch", "transformers", "numpy", "networkx", "sympy", "matplotlib", "pandas")
SHARE = 500_000  # characters of each package, at most
PROSE = re.compile(r"[A-Za-z ,.;:'()\n-]")
MOSTLY = 0.95  # of a paragraph's characters, if it is prose
WORDS = 25  # of a paragraph, at least


def docstrings(path: Path) -> Path:
    """Write the docstrings of the standard library that have more than LEAST characters into one file."""
    return _written(path, [text for text in _docstrings(Path(sysconfig.get_path("stdlib"))) if len(text) > LEAST])


def prose(folder: Path) -> list[Path]:
    """Write the standard library's docstrings, the prose in those of large packages, and what packages say of
    themselves in their descriptions, into files of `folder`.
    """
    site = Path(sysconfig.get_path("purelib"))
    files = [docstrings(folder / "docstrings.txt")]
    for name in PACKAGES:
        texts = _paragraphs(_docstrings(site / name)) if (site / name).is_dir() else []
        files.append(_written(folder / f"{name}.txt", _evenly(texts)))
    files.append(_written(folder / "descriptions.txt", _evenly(_paragraphs(_descriptions()))))
    return [file for file in files if file.stat().st_size]


def _descriptions() -> Iterator[str]:
    """What installed packages say of themselves, by name; not this one."""
    for each in sorted(distributions(), key=lambda each: each.name):
        if each.name != "sleepc":
            yield (each.read_text("METADATA") or "").partition("\n\n")[2]


def _docstrings(root: Path) -> Iterator[str]:
    """All docstrings of the modules of a folder, by name."""
    for file in sorted(root.rglob("*.py")):
        if SKIPPED & set(file.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # a file that is to be like that: lib2to3 has one
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
        yield from (text for text in texts if text)


def _paragraphs(texts: Iterator[str]) -> list[str]:
    """Those that are prose, each once."""
    found = (part.strip() for text in texts for part in text.split("\n\n"))
    return list(dict.fromkeys(part for part in found if len(part.split()) >= WORDS and _is_prose(part)))


def _is_prose(text: str) -> bool:
    return len(PROSE.findall(text)) > MOSTLY * len(text)


def _evenly(texts: list[str]) -> list[str]:
    """Runs of neighbours from all over a long list, SHARE characters of it."""
    runs = [texts[at : at + 20] for at in range(0, len(texts), 20)]
    every = max(sum(map(len, texts)) // SHARE + 1, 1)
    return [text for run in runs[::every] for text in run]


def _written(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(texts), encoding="utf-8", errors="ignore")
    return path
