"""Arrays in one safetensors file that says what it is, with a checksum of all of it: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import HeldFile
from sleepc.runtime.steps import Array
from sleepc.whole_file import write_whole

MAX_HEADER = 100 << 20  # as the safetensors library has it
CHECKSUM = "sha256"  # in the metadata: of all else
BEGIN = 1 << 16  # bytes in which a file says what it is: metadata comes first


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
class ArrayFileKind:
    """What a file is: `format` is in its metadata, with its version, that which is written or an `older` one, which had
    no checksum yet. `words` are what people call it, `again` what they do about one that cannot be read, and `kept`
    what is as before if one cannot be written.
    """

    format: str
    version: str
    words: str
    again: str
    kept: str
    older: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredArray:
    """An array as it stands in a file: its element type by its name there, its shape, and its bytes."""

    dtype: str
    shape: list[int]
    data: Any

    def array(self) -> Array:
        """The array, writable; bf16 as its bits."""
        kind = next(each for each in DTYPES.values() if each.header == self.dtype)
        if self.dtype == "BOOL":
            found: Array = np.frombuffer(self.data, np.uint8) != 0  # numpy trusts bools to be 0 or 1
        else:
            found = np.frombuffer(self.data, kind.numpy)
        return found.reshape(self.shape)


def write_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, tuple[DType, Array]],
    metadata: Mapping[str, str],
    kind: ArrayFileKind,
) -> None:
    """Write next to `path` and rename, so that `path` is the old file or the whole new one.

    Raises UsageError if something else is there, SleepcError if the disk refuses.
    """
    whole = {name: (dtype, np.ascontiguousarray(array)) for name, (dtype, array) in arrays.items()}  # kept alive
    specs = {
        name: TensorSpec(dtype=dtype.call, shape=list(a.shape), data_ptr=a.ctypes.data, data_len=a.nbytes)
        for name, (dtype, a) in whole.items()
    }
    facts = {"format": kind.format, "version": kind.version, **metadata}
    rows = {name: StoredArray(dtype.header, list(a.shape), a.reshape(-1)) for name, (dtype, a) in whole.items()}
    _write_beside(Path(path), serialize(specs, {**facts, CHECKSUM: _checksum(facts, rows)}), kind)


def read_arrays(
    file: Path, kind: ArrayFileKind, most: int | None = None
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """The arrays and the metadata of a file of at most so many bytes, which are those that were written.

    Raises UsageError when the file cannot be read, SleepcError when it is cut off, damaged, or of another kind.
    """
    try:
        held = HeldFile(file)
    except SleepcError as error:
        raise UsageError(error.what, where=str(file), fix=kind.again) from error
    if most is not None and held.size > most:
        what = f"the file has {held.size} bytes, too many for a {kind.words.split()[0]} of this model"
        raise SleepcError(what, where=str(file), fix=kind.again)
    data = held.read(0, held.size)
    try:
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]  # as published
    except SafetensorError as error:
        what = f"the {kind.words} is cut off or damaged: {error}"
        raise SleepcError(what, where=str(file), fix=kind.again) from error
    metadata = _header_metadata(data)
    _check_kind(metadata, file, kind)
    rows = {name: StoredArray(t["dtype"], t["shape"], t["data"]) for name, t in tensors.items()}
    found = metadata.get(CHECKSUM, "" if metadata["version"] == kind.version else None)
    if found is not None and found != _checksum(metadata, rows):
        raise SleepcError(f"the {kind.words} was damaged after it was written", where=str(file), fix=kind.again)
    return rows, metadata


def _checksum(metadata: Mapping[str, str], rows: Mapping[str, StoredArray]) -> str:
    """sha256 of a file's metadata and arrays, in any order."""
    rest = {key: text for key, text in metadata.items() if key != CHECKSUM}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(rows):
        digest.update(json.dumps([name, rows[name].dtype, rows[name].shape]).encode())
        digest.update(rows[name].data)
    return digest.hexdigest()


def _write_beside(path: Path, data: bytes, kind: ArrayFileKind) -> None:
    if not path.name:
        raise UsageError(f"{str(path)!r} is not a file name", fix="give the file to write")
    if not may_be_replaced(path, kind):
        raise UsageError(f"{path} exists and is not a {kind.words}", fix="choose another name, or remove it")
    try:
        write_whole(path, data)
    except OSError as error:
        raise SleepcError(
            f"the {kind.words.split()[0]} cannot be written: {error.strerror}",
            where=str(path),
            fix=f"{kind.kept}; choose a folder with room",
        ) from error


def may_be_replaced(path: Path, kind: ArrayFileKind) -> bool:
    """Is there nothing, or something that began as a file of this kind?"""
    if not path.is_file():
        return True
    with path.open("rb") as file:
        begin = file.read(BEGIN)
    return not begin or kind.format.encode() in begin


def _header_metadata(data: bytes) -> dict[str, str]:
    """Of bytes that safetensors has accepted: 8 bytes of length, then a JSON header."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__") or {})


def _check_kind(found: dict[str, str], file: Path, kind: ArrayFileKind) -> None:
    if found.get("format") != kind.format:
        raise SleepcError(f"this is not a sleepc {kind.words}", where=str(file), fix=kind.again)
    if found.get("version") not in (kind.version, *kind.older):
        raise SleepcError(
            f"the {kind.words} has version {found.get('version')}, and this sleepc reads {kind.version}",
            where=str(file),
            fix=f"load it with the sleepc that wrote it, or {kind.again.partition(',')[0]}",
        )
