"""The target `gguf`: a file that llama.cpp runs. Imports no torch before it writes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.backends.contract import Draft, HostTarget, Written, option
from sleepc.backends.gguf.manifest import FILES, MANIFEST, NAME, GgufManifest
from sleepc.backends.listed_files import facts_in, sealed, verified
from sleepc.backends.report import Report
from sleepc.errors import SleepcError, UsageError
from sleepc.version import __version__

if TYPE_CHECKING:
    from sleepc.ir.program import ProgramGraphs
    from sleepc.passes.base import Stage

DTYPES = ("auto", "f32", "f16", "bf16", "q8_0", "q4_0")


@dataclass(frozen=True)
class GgufOptions:
    """What the file's matrices are in."""

    dtype: str = option("auto", f"Of a GGUF file's matrices: {', '.join(DTYPES)}; auto: bf16 of a bfloat16 model, f16.")


class GgufTarget(HostTarget):
    """A folder with model.gguf, the tokenizer's files, a model card and the licence."""

    name = NAME
    runtime = "llama.cpp, and what runs its files"
    mark = MANIFEST
    library = "gguf"
    packages = ("gguf",)
    options = GgufOptions
    reads = True

    def missing(self) -> str | None:
        """See `Exporter.missing`."""
        if find_spec("torch") is None:
            return "PyTorch is not installed: pip install torch"
        return None if find_spec("gguf") else "the gguf package is not installed: pip install 'sleepc[gguf]'"

    def check(self, options: GgufOptions) -> None:
        """See `Exporter.check`."""
        if options.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {options.dtype!r}", where="--dtype", fix=f"One of: {', '.join(DTYPES)}.")
        reason = self.missing()
        if reason is not None:
            raise UsageError(reason, where=f"--to {self.name}")

    def lowering(self, program: ProgramGraphs, options: GgufOptions) -> tuple[Stage, ...]:
        """See `Exporter.lowering`: as for `--to hf`."""
        from sleepc.passes.adapt.merge_low_rank import MergeLowRank
        from sleepc.passes.base import Stage

        return (Stage("merge", "STEP", (MergeLowRank(),)),)

    def write(self, program: ProgramGraphs, options: GgufOptions, draft: Draft) -> Written:
        """See `Exporter.write`."""
        from sleepc.backends.gguf.write import FILE, write_gguf

        started = time.perf_counter()
        made = write_gguf(draft.step, options.dtype, draft)
        report = Report(made.rows, {"weights": made.weights, "dtype": made.kind}, made.perplexity)
        report.seconds = time.perf_counter() - started
        if not report.ok:
            raise SleepcError(report.failures(), fix="Nothing was written. Please report the model and these figures.")
        manifest = GgufManifest(
            sleepc=__version__,
            identity=draft.identity,
            dtype=made.kind,
            files=facts_in(draft.folder),
            report=report.to_json(),
        )
        (draft.folder / MANIFEST).write_text(sealed(manifest).model_dump_json(indent=1) + "\n")
        return Written(report.to_json(), [FILE])

    def verify(self, folder: Path) -> Report:
        """See `HostTarget.verify`: no file is loaded."""
        return verified(folder, MANIFEST, FILES, GgufManifest)


TARGET = GgufTarget()
