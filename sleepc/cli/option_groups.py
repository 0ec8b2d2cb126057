"""Commands whose parameters are dataclasses of options: each field is made by one of the functions here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

import typer

TYPER = "typer"  # the key of a field's metadata
SEVERAL = "; may be given several times."


def flag(words: str, *names: str, default: Any = None, shown: bool | str = True, **limits: Any) -> Any:
    """A field that is a flag, --like-its-name if no `names` are given. `words` are its help, and `shown` what the help
    says its default is; with default=... it has to be given. `limits` are those of typer.Option (min, max, metavar).
    """
    option = typer.Option(default, *names, help=words, show_default=shown, **limits)
    return field(default=MISSING if default is ... else default, metadata={TYPER: option})


def several(words: str, *names: str, each: str) -> Any:
    """A field that is a flag which may be given several times; help shows that it takes `each`."""
    return flag(f"{words}{SEVERAL}", *names, metavar=each)


def switch(words: str, *names: str) -> Any:
    """A field that is a flag without a value, which is off if it is not given."""
    return flag(words, *names, default=False)


def argument(words: str) -> Any:
    """A field that is an argument, which may be left out (None)."""
    return field(default=None, metadata={TYPER: typer.Argument(None, help=words)})


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads and calls it: fields stand in the place of every parameter that is a dataclass, and in
    the place of every field that is one. Raises ValueError if two options have the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = signature(command).parameters

    @wraps(command)
    def run(**given: Any) -> None:
        command(**{name: _made(hints[name], name, given) for name in parameters})

    options: list[Parameter] = []
    for name in parameters:
        group = is_dataclass(hints[name])
        options += _options(hints[name]) if group else [Parameter(name, Parameter.KEYWORD_ONLY, annotation=hints[name])]
    run.__signature__ = Signature(options)  # type: ignore[attr-defined]
    return run


def flat(group: Any) -> dict[str, Any]:
    """The values of a group's options by name, those of the groups in it among them."""
    found: dict[str, Any] = {}
    for name, value in vars(group).items():
        found |= flat(value) if is_dataclass(value) else {name: value}
    return found


def _options(group: Any) -> Iterator[Parameter]:
    """The fields of a dataclass as parameters, in order."""
    hints = get_type_hints(group)
    for each in fields(group):
        if is_dataclass(hints[each.name]):
            yield from _options(hints[each.name])
            continue
        yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.metadata[TYPER], annotation=hints[each.name])


def _made(hint: Any, name: str, given: dict[str, Any]) -> Any:
    """The value of a parameter: an option that was given, or a group of them."""
    if not is_dataclass(hint):
        return given[name]
    hints = get_type_hints(hint)
    made: Any = hint
    return made(**{each.name: _made(hints[each.name], each.name, given) for each in fields(hint)})
