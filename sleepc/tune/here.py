"""This machine, as far as measured times depend on it. Imports no torch."""

from __future__ import annotations

import hashlib
import inspect
import platform
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sleepc.backends.contract import Backend, Target
from sleepc.backends.processor import architecture, processor_facts, processor_features
from sleepc.backends.tunable import available_threads
from sleepc.sealed_json import Strict

MEASURE = Path(__file__).with_name("measure.py")


class Device(Strict):
    """What times are of: its kind and name for people, the threads that it has for a process, and a digest of what its
    processor can do.
    """

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,15}$")]
    name: Annotated[str, Field(max_length=200)]
    threads: Annotated[int, Field(ge=1, lt=1 << 16)]
    features: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]

    @property
    def slug(self) -> str:
        """A name of a file."""
        return f"{self.kind}-{_short(repr(self))}"


def this_cpu() -> Device:
    """The processors of this machine that this process may use."""
    facts = processor_facts()
    name = facts.get("model name") or facts.get("Model") or platform.processor() or architecture()
    features = " ".join([architecture(), *sorted(processor_features())])
    return Device(kind="cpu", name=name[:200], threads=available_threads(), features=_short(features))


@cache
def source_digest(runner: Backend | Target) -> str:
    """A digest of the code of a backend or target, all files of the folder of its module, and of how it is measured."""
    folder = Path(inspect.getfile(type(runner))).parent
    found = hashlib.sha256(MEASURE.read_bytes())
    for path in sorted(folder.rglob("*.py")):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
