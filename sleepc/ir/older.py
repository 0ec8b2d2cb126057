"""Graph texts as older versions of sleepc wrote them: masks had a window and chunks as numbers of their own."""

from __future__ import annotations

import re

from sleepc.masks import Mask

OLD = re.compile(r"( = sleepc\.window_(?:mask|bias)\([^\n]*?), own=(\d+)(?:, chunk=(\d+))?(?=[,)])")
NEW = re.compile(r"( = sleepc\.window_(?:mask|bias)\([^\n]*?), sees=\"([^\n\"]*)\"(?=[,)])")


def renewed(text: str) -> str:
    """The text as it is written now."""

    def new(found: re.Match[str]) -> str:
        parts = [(kind, int(n)) for kind, n in (("window", found[2]), ("chunk", found[3])) if n and int(n)]
        return f'{found[1]}, sees="{Mask(tuple(parts))}"'

    return OLD.sub(new, text)


def aged(text: str) -> str:
    """The text as it was written then; one with masks that there were none of then stays as it is."""

    def old(found: re.Match[str]) -> str:
        numbers = dict(Mask.parse(found[2]).parts)
        if numbers.keys() - {"window", "chunk"}:
            return found[0]
        chunk = f", chunk={numbers['chunk']}" if "chunk" in numbers else ""
        return f"{found[1]}, own={numbers.get('window', 0)}{chunk}"

    return NEW.sub(old, text)
