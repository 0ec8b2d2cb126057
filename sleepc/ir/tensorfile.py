"""safetensors files, read with care: our own reading of the header, tensors mapped, bytes hashed in a stream."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from sleepc.errors import SleepcError
from sleepc.held_file import DAMAGED, HeldFile, reading
from sleepc.json_file import parse_json

MAX_HEADER = 100 << 20  # as the safetensors library has it
MAX_RANK, MAX_SIZE = 8, 1 << 48
PIECE = 1 << 22  # numbers that are written at once
# No room is set aside for the writes that a private mapping allows and nobody does.
FLAGS = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Bit patterns of Inf and NaN: all exponent bits set. (word, exponent mask)
EXPONENTS: dict[torch.dtype, tuple[type[np.unsignedinteger[Any]], int]] = {
    torch.float64: (np.uint64, 0x7FF0_0000_0000_0000),
    torch.float32: (np.uint32, 0x7F80_0000),
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
}


class UnreadableDtype(SleepcError):
    """A tensor of a dtype that PyTorch's arithmetic, and so sleepc, has not: `dtype` as the file calls it."""

    def __init__(self, path: Path, tensor: str, dtype: str) -> None:
        super().__init__(
            f"tensor {tensor} is stored as {dtype}, which sleepc does not read",
            where=str(path),
            fix=f"It reads {', '.join(DTYPES)}: save the model in one of these.",
        )
        self.tensor, self.dtype = tensor, dtype


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's dtype, shape and bytes [start, end) in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """A safetensors file, opened once: its tensors are those of that file, whatever comes to stand at its path.

    Raises SleepcError, naming file and tensor, if its header does not add up.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, HeldFile(path)
        self.size = self.held.size
        length = struct.unpack("<Q", self.held.read(0, 8))[0] if self.size >= 8 else -1
        if not 2 <= length <= min(MAX_HEADER, self.size - 8):
            raise self._damaged(f"its header cannot be {length} bytes long")
        raw = self.held.read(8, 8 + length)
        self.header_sha256 = hashlib.sha256(raw).hexdigest()
        self.metadata: Any = None  # whatever stands there: texts by name, if it is well-formed
        self.tensors = dict(self._entries(raw, 8 + length))
        self._mapped: weakref.ref[mmap.mmap] | None = None

    def _damaged(self, why: str) -> SleepcError:
        return SleepcError(
            f"{self.path.name} is not a valid safetensors file: {why}", where=str(self.path), fix=DAMAGED
        )

    def _entries(self, raw: bytes, base: int) -> Iterator[tuple[str, TensorEntry]]:
        try:
            header = parse_json(raw, what="its header", where=str(self.path), fix=DAMAGED)
            self.metadata = header.pop("__metadata__", None)
            items = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        except SleepcError as error:
            raise self._damaged(error.what) from error
        except (AttributeError, TypeError, KeyError) as error:
            raise self._damaged(f"its header is not what it should be ({type(error).__name__})") from error
        place = 0
        for name, entry in items:
            dtype, shape, start, end = self._entry(name, entry)
            if start != place or end - start != prod(shape) * dtype.itemsize:
                raise self._damaged(f"tensor {name} does not have the bytes that its shape needs")
            place = end
            yield name, TensorEntry(dtype, shape, base + start, base + end)
        if base + place != self.size:
            raise self._damaged(f"it has {self.size} bytes, and its header describes {base + place}")

    def _entry(self, name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
        try:
            shape = tuple(entry["shape"])
            start, end = entry["data_offsets"]
            kind = entry["dtype"]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"tensor {name} is described in a way that sleepc does not know") from error
        if not isinstance(kind, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{0,15}", kind):
            raise self._damaged(f"tensor {name} is described in a way that sleepc does not know")
        if kind not in DTYPES:
            raise UnreadableDtype(self.path, name, kind)
        dtype = DTYPES[kind]
        sizes = (*shape, start, end)
        if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n < MAX_SIZE for n in sizes):
            raise self._damaged(f"tensor {name} has impossible sizes")
        if prod(max(n, 1) for n in shape) >= MAX_SIZE:  # also of an empty tensor: PyTorch multiplies its strides
            raise self._damaged(f"tensor {name} has impossible sizes")
        return dtype, shape, start, end

    def map(self, name: str) -> torch.Tensor:
        """The tensor over the mapped file: pages are read when touched, shared with everybody, never written back."""
        entry = self._find(name)
        if entry.start == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        mapped = self._mapping()
        flat = torch.frombuffer(mapped, dtype=torch.uint8, count=entry.end - entry.start, offset=entry.start)
        if entry.start % entry.dtype.itemsize:
            flat = flat.clone()  # a file may place a tensor at an odd byte
        return flat.view(entry.dtype).view(entry.shape)

    def _mapping(self) -> mmap.mmap:
        """One mapping, for as long as a tensor uses it: then its pages leave this process's memory. Private, since
        torch wants writable memory: a write stays with us.
        """
        self.held.require_unchanged()
        mapped = self._mapped() if self._mapped is not None else None
        if mapped is None:
            with reading(self.path):
                mapped = mmap.mmap(self.held.descriptor, 0, flags=FLAGS, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            self._mapped = weakref.ref(mapped)
        return mapped

    def _find(self, name: str) -> TensorEntry:
        if name not in self.tensors:
            raise SleepcError(f"{self.path.name} has no tensor {name}", where=str(self.path), fix=DAMAGED)
        return self.tensors[name]

    def sha256(self, name: str, *, finite: bool = False) -> str:
        """sha256 of a tensor's bytes, read in pieces. With `finite`, SleepcError if one is NaN or infinite."""
        entry = self._find(name)
        digest = hashlib.sha256()
        for piece in self.held.pieces(entry.start, entry.end):
            digest.update(piece)
            if finite and not _is_finite(piece, entry.dtype):
                raise SleepcError(
                    f"the weights hold NaN or infinity: tensor {name}",
                    where=str(self.path),
                    fix="The checkpoint is broken (training may have diverged): use another one.",
                )
        return digest.hexdigest()

    def sample(self, name: str) -> bytes:
        """The bytes at the places of `sample_places`, without a mapping: touched pages would stay resident."""
        entry = self._find(name)
        places = sample_places(entry.end - entry.start)
        return b"".join(self.held.read(entry.start + at, entry.start + at + count) for at, count in places)

    def hashes(self) -> dict[str, str]:
        """sha256 of every tensor."""
        return {name: self.sha256(name) for name in self.tensors}


def _is_finite(piece: memoryview, dtype: torch.dtype) -> bool:
    if dtype not in EXPONENTS:
        return True
    word, mask = EXPONENTS[dtype]
    words: npt.NDArray[Any] = np.frombuffer(piece, dtype=word)
    # The exponents of finite numbers are below the mask: one pass without a temporary per comparison.
    return not len(words) or int((words & word(mask)).max()) != mask


SAMPLES, SAMPLE = 16, 1024


def sample_places(size: int) -> list[tuple[int, int]]:
    """(start, count) of what is compared of `size` bytes: all, or 16 times 1 KiB, the first and the last among them."""
    if size <= SAMPLES * SAMPLE:
        return [(0, size)] if size else []
    return [(i * (size - SAMPLE) // (SAMPLES - 1), SAMPLE) for i in range(SAMPLES)]


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a new file with the rights that new files have here. Raises OSError if the disk is full or refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch(exist_ok=False)
    rights = path.stat().st_mode & 0o777
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(rights)  # the library writes for the owner alone


@dataclass(frozen=True)
class Planned:
    """A tensor that is made when it is written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


def write_planned(tensors: Mapping[str, Planned], path: Path) -> None:
    """Write a new safetensors file, one tensor at a time: the library wants all of them at once, and copies them.

    Raises SleepcError for a tensor that is made in another shape than was planned.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, planned in tensors.items():
        end = place + prod(planned.shape) * planned.dtype.itemsize
        entry = {"dtype": names[planned.dtype], "shape": [*planned.shape], "data_offsets": [place, end]}
        header[name], place = entry, end  # type: ignore[assignment]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, planned in tensors.items():
            made = planned.make()
            if tuple(made.shape) != planned.shape:
                raise SleepcError(f"{name} is {[*made.shape]}, and {[*planned.shape]} were planned", where=str(path))
            _write_rows(made, planned.dtype, file)


def _write_rows(tensor: torch.Tensor, dtype: torch.dtype, file: BinaryIO) -> None:
    """A tensor's numbers in order, some rows at a time."""
    rows = tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
    for part in torch.split(rows, max(PIECE // max(rows.shape[1], 1), 1)):
        file.write(part.to(dtype).contiguous().view(torch.uint8).numpy().data)


def scan(files: list[TensorFile], progress: Callable[[float], None] = lambda share: None) -> dict[Path, dict[str, str]]:
    """sha256 of every tensor of every file; raises SleepcError at a NaN or an infinity. Two threads."""
    work = [(file, name) for file in files for name in file.tensors]
    total = sum(e.end - e.start for file in files for e in file.tensors.values()) or 1
    done = 0
    found: dict[Path, dict[str, str]] = {file.path: {} for file in files}
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda item: item[0].sha256(item[1], finite=True), work)
        for (file, name), digest in zip(work, results, strict=True):
            found[file.path][name] = digest
            done += file.tensors[name].end - file.tensors[name].start
            progress(done / total)
    return found
