"""The backends and targets that there are, by name: the only list. Importing it imports none of them, and no torch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from sleepc.backends.contract import Backend, Exporter, HostTarget, Target, TrainingBackend
from sleepc.errors import UsageError
from sleepc.manifest import MANIFEST
from sleepc.names import check_new

BACKENDS: dict[str, Backend | str] = {
    "eager": "sleepc.backends.eager.backend",
    "triton": "sleepc.backends.triton.backend",
}
"""A backend, or the module that has it as BACKEND. The first is what runs, verifies and trains by default."""
TARGETS: dict[str, Target | str] = {"onnx": "sleepc.backends.onnx.target", "mlir": "sleepc.backends.mlir.target"}
"""A target, or the module that has it as TARGET. The first is what is exported to by default."""
HOST_TARGETS: dict[str, HostTarget | str] = {
    "triton": "sleepc.backends.triton.target",
    "inductor": "sleepc.backends.eager.target",
    "hf": "sleepc.backends.hf.target",
    "gguf": "sleepc.backends.gguf.target",
}
"""The same, of those whose files no command runs by themselves. One may be called as a backend is."""
DEFAULT, DEFAULT_TARGET = next(iter(BACKENDS)), next(iter(TARGETS))


def register(it: Backend | Exporter) -> None:
    """Add a backend or a target of one's own. Raises UsageError if its name is taken or not valid."""
    check_new("backend or target", it.name, {*runners(), *HOST_TARGETS})
    if isinstance(it, Backend):
        BACKENDS[it.name] = it
    elif isinstance(it, Target):
        TARGETS[it.name] = it
    elif isinstance(it, HostTarget):
        HOST_TARGETS[it.name] = it


def runners() -> tuple[str, ...]:
    """What --backend takes: the backends, and the targets, whose exports run."""
    return (*BACKENDS, *TARGETS)


def find_runner(name: str) -> Backend | Target:
    """The backend or target of that name. Raises UsageError if there is none."""
    if name not in runners():
        raise UsageError(f"unknown backend {name!r}", where="--backend", fix=f"Backends: {', '.join(runners())}.")
    return find_backend(name) if name in BACKENDS else find_target(name)


def find_backend(name: str = DEFAULT) -> Backend:
    """The backend of that name, of which there is one."""
    found = BACKENDS[name]
    return import_module(found).BACKEND if isinstance(found, str) else found


def find_trainer(name: str = DEFAULT) -> TrainingBackend:
    """The backend of that name. Raises UsageError if there is none, or it does not train."""
    found = find_runner(name)
    if isinstance(found, TrainingBackend) and found.trains:
        return found
    raise UsageError(f"the backend {name} does not train", where="--backend", fix=f"Leave it out: {DEFAULT} does.")


def find_target(name: str) -> Target:
    """The target of that name whose exports run here. Raises UsageError if there is none."""
    found = TARGETS.get(name)
    if found is None:
        raise UsageError(f"unknown export target {name!r}", where="--to", fix=f"Targets: {', '.join(TARGETS)}.")
    return import_module(found).TARGET if isinstance(found, str) else found


def exporters() -> tuple[str, ...]:
    """What --to takes."""
    return (*TARGETS, *HOST_TARGETS)


def find_exporter(name: str) -> Exporter:
    """The target of that name. Raises UsageError if there is none."""
    found = HOST_TARGETS.get(name)
    if found is None:
        if name not in TARGETS:
            raise UsageError(f"unknown export target {name!r}", where="--to", fix=f"Targets: {', '.join(exporters())}.")
        return find_target(name)
    return import_module(found).TARGET if isinstance(found, str) else found


def exporter_of(folder: Path) -> Exporter | None:
    """The target that a folder is an export of; None if it is none, or an artifact."""
    if (folder / MANIFEST).is_file():
        return None
    return next((each for each in map(find_exporter, exporters()) if (folder / each.mark).is_file()), None)


def by_export() -> str:
    """The option that runs exports, for people."""
    return " or ".join(f"--backend {name}" for name in TARGETS)
