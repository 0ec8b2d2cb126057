"""A session's state as one safetensors file that says what it is and whose it is."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from sleepc.errors import SleepcError, SleepcWarning
from sleepc.runtime.array_file import (
    CHECKSUM,
    DTYPES,
    MAX_HEADER,
    ArrayFileKind,
    DType,
    StoredArray,
    read_arrays,
    write_arrays,
)
from sleepc.runtime.steps import Array, Signature

AGAIN = "feed the text again, or load another file"
KIND = ArrayFileKind(
    "sleepc.state", "2", "state file", AGAIN, "the session and an earlier file are unchanged", older=("1",)
)
NOTE = "note."  # before the names of notes in the metadata


@dataclass(frozen=True)
class Contents:
    """What a file must hold: `facts` word for word in its metadata, and `arrays` as its tensors.

    `notes` are written into its metadata too, and not compared (see `read_note`).
    """

    facts: Mapping[str, str]
    arrays: Signature
    batch: int
    notes: Mapping[str, str] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, "B" being the batch."""
        return tuple(self.batch if dim == "B" else int(dim) for dim in self.arrays[name][1])

    def dtype(self, name: str) -> DType:
        """The element type of an array. Raises SleepcError for one that no file can hold."""
        text = self.arrays[name][0]
        if text not in DTYPES:
            raise SleepcError(f"no state file can hold the element type {text!r}", where=name)
        return DTYPES[text]

    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return sum(math.prod(self.shape(name)) * np.dtype(self.dtype(name).numpy).itemsize for name in self.arrays)


def write_state(path: str | os.PathLike[str], arrays: dict[str, Array], contents: Contents) -> None:
    """Write next to `path` and rename, so that `path` is the old file or the whole new one.

    Raises SleepcError when the arrays are not those of `contents`, or the disk refuses.
    """
    if arrays.keys() != contents.arrays.keys():
        odd = sorted(arrays.keys() ^ contents.arrays.keys())
        raise SleepcError(f"the backend's arrays and its signature differ in {', '.join(odd)}")
    checked = {name: (_checked(name, array, contents), array) for name, array in arrays.items()}
    write_arrays(path, checked, _metadata(contents), KIND)


def read_state(path: str | os.PathLike[str], contents: Contents) -> dict[str, Array]:
    """The arrays of a file, writable, checked against `contents`.

    Raises UsageError when the file cannot be read, SleepcError when it is cut off, damaged, no state
    file, or that of another version, model or batch. Warns of one from before there were checksums.
    """
    file = Path(path)
    tensors, metadata = read_arrays(file, KIND, contents.nbytes() + MAX_HEADER)
    _check_metadata(metadata, contents, file)
    if tensors.keys() != contents.arrays.keys():
        _refuse(file, f"arrays {', '.join(sorted(tensors.keys() ^ contents.arrays.keys()))}")
    if CHECKSUM not in metadata:
        text = f"{file} was written before state files had a checksum: whether it is damaged is not known"
        warnings.warn(text, SleepcWarning, stacklevel=4)
    return {name: _array(name, tensors[name], contents, file) for name in contents.arrays}


def read_note(path: str | os.PathLike[str], name: str) -> str | None:
    """A note of a state file's metadata; None if it has none of that name. Raises as `read_state`."""
    return read_arrays(Path(path), KIND)[1].get(NOTE + name)


def _metadata(contents: Contents) -> dict[str, str]:
    notes = {NOTE + name: text for name, text in contents.notes.items()}
    return {"batch": str(contents.batch), **contents.facts, "signature": _signature_text(contents.arrays), **notes}


def _signature_text(arrays: Signature) -> str:
    return json.dumps({n: [dtype, *dims] for n, (dtype, dims) in arrays.items()}, sort_keys=True)


def _checked(name: str, array: Array, contents: Contents) -> DType:
    """The element type of an array, which is what `contents` says."""
    dtype, shape = contents.dtype(name), contents.shape(name)
    if array.dtype != np.dtype(dtype.numpy) or array.shape != shape:
        raise SleepcError(
            f"the backend's array is {array.dtype} {list(array.shape)}, and its signature says "
            f"{contents.arrays[name][0]} {list(shape)}",
            where=name,
        )
    return dtype


def _check_metadata(found: dict[str, str], contents: Contents, file: Path) -> None:
    expected = _signature_text(contents.arrays)
    facts = [name for name, value in contents.facts.items() if found.get(name) != value]
    if found.get("signature") != expected and {"identity", "budgets"}.issuperset(facts):  # which say less
        _refuse(file, _first_difference(found.get("signature", "{}"), expected))
    for name in facts:
        _refuse(file, f"{name} ({found.get(name)!r} in the file, {contents.facts[name]!r} here)")
    if found.get("batch") != str(contents.batch):
        rows = found.get("batch")
        one = "; its select_rows([0]), saved, is a file of one row, which the command line continues from too"
        raise SleepcError(
            f"the state file holds {rows} rows, and this session {contents.batch}",
            where=str(file),
            fix=f"in Python, program.session(batch={rows}) loads it{one if contents.batch == 1 else ''}",
        )


def _first_difference(found: str, expected: str) -> str:
    try:
        there = json.loads(found)
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        return "the signature (unreadable in the file)"
    here = json.loads(expected)
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            return f"array {name} ({there.get(name)} in the file, {here.get(name)} here)"
    return "the signature's text"


def _refuse(file: Path, difference: str) -> NoReturn:
    raise SleepcError(
        f"the state file belongs to another model or conversion: it differs in {difference}",
        where=str(file),
        fix="load it with the artifact that it was saved with, or feed the text again",
    )


def _array(name: str, stored: StoredArray, contents: Contents, file: Path) -> Array:
    dtype, shape = contents.dtype(name), contents.shape(name)
    if stored.dtype != dtype.header or stored.shape != list(shape):
        raise SleepcError(
            f"array {name} of the state file is {stored.dtype} {stored.shape}, not {dtype.header} {list(shape)}",
            where=str(file),
            fix=AGAIN,
        )
    return stored.array()
