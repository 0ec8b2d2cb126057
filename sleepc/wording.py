"""The words of a message: written once, as the command line says them (`--window`), and put here into Python's."""

from __future__ import annotations

import re

# Options that take no value.
SWITCHES = {"checkpointing", "force", "half", "hash", "merge", "native-code", "resume", "scratch", "standalone"}
CALLS = {
    "adapt": "program.adapt",
    "calibrate": "program.calibrate",
    "convert": "sleepc.convert",
    "distil": "program.distil",
    "export": "program.export",
    "inspect": "sleepc.inspect",
    "run": "program.session",
    "train": "program.train",
    "verify": "program.verify",
}
OPTIONS = {"convert": "sleepc.Recipe"}  # where others than the call list them
SENTENCES = {
    "Run with --debug for the full traceback.": "The exception that caused this one has the whole trace.",
    "Run the same command again.": "Load it again.",
}
COMMAND = re.compile(r"`sleepc ([a-z]+)([^`]*)`")
# What pip is told stays as it is.
FLAG = re.compile(r"(pip3? (?:un)?install [^.,;&]*)|(?<![\w/.-])(?:--([a-z][a-z0-9-]*[a-z0-9])|-o)(?![\w-])")
# In a place, an option stands with its value.
VALUE = re.compile(r"(?<![\w/.-])--([a-z][a-z0-9-]*[a-z0-9]) (?!-)([^\s,]+)")


def in_python(text: str) -> str:
    """A message in which options are keyword arguments, and commands calls.

    >>> in_python("Give --force to replace it, or use --low-rank-lr 0.1.")
    'Give force=True to replace it, or use low_rank_lr 0.1.'
    >>> in_python("`sleepc convert MODEL -o OUT` makes one; `sleepc train --help` lists them.")
    '`sleepc.convert` makes one; `help(program.train)` lists them.'
    """
    for sentence, other in SENTENCES.items():
        text = text.replace(sentence, other)
    return FLAG.sub(_keyword, COMMAND.sub(_call, text))


def place_in_python(where: str) -> str:
    """A place in which an option's value is that of a keyword argument.

    >>> place_in_python("--device cuda"), place_in_python("--window, --sinks"), place_in_python("a/file --xy")
    ('device=cuda', 'window, sinks', 'a/file xy')
    """
    return in_python(VALUE.sub(lambda found: f"{_name(found[1])}={found[2]}", where))


def _keyword(found: re.Match[str]) -> str:
    if found[1]:
        return found[1]
    if found[2] is None:  # -o
        return "path"
    return f"{_name(found[2])}=True" if found[2] in SWITCHES else _name(found[2])


def _call(found: re.Match[str]) -> str:
    name, rest = found[1], found[2].strip()
    if name not in CALLS:
        return found[0]
    return f"`help({OPTIONS.get(name, CALLS[name])})`" if rest == "--help" else f"`{CALLS[name]}`"


def _name(flag: str) -> str:
    return flag.replace("-", "_")
