"""The folder of an export, checked: its manifests, and every file by size and hash. Imports neither torch nor Triton.

No code of it is loaded here, and none is run: that is for a host.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from sleepc.backends.export import check_still_of
from sleepc.backends.report import Figure, Report
from sleepc.backends.triton.devices import find_device
from sleepc.backends.triton.manifest import FORMAT, MANIFEST, DeviceManifest, FileFacts, KernelsManifest
from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import HeldFile, is_inside, load_whole, refuse_links_out
from sleepc.sealed_json import Data, FileKind, read_sealed

FOLDER = "triton"  # of an artifact
MAX_MANIFEST = 16 << 20
AGAIN = "The folder is damaged or was edited: make it again with `sleepc export ARTIFACT --to triton --force`."
KIND = FileKind("export", FORMAT, MAX_MANIFEST, "export again", AGAIN)


def check_folder(folder: Path) -> Report:
    """Check an export: what its files are, and that they are those that were written. Raises UsageError if there is
    none, or it is of another state of the artifact around it; SleepcError if it is damaged.
    """
    started = time.perf_counter()
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} has no {MANIFEST}", fix="`sleepc export ARTIFACT --to triton` makes one.")
    found, count = load_whole(folder, _checked)
    rows = [Figure("files", "changed", 0, 0, f"{count} by size and sha256")]
    rows += [row for each in found for row in rows_of(each)]
    return Report(rows, seconds=time.perf_counter() - started)


def rows_of(made: DeviceManifest) -> list[Figure]:
    """What each kernel takes, of what the GPU has."""
    room = find_device(made.target).shared
    return [
        Figure(
            f"{made.target} {name}",
            "share of shared memory",
            it.shared / room,
            1,
            f"{it.shared} of {room} bytes; {it.registers} registers, {it.threads} threads"
            + (f", {it.spilled} bytes spilled" if it.spilled else ""),
        )
        for name, it in made.kernels.items()
    ]


def _checked(folder: Path) -> tuple[list[DeviceManifest], int]:
    refuse_links_out(folder, "export", AGAIN)
    whole = _read(folder / MANIFEST, KernelsManifest)
    _check_files(folder, whole.files)
    check_still_of(folder, FOLDER, whole.identity)
    found = [_read(folder / name, DeviceManifest) for name in whole.targets.values()]
    for target, made in zip(whole.targets, found, strict=True):
        if (made.target, made.identity) != (target, whole.identity):
            raise SleepcError(f"{target}.json is of another export", where=str(folder), fix=AGAIN)
        _check_files(folder, made.files)
    return found, len(whole.files.keys() | {name for made in found for name in made.files})


def _read(path: Path, model: type[Data]) -> Data:
    made, found = read_sealed(path, KIND, model)
    if found != getattr(made, "sha256", ""):
        raise SleepcError(f"{path.name} was changed after it was written", where=str(path), fix=AGAIN)
    return made


def _check_files(folder: Path, files: Mapping[str, FileFacts]) -> None:
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            raise SleepcError(f"{name} is missing", where=str(folder), fix=AGAIN)
        if not is_inside(folder, path):
            raise SleepcError(f"{name} leads out of the export", where=str(folder), fix=AGAIN)
        file = HeldFile(path)
        if file.size != facts.size:
            raise SleepcError(f"{name} has {file.size} bytes instead of {facts.size}", where=str(path), fix=AGAIN)
        if file.sha256() != facts.sha256:
            raise SleepcError(f"{name} was changed after the export", where=str(path), fix=AGAIN)
