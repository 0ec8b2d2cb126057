"""Errors for people: what happened, where, and what to do.

Whoever raises one writes it in the command line's words; as an exception it has Python's (see wording).
"""

from __future__ import annotations

from copyreg import __newobj__  # type: ignore[attr-defined]  # how pickle makes an object without its __init__
from typing import Any, Literal, get_args

from sleepc.wording import in_python, place_in_python

RefusalCode = Literal[
    "BIDIRECTIONAL",
    "CROSS_ATTENTION",
    "RECURRENT",
    "NO_ATTENTION",
    "SHARED_KV",
    "MLA",
    "UNKNOWN_MASK",
    "POSITIONS",
    "BLOCKS",
    "QUANTISED",
    "REMOTE_CODE",
    "UNKNOWN_OPTION",
    "OPERATOR",
]
REFUSAL_CODES: tuple[str, ...] = get_args(RefusalCode)


class SleepcError(Exception):
    """A failure with its cause (`what`), its place (`where`: layer, file, option) and a remedy (`fix`), in the words of
    Python; `on_command_line` are the same three in those of the command line. `input`, if there is one, is what another
    program failed on, which --debug keeps.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "", input: str = "") -> None:
        self.on_command_line, self.input = (what, where, fix), input
        self.what, self.where, self.fix = in_python(what), place_in_python(where), in_python(fix)
        place = f" ({self.where})" if where else ""
        super().__init__(f"{self.what}{place}" + (f"\n{self.fix}" if fix else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """How it goes from one process to another: as it is, whatever a subclass is made from."""
        return __newobj__, (type(self), *self.args), self.__dict__


class UsageError(SleepcError):
    """The request cannot be carried out as asked: the user has something to change."""

    exit_code = 2


class Refusal(UsageError):
    """A model that sleepc understands well enough to know that it cannot convert it."""

    def __init__(self, code: RefusalCode, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where=where, fix=fix)
        self.code = code


class SleepcWarning(UserWarning):
    """What a person should know, though nothing is wrong; in the words of Python, as errors are."""

    def __init__(self, text: str) -> None:
        self.on_command_line = text
        super().__init__(in_python(text))
