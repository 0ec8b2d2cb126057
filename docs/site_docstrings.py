"""Docstrings as Markdown: lines such as "name   what it means" become the items of a list. Labels without news go."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Module, Object

OBVIOUS = {"class-attribute", "instance-attribute"}  # labels of every field
ITEM = re.compile(r"(\w[\w, ]*?) {2,}(\S.*)")


class Listed(Extension):
    """Rewrites docstrings as they are collected."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Called once all modules of a package are read."""
        drop_labels(pkg)


def drop_labels(obj: Object) -> None:
    """Take labels that say nothing off an object and what is in it."""
    obj.labels -= OBVIOUS
    for member in obj.members.values():
        if isinstance(member, Object):
            drop_labels(member)


def listed(text: str) -> str:
    """The text with such lines as items; lines that are indented below one belong to it."""
    lines: list[str] = []
    for line in text.split("\n"):
        item = ITEM.fullmatch(line)
        if item:
            if lines and lines[-1].strip() and not lines[-1].startswith(("- ", "  ")):
                lines.append("")
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif lines and lines[-1].startswith(("- `", "  ")) and line.startswith(" "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)
