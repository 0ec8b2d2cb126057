"""What a command runs: an artifact by a backend, or its export by the target's runtime, which needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.backends.contract import Backend, HostTarget, Target, not_compiled
from sleepc.backends.table import DEFAULT, by_export, exporter_of, find_runner
from sleepc.cli.display import tell
from sleepc.cli.tuned import Way, tuned_or_default
from sleepc.errors import UsageError
from sleepc.progress import Progress, silent

if TYPE_CHECKING:
    from sleepc.api import Program
    from sleepc.backends.export import Export
    from sleepc.backends.tunable import Setting
    from sleepc.hf.tokenizer import Tokenizer
    from sleepc.ir.program import ProgramGraphs
    from sleepc.passes.analysis.kv_cache import KVCache
    from sleepc.runtime.session import Session
    from sleepc.runtime.steps import Steps


@dataclass(frozen=True)
class Opened:
    """`session` takes the options of Program.session; `kv_cache` gives that of the original in a dtype, if it is known."""

    tokenizer: Callable[[], Tokenizer]
    session: Callable[..., Session]
    kv_cache: Callable[[str | None], KVCache | None] = lambda dtype: None


def checked_runner(name: str) -> Backend | Target:
    """What runs programs or exports under that name. Raises UsageError for an unknown name, and for a backend that
    needs what is not installed.
    """
    found = find_runner(name)
    reason = found.missing() if isinstance(found, Backend) else None
    if reason is not None:
        raise UsageError(reason, where=f"--backend {name}", fix=f"Or run an export: {by_export()}")
    return found


def open_program(path: Path, way: Way) -> Opened:
    """The artifact, or for a target its export (or an export's own folder), run in a way. Raises UsageError if there is
    none.
    """
    found = checked_runner(way.backend)
    if isinstance(found, Target):
        export = found.open(path)
        export.native_code = way.native_code
        opened = Opened(export.tokenizer, partial(_session_of, export, way))
    else:
        program = open_artifact(path)
        program.native_code = way.native_code
        opened = Opened(program.tokenizer, partial(_session_by, program, found, way), partial(_kv_cache, program))
    return opened if way.asked is None else replace(opened, session=partial(_session_or_default, opened, path, way))


def _session_or_default(opened: Opened, path: Path, way: Way, *, compile: bool = False, **options: Any) -> Session:
    """A session in a way that a record chose, or with defaults if that fails; it fails for who asked for code."""
    if compile:
        return opened.session(compile=True, **options)

    def default() -> Session:
        asked = Way(way.asked or DEFAULT, native_code=way.native_code)
        return open_program(path, asked).session(**options)

    return tuned_or_default(partial(opened.session, **options), default, tell)


def _session_by(
    program: Program, runs: Backend, way: Way, *, compile: bool = False, device: str = "cpu", **options: Any
) -> Session:
    """A session of an artifact by a backend, with the settings of a way."""
    if not way.settings:
        return program.session(backend=way.backend, compile=compile, device=device, **options)
    from sleepc.room import require_room
    from sleepc.runtime.session import Session

    require_room(program.graphs)
    program.check_bytes()
    steps = _tuned_by(runs, way.settings, program.graphs, compile=compile, device=device)
    return Session(steps, identity=program.identity, upto=program.graphs.upto)


def _tuned_by(
    runs: Backend, settings: Mapping[str, Setting], program: ProgramGraphs, *, compile: bool, device: str
) -> Steps:
    """Steps with settings of a record: nothing is compiled for them that was not asked for."""
    settings = {**settings, "compile": True} if compile else settings
    return runs.tuned_steps(program, settings, device=device, compiles=compile, progress=tell)


def _session_of(
    export: Export, way: Way, *, compile: bool = False, progress: Progress = silent, **options: Any
) -> Session:
    """A session of an export. Raises UsageError if its code is to be compiled."""
    from sleepc.runtime.session import Session

    del progress  # there is nothing to wait for
    if compile:
        raise not_compiled(way.backend)
    if not way.settings:
        return export.session(**options)
    steps = export.tuned_steps(way.settings, **options)
    return Session(steps, identity=export.identity, upto=export.manifest.upto)


def steps_by(
    runs: Backend,
    device: str,
    *,
    compile: bool,
    settings: Mapping[str, Setting] | None = None,
    own: Path | None = None,
) -> Callable[[ProgramGraphs], Steps]:
    """What makes the steps of a program on a device; compiled, with a line for each that is, or of the `own` code of an
    artifact; with settings of a record, or without if that fails and none was to be compiled.
    """
    default = partial(runs.steps, device=device)
    if not settings:
        return partial(runs.compiled_steps, device=device, progress=tell, own=own) if compile else default
    tuned = partial(_tuned_by, runs, settings, compile=compile, device=device)
    if compile:
        return tuned
    return lambda program: tuned_or_default(partial(tuned, program), partial(default, program), tell)


def open_artifact(path: Path) -> Program:
    """An artifact. Raises UsageError if it is none, and says so if it is an export."""
    from sleepc import api

    target = exporter_of(path)
    if isinstance(target, HostTarget):
        what = f"{path} is for {target.runtime}, and sleepc does not run it"
        fix = f"`sleepc verify {path}` checks the files; name the artifact that they were made from to run that."
        raise UsageError(what, fix=fix)
    if target is not None:
        fix = f"Give --backend {target.name}, or the artifact that it was made from."
        raise UsageError(f"{path} is an export for {target.runtime}", fix=fix)
    return api.load(path)


def _kv_cache(program: Program, dtype: str | None) -> KVCache | None:
    """The original's KV cache in the dtype of the conversation, if the artifact says what it is."""
    from sleepc.capturing import DTYPES
    from sleepc.passes.analysis.kv_cache import from_report

    kind = DTYPES[dtype] if dtype is not None else program.graphs.dtype
    return from_report(program.report, kind.itemsize)


@contextmanager
def alone_at(target: Path, program: Program, what: str, *, force: bool) -> Iterator[None]:
    """Within it no other process trains or calibrates into `target`.

    Raises UsageError if one does, or if `target` is not free (see artifact.check_free), SleepcError if the
    program's artifact was replaced: by one that ended after it was loaded.
    """
    from sleepc.artifact import check_free
    from sleepc.folder_lock import only_one

    check_free(target, force=force)  # first, since a lock makes the folder above it
    with only_one(target, what):
        check_free(target, force=force)
        program.require_in_place()
        yield
