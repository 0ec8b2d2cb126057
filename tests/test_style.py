"""How code is written, as far as no linter says: short functions, names of one class, paragraphs wrapped once."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 45  # lines of a function, with its signature, its docstring and the functions in it; not its decorators
PROSE = re.compile(r"[\w,;'-]+( [\w,;'-]+)*")  # words of a sentence that goes on, and no column of a table
FILES = [
    path for top in ("sleepc", "passes", "backends", "benchmarks", "examples") for path in (ROOT / top).rglob("*.py")
]


parsed = cache(ast.parse)  # every file once


def classes(source: str) -> list[str]:
    """The names of all classes of a file, private ones and those inside functions too."""
    return [node.name for node in ast.walk(parsed(source)) if isinstance(node, ast.ClassDef)]


def too_long(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of every function that is longer than it may be."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno >= LONGEST:
                yield node.lineno, node.name


def orphans(source: str) -> Iterator[tuple[int, str]]:
    """Line and words of every line of a docstring or comment that has at most three words in the middle of a paragraph:
    what is left where a paragraph was changed and wrapped in part.
    """
    for first, block in _blocks(source):
        for at, (before, line, after) in enumerate(zip(block, block[1:], block[2:], strict=False), first + 1):
            words = line.strip()
            goes_on = _indent(before) == _indent(line) == _indent(after) and after.strip(' "')
            filled = len(before.strip()) > 60 and not before.rstrip().endswith((".", ":", ")"))
            if words and goes_on and filled and len(words.split()) <= 3 and PROSE.fullmatch(words):
                yield at, words


def _blocks(source: str) -> Iterator[tuple[int, list[str]]]:
    """Docstrings and comments of several lines, each with the number of its first line."""
    lines = source.splitlines()
    for node in ast.walk(parsed(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.end_lineno is not None:
            block = lines[value.lineno - 1 : value.end_lineno]
            yield value.lineno, [block[0].replace('"""', "", 1), *block[1:]]
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and lines[end].lstrip().startswith("#"):
            end += 1
        if end > start:
            yield start + 1, [line.replace("#", "", 1) for line in lines[start:end]]
        start = end + 1


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def test_functions_are_short() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{at} {name}" for path in FILES for at, name in too_long(path.read_text("utf-8"))
    ]
    assert len(FILES) > 300
    assert not found


@pytest.mark.parametrize(("lines", "long"), [(LONGEST, False), (LONGEST + 1, True)])
def test_long_functions_are_found(lines: int, long: bool) -> None:
    source = "class A:\n    @property\n    def f(self):\n" + "        pass\n" * (lines - 1)
    assert list(too_long(source)) == ([(3, "f")] if long else [])


def test_a_name_is_that_of_one_class() -> None:
    package = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("sleepc", "passes", "backends")]
    found = Counter(name for path in package for name in classes(path.read_text("utf-8")))
    assert len(found) > 300
    assert [name for name, count in found.items() if count > 1] == []


def test_classes_are_found_wherever_they_are() -> None:
    assert classes("class A:\n    class B: pass\ndef f():\n    class _C: pass\n") == ["A", "B", "_C"]


def test_paragraphs_are_wrapped_once() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{at} {words}" for path in FILES for at, words in orphans(path.read_text("utf-8"))
    ]
    assert not found


FULL = "The words of this line reach almost as far as a line of this file may reach, and it goes on in"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (f'def f():\n    """{FULL}\n    the next\n    line, where it ends.\n    """', [(3, "the next")]),
        (f"# {FULL}\n# the next\n# line, where it ends.\n", [(2, "the next")]),
        (f'"""{FULL}\nthe last line.\n"""', []),
        (f'"""{FULL}\nthe last.\n\nAnother.\n"""', []),
        (f'"""{FULL}\n    an example\nThen more.\n"""', []),
    ],
)
def test_orphans_are_found(source: str, found: list[tuple[int, str]]) -> None:
    assert list(orphans(source)) == found
