"""What a person sees while work is done: one live line on a terminal, and a line left behind for each stage."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.errors import MarkupError
from rich.status import Status
from rich.text import Text

from sleepc.cli.estimate import Estimate, in_words
from sleepc.json_file import json_text

if TYPE_CHECKING:
    from sleepc.inspection import Inspection

# Into a file or a pipe, tables are as wide as they need: there is no screen to fit.
WIDE = 240
# NO_COLOR (no-color.org): no escape codes for colours, and none for bold or dim.
COLOURS: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
OURS = "(?:bold|dim|green|yellow|red|/)"  # what we write in brackets; in the names of files they are brackets
FOREIGN = re.compile(rf"(?<!\\)\[(?!{OURS}\])")


class Screen(Console):
    """A console that takes only our own words in brackets for marks."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text with its marks; plain if they do not fit each other, as in a name that looks like one."""
        try:
            return super().render_str(FOREIGN.sub(r"\\[", text), **options)
        except MarkupError:
            return super().render_str(text, **options | {"markup": False})


out = Screen(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE, color_system=COLOURS)
err = Screen(stderr=True, highlight=False, soft_wrap=True, color_system=COLOURS)


class Display:
    """A live line on stderr that names what is done now; `leave` prints a finished stage on `console`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status: Status | None = None
        self.stage, self.started = "", time.perf_counter()
        self.estimate = Estimate()

    def __call__(self, what: str, share: float | None = None) -> None:
        """The progress callback of sleepc.api. Without a terminal a long stage is announced once, with its estimate."""
        now = time.perf_counter()
        if self.status is not None:
            left = None if share is None else self.estimate.left(share, now)
            done = "" if share is None else f" {share:4.0%}"
            more = "" if left is None else f" · {in_words(left)} more"
            self.status.update(f"{self.stage:12} [dim]{what}{done}{more}[/]")
        elif share is not None and (left := self.estimate.once(share, now)) is not None:
            err.print(f"{self.stage}: {in_words(left)} more")

    @contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """Show a stage while it runs (on a terminal only)."""
        self.stage, self.started = stage, time.perf_counter()
        self.estimate = Estimate()
        if not err.is_terminal:
            yield
            return
        with err.status(stage) as self.status:
            try:
                yield
            finally:
                self.status = None

    def leave(self, stage: str, text: str, seconds: float | None = None) -> None:
        """The line of a finished stage."""
        took = "" if seconds is None else f"  [dim]{seconds:.1f} s[/]"
        self.console.print(f"{stage:12} {text}{took}")


def tell(what: str, share: float | None = None) -> None:
    """A line on stderr beside what is printed; as a progress callback, of each thing that is done."""
    del share
    err.print(Text(what, style="dim"))


_json: list[Any] = []  # what this command has printed


def cache_in_words(seen: Inspection) -> str:
    """What the original's KV cache would take, next to the state."""
    found = ", ".join(f"{size(seen.cache.bytes(n))} at {n // 1024}k" for n in (2048, 32768))
    if seen.break_even is None:
        return f"KV cache: {found}; its windows keep it smaller than the state"
    return f"KV cache: {found}; breaks even at {number(seen.break_even)} tokens"


def print_json(data: Any) -> None:
    """One JSON object on stdout; numbers that are not finite are null in it."""
    _json.append(data)
    sys.stdout.write(json_text(data, indent=1) + "\n")


def printed_json() -> bool:
    """Has the command said what it has to say as JSON?"""
    return bool(_json)


def forget_json() -> None:
    """A command begins."""
    _json.clear()


# Control characters but line ends and tabs: they move a terminal's cursor, colour it, or set its title.
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE = str.maketrans({**_PICTURES, 0x7F: "\u2421", **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}})


def visible(text: str) -> str:
    """Somebody else's text (a model's, a file's) for a terminal: control characters are shown, and do nothing.

    >>> visible("a\\x1b[31mb\\tc\\x9bd\\n")
    'a␛[31mb\\tc\\\\x9bd\\n'
    """
    return text.translate(_VISIBLE)


def write_words(text: str) -> None:
    """A model's words on stdout, at once: as they are into a file or a pipe, and `visible` on a terminal."""
    if text:
        sys.stdout.write(visible(text) if out.is_terminal else text)
        sys.stdout.flush()


def typed(path: Path) -> str:
    """A path as a person has to type it in a command."""
    return shlex.quote(str(path))


def size(count: float) -> str:
    """Bytes for people.

    >>> size(19_537_937), size(512), size(1.5e9)
    ('19.5 MB', '512 B', '1.5 GB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def number(count: int) -> str:
    """A number with spaces between thousands.

    >>> number(1734300)
    '1 734 300'
    """
    return f"{count:,}".replace(",", " ")


def counted(count: int, thing: str) -> str:
    """How many of a thing, in words.

    >>> counted(1, "token"), counted(1200, "token")
    ('1 token', '1 200 tokens')
    """
    return f"{number(count)} {thing}{'' if count == 1 else 's'}"


def sleeps(count: int) -> str:
    """A number of sleeps in words."""
    return counted(count, "sleep")
