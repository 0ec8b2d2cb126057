"""The target `mlir`: programs become a module of IREE, beside their weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.backends.contract import Draft, Target, Written, option
from sleepc.backends.export import Export
from sleepc.backends.mlir.devices import CPU, DEVICES, HOST, arch_of_processor, features_for, refuse_other_processor
from sleepc.backends.mlir.installed import EXPORTERS, about, missing_exporter, missing_runtime
from sleepc.backends.mlir.load import MlirProgram, load
from sleepc.backends.mlir.manifest import MANIFEST
from sleepc.backends.processor import architecture
from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import HeldFile
from sleepc.progress import Progress

if TYPE_CHECKING:
    from sleepc.backends.mlir.lower import ModuleStyle
    from sleepc.backends.report import Report
    from sleepc.ir.program import ProgramGraphs
    from sleepc.passes.base import Stage
    from sleepc.runtime.steps import Steps

DIALECTS = ("linalg", "torch", "stablehlo")


@dataclass(frozen=True)
class IreeOptions:
    """How files are written."""

    iree: str = option(
        CPU, f"What IREE compiles for: {', '.join(DEVICES)}. Code for other devices than the CPU is added, and not run."
    )
    arch: str = option("", "The architecture of that device: sm_86, gfx942, x86-64-v3, host …")
    emit: str = option("", f"Keep the functions' text too, in a dialect: {', '.join(DIALECTS)}.")
    chunk: int = option(16, "Tokens that are read at once.")


class MlirTarget(Target):
    """Modules of IREE, by torch-mlir."""

    name = "mlir"
    runtime = "IREE"
    mark = MANIFEST
    packages = EXPORTERS
    options = IreeOptions
    compiles = True
    native = True

    def missing(self) -> str | None:
        """See `Target.missing`."""
        return missing_exporter()

    def missing_runtime(self) -> str | None:
        """See `Target.missing_runtime`."""
        return missing_runtime()

    def about(self) -> str:
        """See `Target.about`."""
        return about()

    def check(self, options: IreeOptions) -> None:
        """See `Target.check`."""
        if options.iree not in DEVICES:
            what = f"unknown device {options.iree!r}"
            raise UsageError(what, where="--iree", fix=f"One of: {', '.join(DEVICES)}.")
        if options.emit and options.emit not in DIALECTS:
            what = f"unknown dialect {options.emit!r}"
            raise UsageError(what, where="--emit", fix=f"One of: {', '.join(DIALECTS)}.")
        if not 2 <= options.chunk <= 1024:
            raise UsageError(f"a chunk of {options.chunk} tokens", where="--chunk", fix="Give 2 to 1024.")
        _check_arch(options)
        _check_processor(options)
        reason = self.missing()
        if reason is not None:
            raise UsageError(reason, where=f"--to {self.name}")

    def lowering(self, program: ProgramGraphs, options: IreeOptions) -> tuple[Stage, ...]:
        """See `Target.lowering`: what is exported is in float32, in PyTorch's operators."""
        from sleepc.passes.pipeline import lower_stages, widened

        return (*widened(program), *lower_stages(()))

    def write(self, program: ProgramGraphs, options: IreeOptions, draft: Draft) -> Written:
        """See `Target.write`. The manifest, with the report, is written last."""
        from sleepc.backends.mlir.check import check
        from sleepc.backends.mlir.lower import write_files

        manifest = write_files(
            program, draft.folder, style_of(options), identity=draft.identity, progress=draft.progress
        )
        report = check(draft, manifest)
        if not report.ok:
            raise SleepcError(report.failures(), fix="Nothing was written. Please report the model and these figures.")
        hashes = {file: HeldFile(draft.folder / file).sha256() for file in manifest.files}
        manifest = manifest.model_copy(update={"report": report.to_json()}).sealed(hashes)
        (draft.folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        return Written(manifest.report, sorted(manifest.files))

    def open(self, path: Path) -> MlirProgram:
        """See `Target.open`."""
        return load(path)

    def verify(self, export: Export, tokens: Sequence[int], progress: Progress, like: Steps | None) -> Report:
        """See `Target.verify`."""
        from sleepc.backends.check.in_place import verify_export

        assert isinstance(export, MlirProgram)
        return verify_export(export, self.runtime, tokens, progress, like)

    def forms(self) -> Mapping[str, Callable[[ProgramGraphs, Path], Steps]]:
        """See `Target.forms`."""
        return {self.name: _lowered}


def style_of(options: IreeOptions) -> ModuleStyle:
    """IreeOptions as a style."""
    from sleepc.backends.mlir.lower import ModuleStyle

    arch = options.arch or next(iter(DEVICES[options.iree].known), "")
    compiled = "stablehlo" if options.emit == "stablehlo" else "linalg"
    return ModuleStyle(options.chunk, options.iree, arch, compiled, options.emit)


def _check_arch(options: IreeOptions) -> None:
    device = DEVICES[options.iree]
    if options.arch in device.refused:
        what, fix = (
            f"IREE 3.13 does not compile for {options.arch}",
            f"Use --arch {device.instead}, which newer devices run.",
        )
        raise UsageError(what, where="--arch", fix=fix)
    if options.arch and options.arch not in device.known:
        fix = f"One of: {', '.join(device.known)}." if device.known else "Leave it out: this device has none."
        raise UsageError(f"unknown architecture {options.arch!r} of {options.iree}", where="--arch", fix=fix)


def _check_processor(options: IreeOptions) -> None:
    """Raises UsageError if the code for processors does not run on this one, where it is checked."""
    arch = arch_of_processor(options.iree, options.arch)
    if arch == HOST and not features_for(HOST):
        what = "this system does not say what its processor can do, and no other could tell whether the code runs there"
        raise UsageError(what, where=f"--arch {HOST}", fix="Leave it out.")
    fix = "It is checked where it is made: give --iree llvm-cpu --arch generic, or export on a newer processor."
    refuse_other_processor(architecture(), features_for(arch), f"--arch {arch}", fix)


def _lowered(program: ProgramGraphs, folder: Path) -> Steps:
    from sleepc.backends.mlir.lower import ModuleStyle, write_files
    from sleepc.backends.mlir.steps import IreeSteps
    from sleepc.passes.runner import run_stages

    lowered = run_stages(program, TARGET.lowering(program, IreeOptions()))
    return IreeSteps(folder, write_files(lowered, folder, ModuleStyle(chunk=4)), threads=1)


TARGET = MlirTarget()
