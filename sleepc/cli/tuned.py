"""What a command uses of the tuning record: the fastest way to run that the person left open, and that is here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sleepc.backends.contract import Backend, Target
from sleepc.backends.table import DEFAULT, find_runner, runners
from sleepc.errors import SleepcError
from sleepc.manifest import MANIFEST, identity_of, read_manifest

if TYPE_CHECKING:
    from sleepc.backends.tunable import Setting
    from sleepc.cli.options import RunsOn
    from sleepc.tune.record import Entry, Limits

Made = TypeVar("Made")


@dataclass(frozen=True)
class Way:
    """What runs a program: the backend or target, and its settings; may it be native code that lies in an export? If a
    record chose it, `asked` is what the person did, whose defaults run where the choice cannot.
    """

    backend: str
    settings: dict[str, Setting] = field(default_factory=dict)
    native_code: bool = False
    asked: str | None = None


def way_of(path: Path, on: RunsOn, tell: Callable[[str], None]) -> Way:
    """What was asked for, and for the rest what the record of this machine says, which `tell` hears."""
    asked = Way(on.backend or DEFAULT, native_code=on.native_code)
    if not on.tuned or on.device != "cpu" or on.dtype is not None or (on.compile and on.native_code):
        return asked
    entries, limits = found_by_tuning(path, on.backend, tell)
    if not entries:
        return asked
    from sleepc.tune.choose import choose

    here = options_here(path)
    asked_for = [each for each in entries if not on.compile or each.candidate.settings.get("compile") is True]
    best, chosen = (choose(some, limits).entry for some in (asked_for, [e for e in asked_for if _is_here(e, here)]))
    way = asked
    if chosen is not None:
        way = replace(asked, backend=chosen.candidate.runner, settings=chosen.candidate.settings)
    if on.backend is None and best is not None and best is not chosen:
        words = best.candidate.words()
        if not _said_before(path, words):
            tell(f"`sleepc export {path} --to {best.candidate.runner}` makes what is faster here: {words} (said once)")
    if chosen is None or way == asked:
        return asked
    tell(f"tuned: {chosen.candidate.words()} (--no-tuned leaves the tuning out)")
    return replace(way, asked=asked.backend)


def _said_before(path: Path, words: str) -> bool:
    """Was this said of an artifact at a path? A file in the cache notes it; where none can be written, it is said
    again.
    """
    from sleepc.hf.gguf import cache_folder
    from sleepc.tune.record import FOLDER

    name = hashlib.sha256(os.fsencode(path.resolve()) + words.encode()).hexdigest()[:16]
    mark = cache_folder() / FOLDER / f"said-{name}"
    with suppress(OSError):
        if mark.exists():
            return True
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return False


def tuned_or_default(tuned: Callable[[], Made], default: Callable[[], Made], tell: Callable[[str], None]) -> Made:
    """What settings of a record make; what the defaults do if that fails, since nobody asked for them."""
    try:
        return tuned()
    except SleepcError as error:
        tell(f"the tuning is left out: {error.on_command_line[0]} (--no-tuned leaves it out from the beginning)")
        return default()


def found_by_tuning(path: Path, runner: str | None, tell: Callable[[str], None]) -> tuple[list[Entry], Limits]:
    """The entries of an artifact's records that hold on this machine now, and the limits that it was tuned for: those of
    a runner, or all that compute what the program does.
    """
    from sleepc.tune.choose import equal
    from sleepc.tune.here import this_cpu
    from sleepc.tune.record import Limits, current, places, read_records

    try:
        identity = identity_of(read_manifest(path)) if (path / MANIFEST).is_file() else None
    except SleepcError:  # who opens it says so
        identity = None
    if identity is None:
        return [], Limits()
    device = this_cpu()
    record = read_records(places(path, identity, device), tell)
    wanted = [each for each in record.entries if (equal(each) if runner is None else each.candidate.runner == runner)]
    return current(wanted, identity, device), record.limits


def options_here(path: Path) -> dict[str, dict[str, Any]]:
    """The options of the exports that an artifact has, by their targets."""
    return dict(_options_here(path))


def _options_here(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for target in map(find_runner, runners()):
        if isinstance(target, Target):
            try:
                yield target.name, dict(target.options_of(target.open(path)))
            except SleepcError:  # none, or none of what the artifact is now
                continue


def _is_here(entry: Entry, here: dict[str, dict[str, Any]]) -> bool:
    candidate = entry.candidate
    return isinstance(find_runner(candidate.runner), Backend) or here.get(candidate.runner) == candidate.options


def options_by_tuning(
    path: Path, target: Target, given: Mapping[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Options of an export by the record, for those that are not `given` and change its speed alone."""
    from sleepc.backends.tunable import TRIED
    from sleepc.tune.choose import choose

    known = {each.name: each for each in fields(target.options)}
    tried = [name for name, each in known.items() if each.metadata.get(TRIED) and name not in given]
    wanted = {name: given.get(name, each.default) for name, each in known.items() if name not in tried}
    entries, limits = found_by_tuning(path, target.name, tell)
    found = choose([each for each in entries if wanted.items() <= each.candidate.options.items()], limits).entry
    if found is None:
        return {}
    chosen = {
        name: found.candidate.options[name] for name in tried if found.candidate.options[name] != known[name].default
    }
    if chosen:
        tell("tuned: " + " ".join(_as_typed(*each) for each in chosen.items()) + " (--no-tuned leaves it out)")
    return chosen


def _as_typed(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    return f"--{flag} {value}" if not isinstance(value, bool) else f"--{flag}" if value else f"--no-{flag}"
