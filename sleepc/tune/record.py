"""What was measured, kept: a JSON file for each device, in the artifact, or in the user's cache if that is read-only.

It is only believed for the program, the device, the versions and the code that it was measured with (`Key`). Imports no
torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sleepc.backends.contract import Backend, Target
from sleepc.backends.table import find_runner, runners
from sleepc.backends.tunable import TRIED, Setting
from sleepc.errors import SleepcError, UsageError
from sleepc.hf.gguf import cache_folder
from sleepc.owned import locked
from sleepc.sealed_json import FileKind, Strict, digest, read_sealed
from sleepc.tune.here import Device, source_digest
from sleepc.tune.space import Candidate, not_tuned
from sleepc.version import __version__
from sleepc.whole_file import write_whole

FOLDER = "tuning"  # of an artifact, and of the cache
MOST = 2000  # entries of a file; older ones go first
AGAIN = "`sleepc tune ARTIFACT` measures again."
KIND = FileKind("tuning record", 1, 16 << 20, "tune again", AGAIN)
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Words = Annotated[str, Field(max_length=2000)]


class Figures(Strict):
    """Milliseconds, by medians: of a token that is read alone (and its 99th percentile), of a token of a call of many,
    of a sleep (and its 99th percentile). `memory`: bytes of weights and of one row's state. `spread`: how far the time
    of a token, alone or in a call, may be off, as a share. `sleeps`: of a replay of the schedule, which the pause's
    percentile and the memory are of then. `error`: the largest difference of logits from the reference, as a share of
    their scale. `predicted`: nothing was measured.
    """

    decode_ms: Number
    decode_p99_ms: Number
    read_ms: Number
    pause_ms: Number
    pause_p99_ms: Number
    memory: Annotated[int, Field(ge=0)]
    spread: Number = 0
    sleeps: Annotated[int, Field(ge=0)] = 0
    error: Number = 0
    predicted: bool = False


class Key(Strict):
    """What figures depend on, besides the candidate. They are worth nothing if any of it is another."""

    program: str
    device: Device
    versions: str
    source: str


class WrongLogits(SleepcError):
    """A candidate does not compute what the program does: a failure that another time would have, too."""


class Entry(Strict):
    """A candidate's figures, or the reason why it has none, and whether that is `wrong` logits: other failures, such as
    a full disk, may pass. `beside` has the words of those that it was measured anew beside, as one of the best. `at` is
    when that was (seconds since 1970).
    """

    key: Key
    candidate: Candidate
    figures: Figures | None
    reason: Words = ""
    wrong: bool = False
    beside: Annotated[tuple[Words, ...], Field(max_length=100)] = ()
    at: Number = 0


class Limits(Strict):
    """What was asked for: the most bytes of weights and state, and the longest sleep."""

    memory: Annotated[int, Field(gt=0)] | None = None
    pause_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class TuningRecord(Strict):
    """The whole of such a file; `sha256` is of everything else in it."""

    format: Literal[1] = 1
    sleepc: str = __version__
    limits: Limits = Limits()
    entries: Annotated[tuple[Entry, ...], Field(max_length=MOST)] = ()
    sha256: str = ""

    def sealed(self) -> TuningRecord:
        """The same with its own hash."""
        return self.model_copy(update={"sha256": digest(json.loads(self.model_dump_json()))})

    def merged(self, entries: Iterable[Entry], limits: Limits | None = None) -> TuningRecord:
        """With more entries: of two of one key and candidate the later stays, of equally late ones the added."""
        found: dict[str, Entry] = {}
        for each in sorted([*self.entries, *entries], key=lambda entry: entry.at):
            found[each.model_dump_json(include={"key", "candidate"})] = each
        kept = sorted(found.values(), key=lambda entry: entry.at)[-MOST:]
        return self.model_copy(
            update={"sleepc": __version__, "entries": tuple(kept), "limits": self.limits if limits is None else limits}
        )


def key_of(runner: Backend | Target, program: str, device: Device) -> Key:
    """The key of what is measured now. `program` is the identity of the artifact."""
    return Key(program=program, device=device, versions=runner.about(), source=source_digest(runner))


def places(artifact: Path | None, program: str, device: Device) -> list[Path]:
    """Where records of a program on a device may be, in the order in which they are written: the artifact, so that they
    go with it; the cache, since an artifact may be read-only.
    """
    own = [artifact / FOLDER / f"{device.slug}.json"] if artifact is not None else []
    return [*own, cache_folder() / FOLDER / f"{program[:16]}-{device.slug}.json"]


def read_record(path: Path) -> TuningRecord:
    """A record. An entry from the future, by this machine's clock, is as old as can be: what is measured now is newer.

    Raises UsageError if it is newer or not there, SleepcError if it is damaged.
    """
    if not path.is_file():
        raise UsageError("there is no such tuning record", where=str(path), fix=AGAIN)
    record, found = read_sealed(path, KIND, TuningRecord)
    if found != record.sha256:
        raise SleepcError(f"{path.name} was changed after it was written", where=str(path), fix=AGAIN)
    now = time.time()
    entries = (each if each.at <= now else each.model_copy(update={"at": 0.0}) for each in record.entries)
    return record.model_copy(update={"entries": tuple(entries)})


def read_records(paths: Sequence[Path], tell: Callable[[str], None]) -> TuningRecord:
    """All that are there, as one. One that cannot be read is left out, and `tell` hears why."""
    found = TuningRecord()
    for path in reversed(paths):
        if os.path.lexists(path):
            try:
                read = read_record(path)
            except SleepcError as error:
                tell(f"the tuning record {path} is ignored: {error.what}")
                continue
            found = found.merged(read.entries, read.limits)
    return found


def keep(paths: Sequence[Path], entries: Sequence[Entry], limits: Limits | None, tell: Callable[[str], None]) -> Path:
    """Add entries to the first of the files that can be written, whatever other processes add meanwhile; which it was.

    Raises SleepcError if none can be written.
    """
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path.parent):
                record = read_records([path], tell).merged(entries, limits)
                write_whole(path, (record.sealed().model_dump_json(indent=1) + "\n").encode())
            return path
        except OSError as error:
            last = error
    raise SleepcError(f"the tuning record cannot be written: {last.strerror}", where=str(paths[-1]))


def current(entries: Iterable[Entry], program: str, device: Device) -> list[Entry]:
    """Those that hold for a program on a device now: with this code, in these versions of what is installed, and with
    options and settings that are declared, since an artifact may come from anywhere. Failures that may pass do not.
    """
    found = [each for each in entries if each.figures is not None or each.wrong]
    terms = {name: _terms(name, program, device) for name in {each.candidate.runner for each in found}}
    return [each for each in found if (its := terms[each.candidate.runner]) is not None and its.hold(each)]


@dataclass(frozen=True)
class _Terms:
    """What entries of a runner have to agree with: the key, and for all options and settings the values that there are
    (None for any).
    """

    key: Key
    options: Mapping[str, Sequence[Setting] | None]
    settings: Mapping[str, Sequence[Setting]]

    def hold(self, entry: Entry) -> bool:
        """Has it every option, no other setting than these, and all of their values? True is not 1."""
        options, settings = entry.candidate.options, entry.candidate.settings
        return (
            entry.key == self.key
            and options.keys() == self.options.keys()
            and all(known is None or _among(options[name], known) for name, known in self.options.items())
            and all(_among(value, self.settings.get(name, ())) for name, value in settings.items())
        )


def _terms(name: str, program: str, device: Device) -> _Terms | None:
    """None if no record is believed of a runner: it is not here, it declares nothing, or its files hold native code."""
    runner = find_runner(name) if name in runners() else None
    if runner is None or not_tuned(runner, device.kind) is not None:
        return None
    options = () if isinstance(runner, Backend) else fields(runner.options)
    return _Terms(
        key_of(runner, program, device),
        {each.name: each.metadata.get(TRIED) or None for each in options},
        {each.name: each.values for each in runner.tunables(device.kind)},
    )


def _among(value: Setting, known: Sequence[Setting]) -> bool:
    return repr(value) in map(repr, known)


def taken_over(
    file: Path, paths: Sequence[Path], program: str, device: Device, tell: Callable[[str], None]
) -> tuple[int, int]:
    """Add the figures of a file that are `current` to the record: how many entries that are, and how many are not: of
    something else, or failures, which each machine finds out for itself.

    Raises as `read_record`.
    """
    record = read_record(file)
    entries = current((each for each in record.entries if each.figures is not None), program, device)
    if entries:
        keep(paths, entries, None, tell)
    return len(entries), len(record.entries) - len(entries)


def given_away(file: Path, entries: Sequence[Entry], limits: Limits) -> None:
    """Write entries as a record of their own."""
    record = TuningRecord().merged(entries, limits).sealed()
    write_whole(file, (record.model_dump_json(indent=1) + "\n").encode())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it no other process changes records of the folder; on a file system without locks one might."""
    with locked(folder, wait=True):
        yield
