"""What a command runs: an artifact by PyTorch, or its export by ONNX Runtime, which needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.api import Program
    from sleepc.backends.onnx.load import OnnxProgram

BACKENDS = ("eager", "onnx")


def check_backend(backend: str) -> None:
    """Raises UsageError for a backend that there is not, or that needs what is not installed."""
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r}", where="--backend", fix=f"Backends: {', '.join(BACKENDS)}.")
    if backend == "eager" and find_spec("torch") is None:
        raise UsageError(
            "the eager backend needs PyTorch, which is not installed",
            where="--backend eager",
            fix="pip install torch, or run an export: --backend onnx",
        )


def open_program(path: Path, backend: str) -> Program | OnnxProgram:
    """The artifact, or for `onnx` its export (or an export's own folder). Raises UsageError where there is none."""
    check_backend(backend)
    if backend == "onnx":
        from sleepc.backends.onnx import load

        return load.load(path)
    return open_artifact(path)


def open_artifact(path: Path) -> Program:
    """An artifact. Raises UsageError where it is none, and says so where it is an export."""
    from sleepc import api
    from sleepc.backends.onnx.manifest import MANIFEST as EXPORT
    from sleepc.manifest import MANIFEST

    if (path / EXPORT).is_file() and not (path / MANIFEST).is_file():
        raise UsageError(f"{path} is an ONNX export", fix="Give --backend onnx, or the artifact that it was made from.")
    return api.load(path)


@contextmanager
def alone_at(target: Path, program: Program, what: str, *, force: bool) -> Iterator[None]:
    """Within it no other process trains or calibrates into `target`.

    Raises UsageError where one does, or where `target` is not free (see artifact.check_free), SleepcError where the
    program's artifact was replaced: by one that ended after it was loaded.
    """
    from sleepc.artifact import check_free
    from sleepc.folder_lock import only_one

    check_free(target, force=force)  # first, since a lock makes the folder above it
    with only_one(target, what):
        check_free(target, force=force)
        program.require_in_place()
        yield
