"""Keywords: does one stand in an answer, and where does one stand last in a text?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache


def stands_in(keyword: str, text: str) -> bool:
    """Does the keyword stand in the text, as whole words, in any case?

    >>> stands_in("ham", "He brought a Ham."), stands_in("ham", "a hammer"), stands_in("12", "12.5 or 2,12")
    (True, False, False)
    """
    return _pattern(_plain(keyword)).search(_plain(text)) is not None


def last_end(keywords: Sequence[str], text: str) -> int | None:
    """Where in the text the last of the keywords ends, in characters; None if there is none.

    >>> last_end(["red", "blue"], "red, blue, red."), last_end(["green"], "red")
    (14, None)
    """
    ends = [match.end() for keyword in keywords for match in _pattern(keyword).finditer(text)]
    return max(ends, default=None)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@cache
def _pattern(keyword: str) -> re.Pattern[str]:
    """The words of a keyword with any space between them, not within longer words and numbers."""
    words = r"\s+".join(map(re.escape, keyword.split()))
    return re.compile(f"{_edge(keyword.strip()[:1], before=True)}{words}{_edge(keyword.strip()[-1:])}", re.IGNORECASE)


def _edge(letter: str, *, before: bool = False) -> str:
    """What must not stand next to the keyword, whose first or last letter this is. If words are written without spaces
    between them (wide letters, as in Chinese), anything may.
    """
    if not letter.isalnum() or unicodedata.east_asian_width(letter) in "WF":
        return ""
    if not letter.isdigit():
        return r"(?<!\w)" if before else r"(?!\w)"
    return r"(?<!\w)(?<!\d[.,])" if before else r"(?!\w|[.,]\d)"
