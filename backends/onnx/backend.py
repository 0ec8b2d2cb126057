"""The ONNX backend: programs become files, which ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.backends.onnx.installed import about, missing_exporter
from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import HeldFile
from sleepc.progress import Progress, silent

if TYPE_CHECKING:
    from sleepc.backends.onnx.call import Style
    from sleepc.backends.onnx.manifest import Manifest
    from sleepc.ir.program import ProgramGraphs

__all__ = ["about", "export", "missing", "name", "prepared", "style_of"]

name = "onnx"
PRECISIONS, OPERATORS, PROVIDERS = ("fp32", "fp16", "int8", "int4"), ("ort", "portable"), ("cpu", "cuda")


def missing() -> str | None:
    """Why the backend cannot run here, with what to install."""
    return missing_exporter()


def style_of(precision: str, ops: str, ep: str) -> Style:
    """Options as a style. Raises UsageError for those that there are not, or where something is not installed."""
    for option, value, known in (
        ("--precision", precision, PRECISIONS),
        ("--ops", ops, OPERATORS),
        ("--ep", ep, PROVIDERS),
    ):
        if value not in known:
            raise UsageError(f"there is no {value!r}", where=option, fix=f"One of: {', '.join(known)}.")
    if ops == "portable" and precision in ("int8", "int4"):
        raise UsageError(
            f"{precision} needs kernels of ONNX Runtime's own, and portable files have none",
            where=f"--ops portable --precision {precision}",
            fix="Use --ops ort, or --precision fp32 or fp16.",
        )
    reason = missing()
    if reason is not None:
        raise UsageError(reason, where="--to onnx")
    from sleepc.backends.onnx.call import Style

    # Rings are written by the host only where it shares memory with the graph, and is ours.
    return Style(ops=ops, precision=precision, columns=ops == "ort" and ep == "cpu")  # type: ignore[arg-type]


def prepared(program: ProgramGraphs) -> ProgramGraphs:
    """The program in float32, which is what is exported. Raises UsageError for one in float64."""
    import torch

    from sleepc.passes.adapt.retype import Retype
    from sleepc.passes.base import Stage
    from sleepc.passes.runner import run_stages

    if program.dtype == torch.float64:
        raise UsageError("a float64 program is not exported", fix="Convert it with --dtype float32.")
    if program.dtype == torch.float32:
        return program
    return run_stages(program, (Stage("retype", "STEP", (Retype(torch.float32),)),))


def export(
    program: ProgramGraphs,
    folder: Path,
    *,
    tokens: Sequence[int],
    precision: str = "fp32",
    ops: str = "ort",
    ep: str = "cpu",
    identity: str = "",
    progress: Progress = silent,
) -> Manifest:
    """Write a program at level STEP into `folder`, and check the files: their weights by value, what they compute in
    ONNX Runtime against the eager backend on `tokens` (see `check`). The manifest, with the report, is written last.

    Raises UsageError for options that do not fit, SleepcError where a check fails: the folder is then not to be used.
    """
    style = style_of(precision, ops, ep)
    from sleepc.backends.onnx.check.check import check
    from sleepc.backends.onnx.check.weights import Written
    from sleepc.backends.onnx.host_instructions import instructions_of
    from sleepc.backends.onnx.lower import lower
    from sleepc.backends.onnx.manifest import MANIFEST

    progress("lowering", None)
    program = prepared(program)
    written: Written = {}
    manifest = lower(program, folder, style, ep=ep, identity=identity, written=written)
    manifest = manifest.model_copy(update={"rules": instructions_of(manifest)})
    report = check(program, folder, manifest, written, tokens, progress)
    if not report.ok:
        fix = "Use a wider --precision." if report.only_rounding else "Please report the model and these figures."
        raise SleepcError(report.failures(), fix=f"Nothing was written. {fix}")
    hashes = {file: HeldFile(folder / file).sha256() for file in manifest.files}
    manifest = manifest.model_copy(update={"report": report.to_json()}).sealed(hashes)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest
