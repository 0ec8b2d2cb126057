"""Which parameter of transformers' model has the values of which quantised tensor, by these values: rows may be in
another order (rotary pairs), or be columns. What is computed from a tensor (a norm's weight plus one) is not it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepc.hf.gguf_file import GgufFile
from sleepc.hf.gguf_packed import packed
from sleepc.hf.weight_files import PACKED, SINGLE
from sleepc.ir.packed import METADATA, PackedWeight, Packing, describe, sha256
from sleepc.ir.tensorfile import TensorFile

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Fitted:
    """A parameter that a quantised tensor is; without `weight` its kind has no packed form."""

    name: str
    kind: str
    weight: PackedWeight | None


def packed_weights(file: GgufFile, state: Mapping[str, Any], names: Mapping[str, set[str]]) -> Iterator[Fitted]:
    """Every matrix of the model that has the values of a quantised tensor; by its names in the file, of which it may
    have several.
    """
    of = {other: name for name, found in names.items() for other in found if state[name].dim() == 2}
    for other, kind, rows in file.quantised():
        if other not in of or rows.ndim != 2:
            continue
        weight = packed(kind, rows)
        found = _fitted(weight, state[of[other]].numpy(), file, other) if weight is not None else None
        if weight is None or found is not None:
            yield Fitted(of[other], kind, found)


def _fitted(weight: PackedWeight, value: Array, file: GgufFile, name: str) -> PackedWeight | None:
    """The packed weight with its rows as the parameter has them, or None if that has other values."""
    for turned, matrix in ((False, value), (True, value.T)):
        if matrix.shape != weight.shape:
            continue
        how = replace(weight.how, turned=turned)
        if weight.first_off(matrix) is None:
            return replace(weight, how=how)
        at = {row.tobytes(): i for i, row in enumerate(file.dequantised(name))}
        order = [at.get(row.tobytes(), -1) for row in np.ascontiguousarray(matrix)]
        if -1 not in order:
            return replace(weight.rows(np.array(order)), how=how)
    return None


def save_packed(found: Iterator[Fitted], target: Path) -> None:
    """Write what was found beside the floats, if there is something, with the hash of the floats."""
    from safetensors.numpy import save_file

    floats = TensorFile(target / SINGLE)
    tensors: dict[str, Array] = {}
    said: dict[str, Any] = {}
    for each in found:
        weight = each.weight
        parts = {} if weight is None else {part: np.ascontiguousarray(a) for part, a in weight.parts().items()}
        how = Packing(each.kind, 0, 0) if weight is None else weight.how
        tensors |= {f"{each.name}.{part}": array for part, array in parts.items()}
        said[each.name] = describe(how, floats.sha256(each.name), {part: sha256(a) for part, a in parts.items()})
    if said:
        save_file(tensors, target / PACKED, metadata={METADATA: json.dumps(said)})
