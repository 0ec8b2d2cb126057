"""Arguments that a person gives from Python: of the types that the call's own signature says, or one clear error."""

from __future__ import annotations

import errno
import inspect
import os
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from functools import cache, wraps
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar, get_origin

from sleepc.errors import UsageError
from sleepc.runtime.values import real, whole

P = ParamSpec("P")
R = TypeVar("R")
Known = Mapping[str, Any]  # names of the module in which the call is written
PART = re.compile(r"([\w.]+)(\[(?:[^\[\]]|\[[^\[\]]*\])*\])?")  # of an annotation: a name, and what it holds
PATHS, LISTS = ("Path", "os.PathLike"), ("Sequence", "Collection")
WORDS = {
    "str": "a text",
    "bool": "True or False",
    "int": "a whole number",
    "dict": "a dictionary",
    "Mapping": "a dictionary of texts",
    "None": "None",
}


def typed(call: Callable[P, R]) -> Callable[P, R]:
    """The same call, which raises UsageError, before anything else, for an argument of a type that it does not take.

    Annotations are read as they stand: texts, paths, numbers, lists of these, mappings of texts, and classes; an alias
    of anything else is the call's own to check.
    """
    signature = inspect.signature(call)

    @wraps(call)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            parameter = signature.parameters[name]
            if parameter.annotation is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
                _check(name, value, str(parameter.annotation), vars(sys.modules[call.__module__]))
        return call(*args, **kwargs)

    return checking


def _check(name: str, value: Any, annotation: str, known: Known) -> None:
    parts = _parts(annotation)
    if any(_fits(value, kind, held, known) for kind, held in parts):
        if isinstance(value, (str, os.PathLike)) and any(kind in PATHS for kind, _ in parts):
            _check_path(name, value)
        return
    if [kind for kind, _ in parts if kind != "None"] == ["int"]:
        whole(value, name)
    if [kind for kind, _ in parts if kind != "None"] == ["float"]:
        real(value, name)
    what = f"{name} is {reprlib.repr(value)}, of type {type(value).__name__}"
    raise UsageError(what, fix=f"Give {_words(annotation)}.")


def _check_path(name: str, value: str | os.PathLike[str]) -> None:
    """Raises UsageError for a path that no file can have; whether there is one is another question."""
    try:
        os.lstat(value)
    except ValueError as error:  # a character that no name has
        raise UsageError(f"{name} is not a path: {error}", fix="Give the name of a file or folder.") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            what = f"{name} is not a path: {error.strerror}"
            raise UsageError(what, where=reprlib.repr(os.fspath(value)), fix="Give another name.") from error


@cache
def _parts(annotation: str) -> tuple[tuple[str, str], ...]:
    """The types of a union, each with what it holds: "str | Sequence[int]" -> ("str", ""), ("Sequence", "int")."""
    return tuple((name, held[1:-1]) for name, held in PART.findall(annotation))


def _fits(value: Any, kind: str, held: str, known: Known) -> bool:
    if kind in PATHS:
        return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
    if kind in ("int", "float"):
        return _is_number(value, kind)
    if kind in LISTS:
        return _is_list(value) and ("str" not in held or all(_of_union(each, held, known) for each in value))
    if kind == "Mapping":
        return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)
    if kind in WORDS:
        return value is None if kind == "None" else isinstance(value, {"str": str, "bool": bool, "dict": dict}[kind])
    return kind == "Any" or _is_of(value, kind, known)


def _of_union(value: Any, annotation: str, known: Known) -> bool:
    return any(_fits(value, kind, held, known) for kind, held in _parts(annotation))


def _is_number(value: Any, kind: str) -> bool:
    try:
        (whole if kind == "int" else real)(value, "")
    except UsageError:
        return False
    return True


def _is_list(value: Any) -> bool:
    """A list, a tuple, an array; no text, which is a sequence of texts too."""
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, (str, bytes, Mapping))


def _named(name: str, known: Known) -> Any:
    """What a dotted name stands for; None if the module imports it for its annotations only."""
    first, _, rest = name.partition(".")
    found = known.get(first)
    return attrgetter(rest)(found) if rest and found is not None else found


def _is_of(value: Any, kind: str, known: Known) -> bool:
    """Of a class, also of one that only has a name here."""
    found = _named(kind, known)
    if found is None:
        return kind in {each.__name__ for each in type(value).__mro__}
    if get_origin(found) is Callable:
        return callable(value)
    return not isinstance(found, type) or (isinstance(value, found) and not isinstance(value, type))


def _words(annotation: str) -> str:
    kinds = _parts(annotation)
    names = [kind for kind, _ in kinds]
    texts = "str" in names and any(path in names for path in PATHS)
    said = ["a path (a text, or a pathlib.Path)"] if texts else []
    for kind, held in kinds:
        if kind in LISTS:
            said.append(f"a list of {'paths' if 'Path' in held else 'texts' if 'str' in held else 'numbers'}")
        elif not (texts and kind in ("str", *PATHS)):
            said.append(WORDS.get(kind, kind.rpartition(".")[2]))
    return " or ".join(said)
