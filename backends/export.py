"""An export that was opened: what sessions run, whatever the target. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sleepc.backends.tunable import Setting, check_settings
from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer, load_tokenizer
from sleepc.manifest import MANIFEST, identity_of, read_manifest
from sleepc.runtime.arguments import typed
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps


class ExportFacts(Protocol):
    """What the manifest of an export says of its program."""

    @property
    def identity(self) -> str:
        """The identity of the artifact that it was made from: state files go from one to the other."""

    @property
    def precision(self) -> str:
        """What its weights are written in, for people."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def window(self) -> int:
        """L."""

    @property
    def sinks(self) -> int:
        """How many tokens attention keeps forever."""

    @property
    def upto(self) -> int | None:
        """Beyond so many tokens the original would compute with other factors."""

    @property
    def replays(self) -> bool:
        """Are sleeps of another number of passes of use?"""

    @property
    def report(self) -> dict[str, Any]:
        """What was checked when it was written: see Report.to_json."""


class Export(ABC):
    """The folder of an export, opened. What runs it raises UsageError if the runtime or the device is not there,
    SleepcError if a file is not what was written.
    """

    folder: Path
    manifest: ExportFacts
    native_code = False
    """Has the person who opens it said that native code in it may run? Otherwise an export that has some gives no
    steps."""

    @property
    def identity(self) -> str:
        """See ExportFacts."""
        return self.manifest.identity

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UsageError if it has none."""
        return load_tokenizer(self.folder)

    @typed
    def session(self, batch: int = 1, *, device: str = "cpu", dtype: str | None = None) -> Session:
        """A session of `batch` rows."""
        steps = self.steps(device=device, dtype=dtype)
        return Session(steps, batch, identity=self.identity, upto=self.manifest.upto)

    def nbytes(self) -> int:
        """How many bytes its files have."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    @abstractmethod
    def check(self, device: str = "cpu", dtype: str | None = None) -> object:
        """Raises UsageError if it cannot run so here, before anything is opened."""

    @abstractmethod
    def steps(self, *, device: str = "cpu", dtype: str | None = None, passes: int | None = None) -> Steps:
        """Its steps; `passes` other than its own are for comparing them (see ExportFacts.replays)."""

    def tuned_steps(self, settings: Mapping[str, Setting], *, device: str = "cpu", dtype: str | None = None) -> Steps:
        """`steps` with settings of its target's `tunables`. Raises UsageError for others."""
        check_settings("this export", (), settings)
        return self.steps(device=device, dtype=dtype)


def check_still_of(folder: Path, name: str, identity: str) -> None:
    """An export that lies in an artifact, in its folder `name`, is of what the artifact is now, or UsageError."""
    artifact = folder.resolve().parent
    if folder.resolve().name != name or not (artifact / MANIFEST).is_file():
        return
    if identity_of(read_manifest(artifact)) != identity:
        raise UsageError(
            "the export is of another state of this artifact, which was changed since",
            where=str(folder),
            fix=f"`sleepc export {artifact} --to {name} --force` makes it again.",
        )
