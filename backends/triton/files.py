"""The folder of an export, checked: its manifests, and every file by size and hash. Imports neither torch nor Triton.

No code of it is loaded here, and none is run: that is for a host.
"""

from __future__ import annotations

import time
from pathlib import Path

from sleepc.backends.export import check_still_of
from sleepc.backends.listed_files import ListedFiles
from sleepc.backends.report import Figure, Report
from sleepc.backends.triton.devices import find_device
from sleepc.backends.triton.manifest import FORMAT, MANIFEST, DeviceManifest, KernelsManifest
from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import load_whole, refuse_links_out

FOLDER = "triton"  # of an artifact
FILES = ListedFiles(FOLDER, FORMAT)


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
    refuse_links_out(folder, "export", FILES.again)
    whole = FILES.read(folder / MANIFEST, KernelsManifest)
    FILES.check(folder, whole.files)
    check_still_of(folder, FOLDER, whole.identity)
    found = [FILES.read(folder / name, DeviceManifest) for name in whole.targets.values()]
    for target, made in zip(whole.targets, found, strict=True):
        if (made.target, made.identity) != (target, whole.identity):
            raise SleepcError(f"{target}.json is of another export", where=str(folder), fix=FILES.again)
        FILES.check(folder, made.files)
    return found, len(whole.files.keys() | {name for made in found for name in made.files})
