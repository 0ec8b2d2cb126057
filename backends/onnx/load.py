"""The folder of an export -> what sessions run, checked before anything of it is believed. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from sleepc.backends.onnx.installed import missing_runtime
from sleepc.backends.onnx.manifest import FORMAT, MANIFEST, Manifest
from sleepc.errors import SleepcError, UsageError
from sleepc.hf.tokenizer import Tokenizer, load_tokenizer
from sleepc.manifest import MANIFEST as ARTIFACT
from sleepc.manifest import identity_of, read_manifest
from sleepc.runtime.session import Session

if TYPE_CHECKING:
    from sleepc.backends.onnx.steps import OnnxSteps

FOLDER = "onnx"  # of an artifact
MAX_MANIFEST = 16 << 20
AGAIN = "The export is damaged or was edited: make it again with `sleepc export ARTIFACT --to onnx --force`."


@dataclass(frozen=True)
class OnnxProgram:
    """An export. What runs it raises UsageError where ONNX Runtime or the device is not there."""

    folder: Path
    manifest: Manifest

    @property
    def identity(self) -> str:
        """The identity of the artifact that it was made from: state files go from one backend to the other."""
        return self.manifest.identity

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UsageError where it has none."""
        return load_tokenizer(self.folder)

    def session(self, batch: int = 1, *, device: str = "cpu", dtype: str | None = None) -> Session:
        """A session of `batch` rows."""
        return Session(self.steps(device=device, dtype=dtype), batch, identity=self.identity)

    def steps(self, *, device: str = "cpu", dtype: str | None = None, passes: int | None = None) -> OnnxSteps:
        """Its steps; `passes` other than the export's own are for who compares them."""
        from sleepc.backends.onnx.cuda import CUDA, DeviceSteps
        from sleepc.backends.onnx.steps import OnnxSteps

        provider = self.check(device, dtype)
        kind = DeviceSteps if provider == CUDA else OnnxSteps
        return kind(self.folder, self.manifest, provider=provider, passes=passes)

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


def require_runtime() -> None:
    """Raises UsageError, with what to install, where ONNX Runtime is missing or too old."""
    reason = missing_runtime()
    if reason is not None:
        raise UsageError(reason, where="--backend onnx")


def provider_of(device: str, manifest: Manifest) -> str:
    """The execution provider for a device. Raises UsageError where it is not there, or the files are not for it."""
    import onnxruntime

    if device == "cpu":
        return "CPUExecutionProvider"
    if device != "cuda":
        raise UsageError(f"there is no device {device!r}", where="--device", fix="One of: cpu, cuda.")
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


def load(path: str | Path) -> OnnxProgram:
    """An artifact with an export in its folder `onnx`, or the export's own folder.

    Raises UsageError where there is none, where it is newer than this sleepc, or of another state of the artifact that
    it lies in; SleepcError where it is damaged.
    """
    given = Path(path)
    folder = given / FOLDER if not (given / MANIFEST).is_file() else given
    if not (folder / MANIFEST).is_file():
        _refuse_none(given)
    manifest = _read(folder / MANIFEST)
    for name in [graph.file for graph in manifest.graphs] + [manifest.weights]:
        if not (folder / name).is_file():
            raise SleepcError(f"{name} is missing", where=str(folder), fix=AGAIN)
        if folder.resolve() not in (folder / name).resolve().parents:
            raise SleepcError(f"{name} leads out of the export", where=str(folder), fix=AGAIN)
    size = (folder / manifest.weights).stat().st_size
    if size != manifest.weights_size:
        raise SleepcError(
            f"{manifest.weights} has {size} bytes instead of {manifest.weights_size}", where=str(folder), fix=AGAIN
        )
    _check_identity(folder, manifest)
    return OnnxProgram(folder, manifest)


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


def _read(path: Path) -> Manifest:
    """onnx.json, checked."""
    if path.stat().st_size > MAX_MANIFEST:
        raise SleepcError(f"{MANIFEST} is too large to be one", where=str(path), fix=AGAIN)
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SleepcError(f"{MANIFEST} is not JSON: {error}", where=str(path), fix=AGAIN) from error
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise UsageError(
            f"the export has format {version}, and this sleepc reads format {FORMAT}",
            where=f"written by sleepc {data.get('sleepc', '?')}",
            fix="Upgrade sleepc (pip install -U sleepc), or export again.",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        text = f"{MANIFEST} is not valid: {place + ': ' if place else ''}{first['msg']}"
        raise SleepcError(text, where=str(path), fix=AGAIN) from error


def _check_identity(folder: Path, manifest: Manifest) -> None:
    """An export that lies in an artifact is of what the artifact is now."""
    artifact = folder.resolve().parent
    if folder.resolve().name != FOLDER or not (artifact / ARTIFACT).is_file():
        return
    if identity_of(read_manifest(artifact)) != manifest.identity:
        raise UsageError(
            "the export is of another state of this artifact, which was changed since",
            where=str(folder),
            fix=f"`sleepc export {artifact} --to onnx --force` makes it again.",
        )
