"""The target `onnx`: programs become files, which ONNX Runtime runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.backends.contract import Draft, Target, Written, option
from sleepc.backends.export import Export
from sleepc.backends.onnx.installed import EXPORTERS, about, missing_exporter, missing_runtime
from sleepc.backends.onnx.load import OnnxProgram, load, tunables
from sleepc.backends.onnx.manifest import MANIFEST
from sleepc.backends.tunable import Setting, Tunable
from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import HeldFile
from sleepc.progress import Progress

if TYPE_CHECKING:
    from sleepc.backends.onnx.call import Style
    from sleepc.backends.onnx.rounding.fit import FittedBits
    from sleepc.backends.report import Report
    from sleepc.ir.program import ProgramGraphs
    from sleepc.passes.base import Stage
    from sleepc.runtime.steps import Steps

BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 9.0, "int4": 5.0}  # of a weight; the last two with a scale for 32 of them
KNOWN = {"precision": (*BITS, "source"), "ops": ("ort", "portable"), "ep": ("cpu", "cuda")}
SLEEPS = ("same", "portable")
FITTING = ("fast", "size", "max_loss")  # how weights of int4 are made
FORMS: dict[str, dict[str, Any]] = {
    "ort": {"columns": True},
    "whole": {"columns": False},
    "portable": {"ops": "portable", "columns": False},
    "portable-columns": {"ops": "portable", "columns": True},
}


@dataclass(frozen=True)
class Options:
    """How files are written."""

    precision: str = option(
        "fp32",
        "Precision of linear layers and embeddings: fp32, fp16, int8, int4, or source (as the GGUF file has them that "
        "the model came from). All else is float32.",
    )
    ops: str = option(
        "ort",
        "ort (ONNX Runtime's kernels, opset 23) or portable (plain operators of opset 18).",
        tried=("ort", "portable"),
    )
    ep: str = option("cpu", "The execution provider that the files are for: cpu or cuda.")
    sleep_ops: str = option("same", "Operators of sleeps: same (as --ops), or portable in files of --ops ort too.")
    one_token: bool = option(False, "Also write wake_one.onnx, for calls of one token.")
    packed: bool = option(
        False,
        "With fp32: calls of one token read what a GGUF file has in 4 bits as it has it, exactly, from a second copy.",
        tried=(False, True),
    )
    fast: bool = option(False, "With int4: round to the nearest, without a text and the minutes that fitting takes.")
    size: str = option("", "With int4: the most that the model's own weights may take: 120MB. Some then have 8 bits.")
    max_loss: str = option("", "With int4: the most that perplexity may grow, 4% by default. Some then have 8 bits.")


class OnnxTarget(Target):
    """Files of ONNX, with ONNX Runtime's kernels or plain operators."""

    name = "onnx"
    runtime = "ONNX Runtime"
    mark = MANIFEST
    packages = EXPORTERS
    options = Options

    def missing(self) -> str | None:
        """See `Target.missing`."""
        return missing_exporter()

    def missing_runtime(self) -> str | None:
        """See `Target.missing_runtime`."""
        return missing_runtime()

    def about(self) -> str:
        """See `Target.about`."""
        return about()

    def check(self, options: Options) -> None:
        """See `Target.check`."""
        for name, known in (*KNOWN.items(), ("sleep_ops", SLEEPS)):
            if getattr(options, name) not in known:
                what = f"unknown {name} {getattr(options, name)!r}"
                raise UsageError(what, where=f"--{name.replace('_', '-')}", fix=f"One of: {', '.join(known)}.")
        if options.ops == "portable" and options.precision in ("int8", "int4", "source"):
            raise UsageError(
                f"{options.precision} needs kernels of ONNX Runtime's own, and portable files have none",
                where=f"--ops portable --precision {options.precision}",
                fix="Use --ops ort, or --precision fp32 or fp16.",
            )
        _check_fitting(options)
        if options.packed and not (options.precision == "fp32" and _columns(options)):
            raise UsageError(
                "a second copy of weights in 4 bits is for files in fp32 for ONNX Runtime on a CPU",
                where=f"--packed --precision {options.precision} --ops {options.ops} --ep {options.ep}",
                fix="Leave out --packed, or the others.",
            )
        reason = self.missing()
        if reason is not None:
            raise UsageError(reason, where=f"--to {self.name}")

    def lowering(self, program: ProgramGraphs, options: Options) -> tuple[Stage, ...]:
        """See `Target.lowering`: what is exported is in float32; plain operators have no kernels for patterns."""
        from sleepc.ir.levels import LOWERED
        from sleepc.ir.weights import packed_of
        from sleepc.passes.pipeline import lower_stages, widened

        found = [stored.how.bits for param in program.params.values() if (stored := packed_of(param)) is not None]
        if options.precision == "source" and not found:
            raise UsageError(
                "no weight of this program is one of a quantised GGUF file",
                where="--precision source",
                fix="Convert a GGUF file (again, if that was done by an older version), or use int8, int4 or fp32.",
            )
        if options.packed and 4 not in found:
            raise UsageError(
                "no weight of this program is one of a GGUF file in 4 bits", where="--packed", fix="Leave it out."
            )
        if program.learn is not None and options.precision != "fp32":
            raise UsageError(
                "sleeps of this program take steps of gradient descent, for which weights are there in float32",
                where=f"--precision {options.precision}",
                fix="Use --precision fp32, or convert with another --consolidation.",
            )
        kernels = LOWERED if options.ops == "ort" else ()
        return (*widened(program), *lower_stages(kernels, masks=not _columns(options)))

    def write(self, program: ProgramGraphs, options: Options, draft: Draft) -> Written:
        """See `Target.write`: weights are checked by value, and what ONNX Runtime computes against the eager backend.
        The manifest, with the report, is written last.
        """
        from sleepc.backends.onnx.check.check import CheckedFiles, check
        from sleepc.backends.onnx.host_instructions import instructions_of
        from sleepc.backends.onnx.lower import write_files
        from sleepc.backends.onnx.weights import Weights

        style, folder = style_of(options), draft.folder
        fitted = _fitted(options, draft)
        draft.progress("lowering", None)
        weights = Weights.of(program, folder, style.precision, fitted.weights if fitted else None)
        manifest = write_files(program, folder, style, ep=options.ep, identity=draft.identity, weights=weights)
        wish = {name: getattr(options, name) for name in FITTING}
        manifest = manifest.model_copy(update={"rules": instructions_of(manifest), **wish})
        subject = CheckedFiles(draft.step, folder, manifest, draft.tokens, draft.progress)
        report = check(subject, weights)
        report.facts |= fitted.facts if fitted else {}
        if not report.ok:
            fix = "Use a wider --precision." if report.only_rounding else "Please report the model and these figures."
            raise SleepcError(report.failures(), fix=f"Nothing was written. {fix}")
        hashes = {file: HeldFile(folder / file).sha256() for file in manifest.files}
        manifest = manifest.model_copy(update={"report": report.to_json()}).sealed(hashes)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        return Written(manifest.report, sorted(manifest.files))

    def open(self, path: Path) -> OnnxProgram:
        """See `Target.open`."""
        return load(path)

    def verify(self, export: Export, tokens: Sequence[int], progress: Progress, like: Steps | None) -> Report:
        """See `Target.verify`."""
        from sleepc.backends.check.in_place import verify_export

        assert isinstance(export, OnnxProgram)
        return verify_export(export, self.runtime, tokens, progress, like)

    def tunables(self, device: str = "cpu") -> tuple[Tunable, ...]:
        """See `Target.tunables`."""
        return tunables() if device == "cpu" else ()

    def predicted(self, kind: str) -> Sequence[tuple[Mapping[str, Setting], float]]:
        """See `Target.predicted`."""
        if kind not in KNOWN["ep"]:
            return ()
        return [({"precision": precision, "ops": "ort", "ep": kind}, bits) for precision, bits in BITS.items()]

    def options_of(self, export: Export) -> Mapping[str, Setting]:
        """See `Target.options_of`."""
        assert isinstance(export, OnnxProgram)
        return {each.name: getattr(export.manifest, each.name) for each in fields(Options)}

    def forms(self) -> Mapping[str, Callable[[ProgramGraphs, Path], Steps]]:
        """See `Target.forms`."""
        return {name: partial(_lowered, style=style) for name, style in FORMS.items()}


def _check_fitting(options: Options) -> None:
    """Do the options of fitting say something, and not against each other?"""
    from sleepc.quantities import bytes_of, share_of

    given = [f"--{name.replace('_', '-')}" for name in FITTING if getattr(options, name)]
    if given and options.precision != "int4":
        what = f"{', '.join(given)} says how weights in 4 bits are made"
        raise UsageError(what, where=f"--precision {options.precision}", fix="Use --precision int4, or leave it out.")
    if options.fast and (options.size or options.max_loss):
        what = "--fast rounds every weight alike, so that neither a size nor a loss can be asked for"
        raise UsageError(what, where=", ".join(given), fix="Leave out --fast, or the others.")
    if options.size:
        bytes_of(options.size, "--size")
    if options.max_loss:
        share_of(options.max_loss, "--max-loss")


def _fitted(options: Options, draft: Draft) -> FittedBits | None:
    """Weights in few bits as a text has them fitted; the part of it that the checks do not read."""
    if options.precision != "int4" or options.fast:
        return None
    import numpy as np

    from sleepc.backends.onnx.check.quality import TEXT
    from sleepc.backends.onnx.rounding.fit import Wish, fit

    tokens = np.array(draft.tokens[TEXT:], np.int64)
    return fit(draft.step, tokens, Wish.of(options.size, options.max_loss), draft.progress)


def style_of(options: Options) -> Style:
    """Options as a style. Rings are written by the host only if it shares memory with the graph, and is ours."""
    from sleepc.backends.onnx.call import Style

    return Style(
        ops=options.ops,  # type: ignore[arg-type]
        precision=options.precision,  # type: ignore[arg-type]
        columns=_columns(options),
        plain_sleeps=options.sleep_ops == "portable",
        one_token=options.one_token,
        packed=options.packed,
    )


def options_of(style: Style) -> Options:
    """The options whose files have a style, or what is nearest to it."""
    return Options(style.precision, style.ops, "cpu" if style.columns else "cuda")


def _columns(options: Options) -> bool:
    return options.ops == "ort" and options.ep == "cpu"


def _lowered(program: ProgramGraphs, folder: Path, *, style: dict[str, Any]) -> Steps:
    from sleepc.backends.onnx.call import Style
    from sleepc.backends.onnx.lower import write_files
    from sleepc.backends.onnx.steps import OnnxSteps
    from sleepc.passes.runner import run_stages

    stages = TARGET.lowering(program, options_of(Style(**style)))
    return OnnxSteps(folder, write_files(run_stages(program, stages), folder, Style(**style)), threads=1)


TARGET = OnnxTarget()
