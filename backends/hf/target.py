"""The target `hf`: a directory that transformers, and runtimes that know its classes, load without code of ours.
Imports no torch before it writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.backends.contract import Draft, HostTarget, Written, option
from sleepc.backends.hf.engines import ENGINE, ENGINES, find_engine
from sleepc.backends.hf.manifest import FILES, MANIFEST, NAME, NativeManifest
from sleepc.backends.listed_files import facts_in, sealed, verified
from sleepc.backends.report import Report
from sleepc.errors import SleepcError, UsageError
from sleepc.version import __version__

if TYPE_CHECKING:
    from sleepc.ir.program import ProgramGraphs
    from sleepc.passes.base import Stage

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class CheckpointOptions:
    """What the directory is for."""

    runtime: str = option(ENGINE, f"What a checkpoint is to be loaded by: {', '.join(ENGINES)}.", flag="--for")
    dtype: str = option("auto", f"Of a checkpoint's weights: {', '.join(DTYPES)}; auto: the artifact's.")


class HfTarget(HostTarget):
    """A directory with config.json, weights, the tokenizer's files, a model card and the licence."""

    name = NAME
    runtime = "transformers, and what knows its classes"
    mark = MANIFEST
    library = "transformers"
    packages = ("transformers",)
    options = CheckpointOptions
    reads = True

    def missing(self) -> str | None:
        """See `Exporter.missing`."""
        return None if find_spec("torch") else "PyTorch is not installed: pip install torch"

    def check(self, options: CheckpointOptions) -> None:
        """See `Exporter.check`."""
        find_engine(options.runtime)
        if options.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {options.dtype!r}", where="--dtype", fix=f"One of: {', '.join(DTYPES)}.")
        reason = self.missing()
        if reason is not None:
            raise UsageError(reason, where=f"--to {self.name}")

    def lowering(self, program: ProgramGraphs, options: CheckpointOptions) -> tuple[Stage, ...]:
        """See `Exporter.lowering`: LoRA matrices go into the weights that they stand beside."""
        from sleepc.passes.adapt.merge_low_rank import MergeLowRank
        from sleepc.passes.base import Stage

        return (Stage("merge", "STEP", (MergeLowRank(),)),)

    def write(self, program: ProgramGraphs, options: CheckpointOptions, draft: Draft) -> Written:
        """See `Exporter.write`."""
        from sleepc.backends.hf.checkpoint import write_checkpoint

        started = time.perf_counter()
        made = write_checkpoint(draft.step, options.runtime, options.dtype, draft)
        report = Report(made.rows, {"weights": made.weights, "class": made.cls})
        report.seconds = time.perf_counter() - started
        if not report.ok:
            raise SleepcError(report.failures(), fix="Nothing was written. Please report the model and these figures.")
        files = facts_in(draft.folder)
        manifest = NativeManifest(
            sleepc=__version__,
            identity=draft.identity,
            cls=made.cls,
            runtime=options.runtime,
            files=files,
            report=report.to_json(),
        )
        (draft.folder / MANIFEST).write_text(sealed(manifest).model_dump_json(indent=1) + "\n")
        return Written(report.to_json(), [name for name in files if name.endswith(".safetensors")])

    def verify(self, folder: Path) -> Report:
        """See `HostTarget.verify`: no file is loaded."""
        return verified(folder, MANIFEST, FILES, NativeManifest)


TARGET = HfTarget()
