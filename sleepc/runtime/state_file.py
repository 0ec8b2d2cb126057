"""A session's state as one safetensors file that says what it is and whose it is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.held_file import HeldFile
from sleepc.runtime.steps import Array, Signature
from sleepc.whole_file import write_whole

FORMAT = "sleepc.state"
VERSION, UNCHECKED = "2", "1"  # this one's, and that of files without a checksum, which are read too
MAX_HEADER = 100 << 20  # as the safetensors library has it
CHECKSUM = "sha256"  # in the metadata: of all else
BEGIN = 1 << 16  # bytes in which a file says what it is: metadata comes first
NOTE = "note."  # before the names of notes in the metadata
AGAIN = "feed the text again, or load another file"


class DType(NamedTuple):
    """One element type: its name in a file's header, in safetensors' calls, and in numpy."""

    header: str
    call: str
    numpy: str


DTYPES: dict[str, DType] = {
    "f64": DType("F64", "float64", "float64"),
    "f32": DType("F32", "float32", "float32"),
    "f16": DType("F16", "float16", "float16"),
    "bf16": DType("BF16", "bfloat16", "uint16"),  # numpy has no bf16: its bits
    "i64": DType("I64", "int64", "int64"),
    "i32": DType("I32", "int32", "int32"),
    "i16": DType("I16", "int16", "int16"),
    "i8": DType("I8", "int8", "int8"),
    "u8": DType("U8", "uint8", "uint8"),
    "bool": DType("BOOL", "bool", "bool"),
}


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
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # kept alive
    specs = {name: _spec(name, array, contents) for name, array in whole.items()}
    rows = {n: (contents.dtype(n).header, list(array.shape), array.reshape(-1)) for n, array in whole.items()}
    metadata = _metadata(contents)
    _write_beside(Path(path), serialize(specs, {**metadata, CHECKSUM: _checksum(metadata, rows)}))


def read_state(path: str | os.PathLike[str], contents: Contents) -> dict[str, Array]:
    """The arrays of a file, writable, checked against `contents`.

    Raises UsageError when the file cannot be read, SleepcError when it is cut off, damaged, no state
    file, or that of another version, model or batch. Warns of one from before there were checksums.
    """
    file = Path(path)
    tensors, metadata = _open(file, contents.nbytes() + MAX_HEADER)
    _check_metadata(metadata, contents, file)
    if tensors.keys() != contents.arrays.keys():
        _refuse(file, f"arrays {', '.join(sorted(tensors.keys() ^ contents.arrays.keys()))}")
    if CHECKSUM not in metadata:
        text = f"{file} was written before state files had a checksum: whether it is damaged is not known"
        warnings.warn(text, SleepcWarning, stacklevel=4)
    return {name: _array(name, tensors[name], contents, file) for name in contents.arrays}


def read_note(path: str | os.PathLike[str], name: str) -> str | None:
    """A note of a state file's metadata; None if it has none of that name. Raises as `read_state`."""
    return _open(Path(path))[1].get(NOTE + name)


def _open(file: Path, most: int | None = None) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The tensors and the metadata of a state file of `most` bytes, which are those that were written."""
    try:
        held = HeldFile(file)
    except SleepcError as error:
        raise UsageError(error.what, where=str(file), fix=AGAIN) from error
    if most is not None and held.size > most:
        raise SleepcError(
            f"the file has {held.size} bytes, too many for a state of this model", where=str(file), fix=AGAIN
        )
    data = held.read(0, held.size)
    try:
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]  # as published
    except SafetensorError as error:
        raise SleepcError(f"the state file is cut off or damaged: {error}", where=str(file), fix=AGAIN) from error
    metadata = _header_metadata(data)
    _check_kind(metadata, file)
    rows = {name: (t["dtype"], t["shape"], t["data"]) for name, t in tensors.items()}
    found = metadata.get(CHECKSUM, "" if metadata["version"] == VERSION else None)
    if found is not None and found != _checksum(metadata, rows):
        raise SleepcError("the state file was damaged after it was written", where=str(file), fix=AGAIN)
    return tensors, metadata


def _checksum(metadata: Mapping[str, str], rows: Mapping[str, tuple[str, list[int], Any]]) -> str:
    """sha256 of a file's metadata and arrays, each given as (element type, shape, bytes), in any order."""
    rest = {key: text for key, text in metadata.items() if key != CHECKSUM}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(rows):
        dtype, shape, data = rows[name]
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(data)
    return digest.hexdigest()


def _metadata(contents: Contents) -> dict[str, str]:
    own = {"format": FORMAT, "version": VERSION, "batch": str(contents.batch)}
    notes = {NOTE + name: text for name, text in contents.notes.items()}
    return {**own, **contents.facts, "signature": _signature_text(contents.arrays), **notes}


def _signature_text(arrays: Signature) -> str:
    return json.dumps({n: [dtype, *dims] for n, (dtype, dims) in arrays.items()}, sort_keys=True)


def _spec(name: str, array: Array, contents: Contents) -> TensorSpec:
    dtype, shape = contents.dtype(name), contents.shape(name)
    if array.dtype != np.dtype(dtype.numpy) or array.shape != shape:
        raise SleepcError(
            f"the backend's array is {array.dtype} {list(array.shape)}, and its signature says "
            f"{contents.arrays[name][0]} {list(shape)}",
            where=name,
        )
    return TensorSpec(dtype=dtype.call, shape=list(shape), data_ptr=array.ctypes.data, data_len=array.nbytes)


def _write_beside(path: Path, data: bytes) -> None:
    if not path.name:
        raise UsageError(f"{str(path)!r} is not a file name", fix="give the file to write")
    if not _may_be_replaced(path):
        raise UsageError(f"{path} exists and is not a state file", fix="choose another name, or remove it")
    try:
        write_whole(path, data)
    except OSError as error:
        raise SleepcError(
            f"the state cannot be written: {error.strerror}",
            where=str(path),
            fix="the session and an earlier file are unchanged; choose a folder with room",
        ) from error


def _may_be_replaced(path: Path) -> bool:
    """Is there nothing, or something that began as a state file?"""
    if not path.is_file():
        return True
    with path.open("rb") as file:
        begin = file.read(BEGIN)
    return not begin or FORMAT.encode() in begin


def _header_metadata(data: bytes) -> dict[str, str]:
    """Of bytes that safetensors has accepted: 8 bytes of length, then a JSON header."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__") or {})


def _check_kind(found: dict[str, str], file: Path) -> None:
    if found.get("format") != FORMAT:
        raise SleepcError("this is not a sleepc state file", where=str(file), fix=AGAIN)
    if found.get("version") not in (VERSION, UNCHECKED):
        raise SleepcError(
            f"the state file has version {found.get('version')}, and this sleepc reads {VERSION}",
            where=str(file),
            fix="load it with the sleepc that wrote it, or feed the text again",
        )


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


def _array(name: str, tensor: dict[str, Any], contents: Contents, file: Path) -> Array:
    dtype, shape = contents.dtype(name), contents.shape(name)
    found, dims, data = tensor["dtype"], tensor["shape"], tensor["data"]
    if found != dtype.header or dims != list(shape):
        raise SleepcError(
            f"array {name} of the state file is {found} {dims}, not {dtype.header} {list(shape)}",
            where=str(file),
            fix=AGAIN,
        )
    if dtype.header == "BOOL":
        array: Array = np.frombuffer(data, np.uint8) != 0  # numpy trusts bools to be 0 or 1
    else:
        array = np.frombuffer(data, dtype.numpy)
    return array.reshape(shape)
