"""The folder of an export -> what sessions run, checked before anything of it is believed. Imports no torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.backends.export import Export, check_still_of
from sleepc.backends.onnx.installed import missing_runtime
from sleepc.backends.onnx.manifest import FORMAT, MANIFEST, ExportManifest
from sleepc.backends.tunable import Setting, Tunable, available_threads, check_settings, threads_of
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.held_file import HeldFile, is_inside, load_whole, refuse_links_out
from sleepc.manifest import MANIFEST as ARTIFACT
from sleepc.runtime.arguments import typed
from sleepc.sealed_json import FileKind, read_sealed

if TYPE_CHECKING:
    from sleepc.backends.onnx.steps import OnnxSteps

FOLDER = "onnx"  # of an artifact
MAX_MANIFEST = 16 << 20
PIECES = (32, 64, 128, 256, 512)  # numbers of tokens that are tried
AGAIN = "The export is damaged or was edited: make it again with `sleepc export ARTIFACT --to onnx --force`."
KIND = FileKind("export", FORMAT, MAX_MANIFEST, "export again", AGAIN)


@dataclass
class OnnxProgram(Export):
    """An export whose files are held open: another one in the place of a file is a SleepcError."""

    folder: Path
    manifest: ExportManifest
    files: list[HeldFile]
    checked: bool = False

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
        threads, spins = int(settings.get("threads", 0)) or None, bool(settings.get("spins", True))
        steps = self._steps(device, dtype, threads=threads, spins=spins)
        steps.piece = int(settings.get("piece", steps.piece))
        return steps

    def _steps(self, device: str, dtype: str | None, **options: Any) -> OnnxSteps:
        from sleepc.backends.onnx.cuda import CUDA, DeviceSteps
        from sleepc.backends.onnx.steps import OnnxSteps

        provider = self.check(device, dtype)
        kind = DeviceSteps if provider == CUDA else OnnxSteps
        self.check_bytes()
        return kind(self.folder, self.manifest, provider=provider, in_place=self.require_in_place, **options)

    def nbytes(self) -> int:
        """See `Export.nbytes`: of graphs and weights."""
        return sum(file.size for file in self.files)

    def check_bytes(self) -> None:
        """Once: are the files' bytes those that were exported? Raises SleepcError if they are not."""
        if self.checked:
            return
        if not self.manifest.hashes:
            text = f"{self.folder} was exported before files had hashes: what was changed since cannot be told"
            warnings.warn(text, SleepcWarning, stacklevel=3)
        else:
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(HeldFile.sha256, self.files))
            for file, sha256 in zip(self.files, found, strict=True):
                if sha256 != self.manifest.hashes[file.path.name]:
                    raise SleepcError(f"{file.path.name} was changed after the export", where=str(file.path), fix=AGAIN)
        self.checked = True

    def require_in_place(self) -> None:
        """ONNX Runtime opens files by their paths: they are still those that were checked, or SleepcError."""
        for file in self.files:
            file.require_in_place()

    def check(self, device: str = "cpu", dtype: str | None = None) -> str:
        """The execution provider that runs it, before anything is opened."""
        if dtype is not None:
            raise UsageError(
                f"an export has the precision that it was made with, which is {self.manifest.precision}",
                where=f"--dtype {dtype}",
                fix="Export again with another --precision (fp32, fp16, int8, int4), and leave --dtype out.",
            )
        require_runtime()
        return provider_of(device, self.manifest)


def tunables() -> tuple[Tunable, ...]:
    """What may be set of how exports run on the CPU."""
    from sleepc.backends.onnx.steps import PIECE

    pieces = (PIECE, *(piece for piece in PIECES if piece != PIECE))
    waits = Tunable("spins", (True, False), "threads look for work all the time while they wait")
    threads = threads_of(available_threads())
    return (threads, waits, Tunable("piece", pieces, "tokens that are read at once"))


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
    """An artifact with an export in its folder `onnx`, or the export's own folder.

    Raises UsageError if there is none, if it is newer than this sleepc, or of another state of the artifact that it
    lies in; SleepcError if it is damaged.
    """
    given = Path(path)
    folder = given / FOLDER if not (given / MANIFEST).is_file() else given
    if not (folder / MANIFEST).is_file():
        _refuse_none(given)
    return load_whole(folder, _load)


def _load(folder: Path) -> OnnxProgram:
    manifest = _read(folder / MANIFEST)
    refuse_links_out(folder, "export", AGAIN)
    files = [_held(folder, name) for name in manifest.files]
    size = files[-1].size
    if size != manifest.weights_size:
        raise SleepcError(
            f"{manifest.weights} has {size} bytes instead of {manifest.weights_size}", where=str(folder), fix=AGAIN
        )
    check_still_of(folder, FOLDER, manifest.identity)
    return OnnxProgram(folder, manifest, files)


def _held(folder: Path, name: str) -> HeldFile:
    if not (folder / name).is_file():
        raise SleepcError(f"{name} is missing", where=str(folder), fix=AGAIN)
    if not is_inside(folder, folder / name):
        raise SleepcError(f"{name} leads out of the export", where=str(folder), fix=AGAIN)
    return HeldFile(folder / name)


def _refuse_none(given: Path) -> None:
    if (given / ARTIFACT).is_file():
        raise UsageError(
            f"{given} has no ONNX export", where="--backend onnx", fix=f"`sleepc export {given} --to onnx` makes one."
        )
    raise UsageError(
        f"{given} is neither an artifact with an ONNX export nor an export: it has no {MANIFEST}",
        where="--backend onnx",
        fix="`sleepc export ARTIFACT --to onnx` makes one.",
    )


def _read(path: Path) -> ExportManifest:
    """onnx.json, checked."""
    manifest, found = read_sealed(path, KIND, ExportManifest)
    if manifest.hashes and found != manifest.sha256:
        raise SleepcError(f"{MANIFEST} was changed after it was written", where=str(path), fix=AGAIN)
    return manifest
