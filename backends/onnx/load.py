"""The folder of an export -> what sessions run. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.backends.export_files import ExportForm, FilesExport, load_export
from sleepc.backends.onnx.installed import missing_runtime
from sleepc.backends.onnx.manifest import FORMAT, MANIFEST, ExportManifest
from sleepc.backends.onnx.pages import in_large_pages, large_pages_here
from sleepc.backends.tunable import Setting, Tunable, available_threads, check_settings, threads_of
from sleepc.errors import UsageError
from sleepc.runtime.arguments import typed

if TYPE_CHECKING:
    from sleepc.backends.onnx.steps import OnnxSteps

FORM = ExportForm("onnx", "ONNX", MANIFEST, FORMAT)
PIECES = (64, 128, 256)  # numbers of tokens that are tried: others were slower, or as fast in more memory


@dataclass
class OnnxProgram(FilesExport):
    """An export for ONNX Runtime."""

    manifest: ExportManifest

    @typed
    def steps(self, *, device: str = "cpu", dtype: str | None = None, passes: int | None = None) -> OnnxSteps:
        """Its steps; `passes` other than the export's own are for who compares them."""
        steps = self._steps(device, dtype)
        steps.passes = passes
        return steps

    def tuned_steps(
        self, settings: Mapping[str, Setting], *, device: str = "cpu", dtype: str | None = None
    ) -> OnnxSteps:
        """See `Export.tuned_steps`."""
        check_settings("an export", tunables() if device == "cpu" else (), settings)
        threads, spin = int(settings.get("threads", 0)) or None, str(settings.get("spin", "long"))
        with in_large_pages() if settings.get("pages") == "large" else nullcontext():
            steps = self._steps(device, dtype, threads=threads, spin=spin)
        steps.piece = int(settings.get("piece", steps.piece))
        return steps

    def _steps(self, device: str, dtype: str | None, **options: Any) -> OnnxSteps:
        from sleepc.backends.onnx.cuda import CUDA, DeviceSteps
        from sleepc.backends.onnx.steps import OnnxSteps

        provider = self.check(device, dtype)
        kind = DeviceSteps if provider == CUDA else OnnxSteps
        self.check_bytes()
        return kind(self.folder, self.manifest, provider=provider, in_place=self.require_in_place, **options)

    def check(self, device: str = "cpu", dtype: str | None = None) -> str:
        """The execution provider that runs it, before anything is opened."""
        if dtype is not None:
            raise UsageError(
                f"an export has the precision that it was made with, which is {self.manifest.precision}",
                where=f"--dtype {dtype}",
                fix="Export again with another --precision (fp32, fp16, int8, int4, source), and leave --dtype out.",
            )
        require_runtime()
        return provider_of(device, self.manifest)


def tunables() -> tuple[Tunable, ...]:
    """What may be set of how exports run on the CPU."""
    from sleepc.backends.onnx.installed import has_short_spin
    from sleepc.backends.onnx.steps import PIECE, SPINS

    pieces = (PIECE, *(piece for piece in PIECES if piece != PIECE))
    spins = tuple(name for name in SPINS if name != "short" or has_short_spin())
    waits = Tunable("spin", spins, "how long threads that wait look for work before they sleep")
    threads = threads_of(available_threads())
    large = (Tunable("pages", ("small", "large"), "pages of memory that hold weights"),) if large_pages_here() else ()
    return (threads, waits, Tunable("piece", pieces, "tokens that are read at once"), *large)


def require_runtime() -> None:
    """Raises UsageError, with what to install, if ONNX Runtime is missing or too old."""
    reason = missing_runtime()
    if reason is not None:
        raise UsageError(reason, where="--backend onnx")


def provider_of(device: str, manifest: ExportManifest) -> str:
    """The execution provider for a device. Raises UsageError if it is not there, or the files are not for it."""
    import onnxruntime

    if device == "cpu":
        return "CPUExecutionProvider"
    if device != "cuda":
        raise UsageError(f"unknown device {device!r}", where="--device", fix="One of: cpu, cuda.")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UsageError(
            "this ONNX Runtime has no CUDA",
            where="--device cuda",
            fix="pip uninstall -y onnxruntime && pip install 'sleepc[onnx-gpu]', or use --device cpu.",
        )
    if manifest.ep != "cuda":
        raise UsageError(
            f"these files were exported for --ep {manifest.ep}",
            where="--device cuda",
            fix="Export again with --ep cuda, or use --device cpu.",
        )
    return "CUDAExecutionProvider"


@typed
def load(path: str | Path) -> OnnxProgram:
    """See `load_export`."""
    return load_export(path, FORM, ExportManifest, OnnxProgram)
