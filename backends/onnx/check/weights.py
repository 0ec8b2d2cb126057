"""Weights by value: is each one of the file the parameter it was made of, in the form that was asked for?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sleepc.backends.onnx.check.files import Stored
from sleepc.backends.onnx.quantise import BLOCK, dequantise
from sleepc.backends.onnx.weights import FILE, Weights, several
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.packed import PARTS, PackedWeight
from sleepc.ir.parameters import dtypes_of
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import packed_of

Array = npt.NDArray[Any]
BLOCKS = ("int", "packed")  # forms whose values are rounded, or were by the source
PIECE = 4 << 20  # numbers that are compared at once


def check_weights(program: ProgramGraphs, weights: Weights, stored: Mapping[str, Stored]) -> None:
    """Compare every weight that is `stored` with the parameters it was made of, or with what they were fitted as.
    `weights` says which these are. Raises SleepcError at the first one that is off.
    """
    dtypes, folder = dtypes_of(program), weights.folder
    for name, place in stored.items():
        if name not in weights.written:
            raise SleepcError(f"weight {name} is not a parameter of the program", where=FILE)
        keys, form = weights.written[name]
        if not _is_whole(form):
            continue  # with what it scales
        as_fitted = weights.fitted if form.startswith("packed") else {}
        parts = [
            torch.from_numpy(as_fitted[key].parameter())
            if key in as_fitted
            else program.params[key].materialise().detach().cpu().to(dtypes[key])
            for key in several(keys)
        ]
        parameter = (parts[0] if len(parts) == 1 else torch.cat(parts)).numpy()
        if form.startswith("packed"):
            error = kept(parameter, _packed(weights, stored, name))
        elif form.startswith("int"):
            error = quantised(parameter, place.read(folder), _scales(weights, stored, name), form)
        else:
            error = plain(parameter, place.read(folder), form)
        if error:
            raise SleepcError(
                f"weight {name} does not have the values of {', '.join(several(keys))}: {error}", where=FILE
            )


def dequantised(program: ProgramGraphs, weights: Weights, stored: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """Parameters that are in blocks, by key, with the values that kernels compute with. What a quantised source has,
    and is there in float32 too, has been compared.

    Raises UsageError if a parameter has other values in one place than in another.
    """
    found: dict[str, torch.Tensor] = {}
    written = [weights.written[name] for name in stored]
    in_floats = {key for keys, form in written if not form.startswith(BLOCKS) for key in several(keys)}
    for name, place in stored.items():
        keys, form = weights.written[name]
        if not form.startswith(BLOCKS) or not _is_whole(form):
            continue
        if form.startswith("packed") and not weights.fitted and in_floats.issuperset(several(keys)):
            continue
        shapes = [program.params[key].shape for key in several(keys)]
        if form.startswith("packed"):
            matrix = torch.from_numpy(_packed(weights, stored, name).parameter())
        else:
            scales = _scales(weights, stored, name)
            values = _values(
                place.read(weights.folder), scales, int(form[3]), shapes[0][0 if "transposed" in form else 1]
            )
            matrix = values.T if "transposed" in form else values
        parts = torch.split(matrix, [shape[0] for shape in shapes])
        found |= dict(zip(several(keys), (part.contiguous() for part in parts), strict=True))
    for name in stored:
        keys, form = weights.written[name]
        if not form.startswith(BLOCKS) and found.keys() & set(several(keys)):
            raise UsageError(
                f"parameter {name} is needed whole and in blocks of {BLOCK}, and its width is not a multiple of that",
                where="--precision",
                fix="Use --precision fp16 or fp32.",
            )
    return found


def source_facts(weights: Weights) -> dict[str, dict[str, Any]]:
    """Of a quantised source: how many weights of each kind are kept as it has them, and which are rounded anew, with
    their kinds. Weights in float32 are neither.
    """
    kept: dict[str, str] = {}
    anew: dict[str, str] = {}
    for keys, form in weights.written.values():
        for key in several(keys):
            source = packed_of(weights.params[key])
            if source is not None and form.startswith(BLOCKS):
                (kept if form.startswith("packed") and key not in weights.fitted else anew)[key] = source.how.kind
    return {"kept": dict(Counter(kept.values())), "requantised": anew} if kept or anew else {}


def _values(packed: Array, scales: Array, bits: int, width: int) -> torch.Tensor:
    """A weight in blocks -> [out, width], piece by piece."""
    packed = packed.reshape(*scales.shape, -1)
    found = torch.empty(len(packed), width)
    for rows in _pieces(found.numpy()):
        found[rows] = torch.from_numpy(dequantise(packed[rows], scales[rows], bits, width))
    return found


def _is_whole(form: str) -> bool:
    """Is it a weight, and not scales of one?"""
    return form.rpartition(".")[2] not in PARTS


def _packed(weights: Weights, stored: Mapping[str, Stored], name: str) -> PackedWeight:
    """A packed weight as it is in the file. Raises SleepcError if a part is missing, or does not fit."""
    base, how = name.removesuffix(".rows"), weights.packing(weights.written[name][0])
    assert how is not None
    parts = {part: place.read(weights.folder) for part in PARTS if (place := stored.get(f"{base}.{part}"))}
    numbers = stored[name].read(weights.folder)
    return PackedWeight.of(how, {"numbers": numbers.reshape(len(numbers), -1), **parts})


def _scales(weights: Weights, stored: Mapping[str, Stored], name: str) -> Array:
    scales = f"{name.removesuffix('.rows')}.scales"
    if scales not in stored:
        raise SleepcError(f"weight {name} has no scales", where=FILE)
    return stored[scales].read(weights.folder)


def plain(parameter: Array, found: Array, form: str) -> str:
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


def quantised(parameter: Array, packed: Array, scales: Array, form: str) -> str:
    """What is wrong with a weight in blocks: every value within half a step, or a whole one if it is cut off at the
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


def kept(parameter: Array, weight: PackedWeight) -> str:
    """What is wrong with a weight of a quantised source: every value is the parameter's but for a sum's order."""
    expected = parameter.T if weight.how.turned else parameter
    if weight.shape != expected.shape:
        return f"its shape is {weight.shape} instead of {expected.shape}"
    found = weight.first_off(expected)
    return f"{found[1]} values are not those of its source, from row {found[0]} on" if found else ""


def _pieces(value: Array) -> Iterator[slice]:
    """Slices of the first dimension, of about PIECE numbers each."""
    step = max(PIECE // max(value.size // max(len(value), 1), 1), 1)
    for start in range(0, len(value), step):
        yield slice(start, start + step)
