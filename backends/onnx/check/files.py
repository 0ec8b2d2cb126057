"""The files as they were written: every weight by value, every constant a number, and the onnx library's own check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from sleepc.backends.eager.backend import dtypes_of
from sleepc.backends.onnx.quantise import BLOCK, dequantise
from sleepc.backends.onnx.weights import FILE, Form
from sleepc.errors import SleepcError
from sleepc.ir.program import ProgramGraphs

Array = npt.NDArray[Any]
FORMS: tuple[str, ...] = get_args(Form)
PIECE = 4 << 20  # numbers that are compared at once
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


def check_files(program: ProgramGraphs, folder: Path, files: list[str]) -> dict[str, int]:
    """How many weights, constants and bytes there are.

    Raises SleepcError where a file is not a valid model, a weight is not the parameter that its name says in its form,
    or something is neither weight nor small constant.
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
    check_weights(program, folder, stored)
    return {"weights": len(stored), "constants": constants, "weight_bytes": size}


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
        raise SleepcError(f"constant {tensor.name} has {value.nbytes} bytes: it is no small one", where=file)
    if value.dtype.kind == "f" and np.isnan(value.astype(np.float64)).any():
        raise SleepcError(f"constant {tensor.name} is not a number", where=file)


def _check_places(stored: list[Stored], size: int) -> int:
    """The bytes of all weights. Raises SleepcError where two overlap, or the file has something else in it."""
    places = sorted({(s.offset, s.end) for s in stored})
    end = 0
    for start, after in places:
        if start < end:
            raise SleepcError(f"two weights share the bytes from {start} to {end}", where=FILE)
        end = after
    if end != size:
        raise SleepcError(f"{FILE} has {size} bytes, and its weights end at {end}", where=FILE)
    return sum(after - start for start, after in places)


# ------------------------------------------------------------------------------------------------------ values


def check_weights(program: ProgramGraphs, folder: Path, stored: dict[str, Stored]) -> None:
    """Compare every weight with the parameter it is made of. Raises SleepcError at the first one that is off."""
    known = {(key if form == "plain" else f"{key}.{form}"): (key, form) for form in FORMS for key in program.params}
    dtypes = dtypes_of(program)
    for name in stored:
        if name not in known:
            raise SleepcError(f"weight {name} is no parameter of the program", where=FILE)
        key, form = known[name]
        if form.endswith("scales"):
            continue  # with what it scales
        parameter = program.params[key].materialise().detach().cpu().to(dtypes[key]).numpy()
        if form.startswith("int"):
            matrix = f"{key}.{form}".removesuffix(".rows")
            error = _quantised(parameter, stored[name].read(folder), _scales(stored, matrix, folder), form)
        else:
            error = _plain(parameter, stored[name].read(folder), form)
        if error:
            raise SleepcError(f"weight {name} does not have the values of {key}: {error}", where=FILE)


def _scales(stored: dict[str, Stored], name: str, folder: Path) -> Array:
    if f"{name}.scales" not in stored:
        raise SleepcError(f"weight {name} has no scales", where=FILE)
    return stored[f"{name}.scales"].read(folder)


def _plain(parameter: Array, found: Array, form: str) -> str:
    """What is wrong with a weight that has the parameter's values, turned or rounded to half; bit for bit."""
    expected, found = np.atleast_1d(parameter.T if "transposed" in form else parameter), np.atleast_1d(found)
    if "half" in form and not (np.abs(expected) <= np.finfo(np.float16).max).all():
        return "it has values beyond the range of float16"
    if found.shape != expected.shape:
        return f"its shape is {found.shape} instead of {expected.shape}"
    for rows in _pieces(expected):
        same = expected[rows].astype(found.dtype) == found[rows]
        if not same.all():
            return f"{np.size(same) - np.count_nonzero(same)} values differ from row {rows.start} on"
    return ""


def _quantised(parameter: Array, packed: Array, scales: Array, form: str) -> str:
    """What is wrong with a weight in blocks: every value within half a step, or a whole one where it is cut off at the
    end of the range, which has one number more below than above.
    """
    expected = parameter.T if "transposed" in form else parameter
    bits, width = int(form[3]), expected.shape[1]
    if len(packed) != len(expected) or len(scales) != len(expected) or not np.isfinite(scales).all():
        return f"its blocks are {packed.shape} with scales {scales.shape}, for {expected.shape}"
    packed = packed.reshape(*scales.shape, -1)
    for rows in _pieces(expected):
        values = dequantise(packed[rows], scales[rows], bits, width)
        step = np.repeat(scales[rows], BLOCK, 1)[:, :width]
        at_top = values == (2 ** (bits - 1) - 1) * step
        allowed = np.where(at_top, 1.0, 0.5) * np.abs(step) * 1.001 + 1e-12
        off = np.count_nonzero(np.abs(values - expected[rows]) > allowed)
        if off:
            return f"{off} values are more than half a step away, from row {rows.start} on"
    return ""


def _pieces(value: Array) -> Iterator[slice]:
    """Slices of the first dimension, of about PIECE numbers each."""
    step = max(PIECE // max(value.size // max(len(value), 1), 1), 1)
    for start in range(0, len(value), step):
        yield slice(start, start + step)
