"""The target `inductor`: a token's step as native code, for this artifact on machines like this one. Imports no torch
before it writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.backends.contract import Draft, HostTarget, Written
from sleepc.backends.eager.code_files import MANIFEST, NAME, read_code
from sleepc.backends.report import Figure, Report
from sleepc.errors import SleepcError, UsageError

if TYPE_CHECKING:
    from sleepc.ir.program import ProgramGraphs
    from sleepc.passes.base import Stage


@dataclass(frozen=True)
class CodeOptions:
    """None: the code is for this machine."""


class InductorTarget(HostTarget):
    """A folder of packages of PyTorch's inductor, for `--compile --native-code`."""

    name = NAME
    runtime = "PyTorch, as compiled code"
    mark = MANIFEST
    packages = ("torch",)
    options = CodeOptions

    def missing(self) -> str | None:
        """See `Exporter.missing`."""
        return None if find_spec("torch") else "PyTorch is not installed: pip install torch"

    def check(self, options: CodeOptions) -> None:
        """See `Exporter.check`."""
        reason = self.missing()
        if reason is not None:
            raise UsageError(reason, where=f"--to {self.name}")

    def lowering(self, program: ProgramGraphs, options: CodeOptions) -> tuple[Stage, ...]:
        """See `Exporter.lowering`: what is compiled are the graphs as they are."""
        return ()

    def write(self, program: ProgramGraphs, options: CodeOptions, draft: Draft) -> Written:
        """See `Exporter.write`."""
        from sleepc.backends.eager.ahead import check_step, write_step
        from sleepc.backends.listed_files import sealed

        manifest = write_step(program, draft.folder, draft.progress)
        report = check_step(draft, manifest)
        if not report.ok:
            raise SleepcError(report.failures(), fix="Nothing was written. Please report the model and these figures.")
        whole = sealed(manifest.model_copy(update={"report": report.to_json()}))
        (draft.folder / MANIFEST).write_text(whole.model_dump_json(indent=1) + "\n")
        return Written(whole.report, sorted(manifest.files))

    def verify(self, folder: Path) -> Report:
        """See `HostTarget.verify`: the files, of which none is loaded."""
        started = time.perf_counter()
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder} has no {MANIFEST}", fix=f"`sleepc export ARTIFACT --to {NAME}` makes one.")
        _, held = read_code(folder)
        rows = [Figure("files", "changed", 0, 0, f"{len(held)} by size and sha256")]
        return Report(rows, seconds=time.perf_counter() - started)


TARGET = InductorTarget()
