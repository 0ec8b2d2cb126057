"""What of torch-mlir and IREE is installed here, and what is missing, in words. Imports neither torch nor what it looks
for.
"""

from __future__ import annotations

from sleepc.backends.packages import numbers, version_of

IMPORTER, COMPILER, RUNTIME = "torch-mlir", "iree-base-compiler", "iree-base-runtime"
EXPORTERS = (IMPORTER, COMPILER, RUNTIME)
# What was tried together, with torch 2.13: other snapshots import other operators, and write other text.
FITS = {IMPORTER: "20261001", COMPILER: "3.13", RUNTIME: "3.13"}
INSTALL = "pip install 'sleepc[mlir]'"


def missing_runtime() -> str | None:
    """Why exported programs cannot run here, with what to install; None if they can."""
    return _missing((RUNTIME,))


def missing_exporter() -> str | None:
    """Why programs cannot be exported and checked here, with what to install; None if they can."""
    return _missing(EXPORTERS)


def versions() -> dict[str, str]:
    """The installed versions of what writes and runs exports."""
    return {name: version for name in EXPORTERS if (version := version_of(name))}


def about() -> str:
    """The runtime's version, and the compiler's and importer's if they are there."""
    return ", ".join(f"{name} {version}" for name, version in reversed(versions().items()))


def _missing(names: tuple[str, ...]) -> str | None:
    found = {name: version_of(name) for name in names}
    absent = [name for name, version in found.items() if version is None]
    if absent:
        return f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} not installed: {INSTALL}"
    for name, version in found.items():
        if not _fits(version or "", FITS[name]):
            return f"{name} {version} does not fit, and {FITS[name]} does: {INSTALL}"
    return None


def _fits(version: str, wanted: str) -> bool:
    parts = numbers(wanted)
    return numbers(version)[: len(parts)] == parts
