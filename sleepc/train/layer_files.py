"""The layers that a calibration has finished, in a folder: what an interrupted one continues from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sleepc.errors import UsageError
from sleepc.whole_file import write_whole

FINISHED = "layer-*.json"
OURS = re.compile(r"\.?layer-\d{4}\.(json|safetensors)(\.[0-9a-f]{8}\.part)?")
Range = tuple[float, float]


class LayerReport(BaseModel):
    """One layer: ranges over its heads, and the local error on text held apart.

    distance: how far back the original looks on average, in tokens.   far: the same of what attention no longer sees.
    half_life, beta: of the memory as it is now, for x = 0.   control: the error without the memory; before: as it was;
    gates, steps: with these, whether they were kept or not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int
    strategy: str
    distance: Range
    far: Range
    half_life: Range | None
    beta: Range
    control: float
    before: float
    gates: float
    steps: float | None
    kept: tuple[Literal["gates", "steps"], ...]


class _Finished(BaseModel):
    """The JSON file of a layer; `calibration` says which one it belongs to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calibration: str
    report: LayerReport


@dataclass(frozen=True)
class LayerFiles:
    """A folder with two files for each finished layer: the values that it changed, and its report (written last)."""

    folder: Path
    calibration: str

    def begin(self, resume: bool) -> None:
        """Make the folder, empty unless `resume`. Raises UsageError if another calibration's layers are to be gone
        on from, or the folder holds other files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self.folder.iterdir())
        other = [file for file in files if not OURS.fullmatch(file.name)]
        if other:
            raise UsageError(f"{other[0]} does not belong to a calibration", fix=f"Move it out of {self.folder}.")
        if not resume:
            for file in files:
                file.unlink()
            return
        for file in self.folder.glob(FINISHED):
            if _read(file).calibration != self.calibration:
                raise UsageError(
                    "the unfinished calibration was of another text, other options or another artifact",
                    where="--resume",
                    fix="Give the same ones, or leave --resume out to start over.",
                )

    def finished(self, layer: int) -> tuple[dict[str, Tensor], LayerReport] | None:
        """What a layer changed, by key, and its report; None if it is not finished."""
        report, values = self._paths(layer)
        if not report.is_file():
            return None
        try:
            return load_tensors(values.read_bytes()), _read(report).report
        except (OSError, SafetensorError) as error:
            raise UsageError(f"cannot read {values}: {error}", where="--resume", fix="Leave --resume out.") from error

    def keep(self, values: dict[str, Tensor], report: LayerReport) -> None:
        """Write a finished layer."""
        path, tensors = self._paths(report.layer)
        write_whole(tensors, save_tensors({key: value.contiguous() for key, value in values.items()}))
        done = _Finished(calibration=self.calibration, report=report)
        write_whole(path, (done.model_dump_json(indent=1) + "\n").encode())

    def _paths(self, layer: int) -> tuple[Path, Path]:
        return self.folder / f"layer-{layer:04d}.json", self.folder / f"layer-{layer:04d}.safetensors"


def _read(path: Path) -> _Finished:
    try:
        return _Finished.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        line = str(error).splitlines()[0]
        raise UsageError(f"cannot read {path}: {line}", where="--resume", fix="Leave --resume out.") from error


def forget(folder: Path) -> None:
    """Remove the files of a calibration that has come to its end."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def range_of(values: Tensor) -> Range:
    """The least and the largest."""
    wide = values.to(torch.float64)
    return float(wide.min()), float(wide.max())
