"""The target `triton`: kernels of a program's memories, compiled for GPUs that need not be here. Imports neither torch
nor Triton before it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.backends.contract import Draft, HostTarget, Written, option
from sleepc.backends.listed_files import facts_of, sealed
from sleepc.backends.report import Report
from sleepc.backends.triton.devices import DEVICES, Gpu, find_device
from sleepc.backends.triton.files import check_folder, rows_of
from sleepc.backends.triton.manifest import MANIFEST, KernelsManifest
from sleepc.errors import UsageError
from sleepc.version import __version__

if TYPE_CHECKING:
    from sleepc.ir.program import ProgramGraphs
    from sleepc.passes.base import Stage


@dataclass(frozen=True)
class KernelOptions:
    """What is compiled for."""

    target: str = option("", f"GPUs to compile kernels for, with commas between them: {', '.join(DEVICES)}.")


class TritonTarget(HostTarget):
    """A folder of kernels, with a manifest and a launcher in C for every kind of GPU."""

    name = "triton"
    runtime = "host programs on a GPU"
    mark = MANIFEST
    packages = ("triton",)
    options = KernelOptions

    def missing(self) -> str | None:
        """See `Exporter.missing`."""
        return None if find_spec("triton") else "Triton is not installed: pip install 'sleepc[triton]'"

    def check(self, options: KernelOptions) -> None:
        """See `Exporter.check`."""
        if not devices_of(options):
            fix = f"Give one or more of {', '.join(DEVICES)}, with commas between them."
            raise UsageError("no GPU is named", where="--target", fix=fix)
        reason = self.missing()
        if reason is not None:
            raise UsageError(reason, where=f"--to {self.name}")
        import triton

        if triton.knobs.runtime.interpret:
            raise UsageError(
                "nothing is compiled in Triton's interpreter", where="TRITON_INTERPRET", fix="Unset this variable."
            )

    def lowering(self, program: ProgramGraphs, options: KernelOptions) -> tuple[Stage, ...]:
        """See `Exporter.lowering`: the graphs are read as they are."""
        return ()

    def write(self, program: ProgramGraphs, options: KernelOptions, draft: Draft) -> Written:
        """See `Exporter.write`: nothing can run here, so what is checked is what the kernels take."""
        from sleepc.backends.triton.ahead import write_device
        from sleepc.backends.triton.plan import operations

        found, rows, targets = operations(program), [], {}
        names: list[str] = []
        for device in devices_of(options):
            draft.progress(f"compiling for {device.name}", None)
            made = write_device(draft.folder, device, found, draft.identity)
            targets[device.name] = f"{device.name}.json"
            names += [targets[device.name], *made.files]
            rows += rows_of(made)
        report = Report(rows).to_json()
        whole = KernelsManifest(
            sleepc=__version__,
            identity=draft.identity,
            targets=targets,
            files={name: facts_of(draft.folder / name) for name in targets.values()},
            report=report,
        )
        (draft.folder / MANIFEST).write_text(sealed(whole).model_dump_json(indent=1) + "\n")
        return Written(report, names)

    def verify(self, folder: Path) -> Report:
        """See `HostTarget.verify`."""
        return check_folder(folder)


def devices_of(options: KernelOptions) -> list[Gpu]:
    """Every kind of GPU that is named, once. Raises UsageError for one that is not known."""
    names = dict.fromkeys(name.strip() for name in options.target.split(","))
    return [find_device(name) for name in names if name]


TARGET = TritonTarget()
