"""The folder of an export -> what sessions run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.backends.export_files import ExportForm, FilesExport, load_export
from sleepc.backends.mlir.devices import refuse_other_processor
from sleepc.backends.mlir.installed import missing_runtime
from sleepc.backends.mlir.manifest import MANIFEST, ModuleManifest
from sleepc.errors import UsageError
from sleepc.runtime.arguments import typed

if TYPE_CHECKING:
    from sleepc.backends.mlir.steps import IreeSteps

FORM = ExportForm("mlir", "MLIR", MANIFEST)


@dataclass
class MlirProgram(FilesExport):
    """An export for IREE."""

    manifest: ModuleManifest

    @typed
    def steps(self, *, device: str = "cpu", dtype: str | None = None, passes: int | None = None) -> IreeSteps:
        """Its steps."""
        from sleepc.backends.mlir.steps import IreeSteps

        self.check(device, dtype)
        self._check_passes(passes)
        self.check_bytes()
        return IreeSteps(self.folder, self.manifest, passes=passes, in_place=self.require_in_place)

    def _check_passes(self, passes: int | None) -> None:
        least, functions = 2 if "behind" in self.manifest.functions else 1, self.manifest.functions
        if passes in (None, self.manifest.passes) or ("again" in functions and passes is not None and passes >= least):
            return
        many = f"{least} or more" if "again" in functions else "no other number"
        what = f"these files sleep in {self.manifest.passes} passes, and can in {many}: not in {passes}"
        raise UsageError(what, where="passes", fix="Leave it out, or convert and export again.")

    def check(self, device: str = "cpu", dtype: str | None = None) -> None:
        """Raises UsageError if it cannot run so here, before anything is opened, and if nobody has said that its native
        code may.
        """
        if dtype is not None:
            raise UsageError(
                "an export has the precision that it was made with, which is fp32", where=f"--dtype {dtype}"
            )
        reason = missing_runtime()
        if reason is not None:
            raise UsageError(reason, where=FORM.backend)
        if device != "cpu":
            what = "these files run on the CPU; code for other devices is compiled, for hosts of their own"
            raise UsageError(what, where=f"--device {device}", fix="Use --device cpu.")
        where = str(self.folder / self.manifest.module)
        again = f"`sleepc export ARTIFACT --to {FORM.name} --force`"
        fix = f"Export again ({again}), with --arch host for this machine or --arch generic for every one of its kind."
        refuse_other_processor(self.manifest.machine, self.manifest.features, where, fix)
        if not self.native_code:
            what = "it is native code, which would run in this process with all that you may do"
            fix = (
                "If you trust where the folder comes from, say so with --native-code (in Python, to sleepc.load). Or "
                "run the artifact without an export."
            )
            raise UsageError(what, where=where, fix=fix)


@typed
def load(path: str | Path) -> MlirProgram:
    """See `load_export`."""
    return load_export(path, FORM, ModuleManifest, MlirProgram)
