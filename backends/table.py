"""The backends that there are, by name: the only list. Importing it imports none of them, and no torch."""

from __future__ import annotations

from importlib import import_module

from sleepc.backends.contract import Backend, TrainingBackend
from sleepc.errors import UsageError

BACKENDS: dict[str, Backend | str] = {"eager": "sleepc.backends.eager.backend"}
"""A backend, or the module that has it as BACKEND. The first is what runs, verifies and trains by default."""
DEFAULT = next(iter(BACKENDS))


def register(backend: Backend) -> None:
    """Add a backend of one's own. Raises ValueError if its name is taken."""
    if backend.name in BACKENDS:
        raise ValueError(f"there is a backend {backend.name!r} already")
    BACKENDS[backend.name] = backend


def find_backend(name: str = DEFAULT) -> Backend:
    """The backend of that name. Raises UsageError if there is none."""
    found = BACKENDS.get(name)
    if found is None:
        raise UsageError(f"there is no backend {name!r}", where="--backend", fix=f"Backends: {', '.join(BACKENDS)}.")
    if isinstance(found, str):
        found = import_module(found).BACKEND
        assert isinstance(found, Backend)
    return found


def find_trainer(name: str = DEFAULT) -> TrainingBackend:
    """The backend of that name, which trains. Raises UsageError if it does not."""
    found = find_backend(name)
    if isinstance(found, TrainingBackend) and found.trains:
        return found
    raise UsageError(f"the backend {name} does not train", where="--backend", fix=f"Leave it out: {DEFAULT} does.")
