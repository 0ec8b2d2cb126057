"""The files as they were written: valid models, every constant a number, every byte of the weights' file a weight's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from sleepc.backends.onnx.weights import FILE
from sleepc.errors import SleepcError

Array = npt.NDArray[Any]
LARGE = 1 << 20  # bytes of a constant that should have been a weight


@dataclass(frozen=True)
class Stored:
    """An initializer that lies in the weights' file."""

    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, folder: Path) -> Array:
        """Its values, mapped."""
        return (
            np.memmap(folder / FILE, self.dtype, "r", self.offset, self.shape)
            if self.end > self.offset
            else (np.zeros(self.shape, self.dtype))
        )


def check_files(folder: Path, files: list[str]) -> tuple[dict[str, Stored], dict[str, int]]:
    """The weights by name, and how many weights, constants and bytes there are.

    Raises SleepcError if a file is not a valid model, or something in it is neither weight nor small constant.
    """
    stored: dict[str, Stored] = {}
    constants = 0
    for file in files:
        _check_model(folder / file)
        model = onnx.load(folder / file, load_external_data=False)
        for tensor in _initializers(model.graph):
            if uses_external_data(tensor):
                found = _stored(tensor, folder)
                if stored.setdefault(found.name, found) != found:
                    raise SleepcError(f"weight {found.name} is two different ones", where=file)
            else:
                _check_constant(tensor, file)
                constants += 1
    size = _check_places(list(stored.values()), (folder / FILE).stat().st_size)
    return stored, {"weights": len(stored), "constants": constants, "weight_bytes": size}


def _check_model(path: Path) -> None:
    """By path: a model with its weights in a file may be larger than a message."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SleepcError(f"{path.name} is not a valid model: {error}", where="onnx.checker") from error


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Constants of a graph and of the graphs inside it, those of Constant nodes too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _initializers(attribute.g)


def _stored(tensor: onnx.TensorProto, folder: Path) -> Stored:
    info = ExternalDataInfo(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    found = Stored(tensor.name, int(info.offset or 0), tuple(tensor.dims), dtype)
    if info.location != FILE or found.end - found.offset != int(info.length or 0):
        raise SleepcError(f"weight {tensor.name} has {info.length} bytes of {info.location}", where=str(folder))
    return found


def _check_constant(tensor: onnx.TensorProto, file: str) -> None:
    value = onnx.numpy_helper.to_array(tensor)
    if value.nbytes > LARGE:
        raise SleepcError(f"constant {tensor.name} has {value.nbytes} bytes, too many for a constant", where=file)
    if value.dtype.kind == "f" and np.isnan(value.astype(np.float64)).any():
        raise SleepcError(f"constant {tensor.name} is not a number", where=file)


def _check_places(stored: list[Stored], size: int) -> int:
    """The bytes of all weights. Raises SleepcError if two overlap, or the file has something else in it."""
    places = sorted({(s.offset, s.end) for s in stored})
    end = 0
    for start, after in places:
        if start < end:
            raise SleepcError(f"two weights share the bytes from {start} to {end}", where=FILE)
        end = after
    if end != size:
        raise SleepcError(f"{FILE} has {size} bytes, and its weights end at {end}", where=FILE)
    return sum(after - start for start, after in places)
