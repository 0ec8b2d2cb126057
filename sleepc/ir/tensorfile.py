"""safetensors files, read with care: a header of our own reading, tensors mapped, bytes hashed and looked at in a stream."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sleepc.errors import SleepcError

MAX_HEADER = 100 << 20  # as the safetensors library has it
PIECE = 8 << 20  # bytes read at a time when a file is streamed
DAMAGED = "The file is damaged or incomplete: fetch it again."
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


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's dtype, shape and bytes [start, end) in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """The header of a safetensors file. Raises SleepcError, naming file and tensor, for anything that does not add up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(8)
                length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
                if not 2 <= length <= min(MAX_HEADER, self.size - 8):
                    raise self._damaged(f"its header cannot be {length} bytes long")
                raw = file.read(length)
        except OSError as error:
            raise SleepcError(f"cannot read {path.name}: {error.strerror}", where=str(path)) from error
        self.header_sha256 = hashlib.sha256(raw).hexdigest()
        self.tensors = dict(self._entries(raw, 8 + length))

    def _damaged(self, why: str) -> SleepcError:
        return SleepcError(f"{self.path.name} is not a valid safetensors file: {why}", where=str(self.path), fix=DAMAGED)

    def _entries(self, raw: bytes, base: int) -> Iterator[tuple[str, TensorEntry]]:
        try:
            header = json.loads(raw)
            header.pop("__metadata__", None)
            items = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        except (ValueError, AttributeError, TypeError, KeyError) as error:
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
            dtype = DTYPES[entry["dtype"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"tensor {name} is described in a way that sleepc does not know") from error
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, start, end)):
            raise self._damaged(f"tensor {name} has impossible sizes")
        return dtype, shape, start, end

    def map(self, name: str) -> torch.Tensor:
        """The tensor over the mapped file: pages are read when touched, shared with everybody, and never written back."""
        entry = self._find(name)
        if entry.start == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        mapped = _mapping(self.path, self.size, self.path.stat().st_mtime_ns)
        flat = torch.frombuffer(mapped, dtype=torch.uint8, count=entry.end - entry.start, offset=entry.start)
        if entry.start % entry.dtype.itemsize:
            flat = flat.clone()  # a file may place a tensor at an odd byte
        return flat.view(entry.dtype).view(entry.shape)

    def _find(self, name: str) -> TensorEntry:
        if name not in self.tensors:
            raise SleepcError(f"{self.path.name} has no tensor {name}", where=str(self.path), fix=DAMAGED)
        return self.tensors[name]

    def sha256(self, name: str, *, finite: bool = False) -> str:
        """sha256 of a tensor's bytes, read in pieces. With `finite`, raises SleepcError at the first NaN or infinity."""
        entry = self._find(name)
        digest = hashlib.sha256()
        for piece in self._pieces(entry):
            digest.update(piece)
            if finite and not _is_finite(piece, entry.dtype):
                raise SleepcError(
                    f"the weights hold NaN or infinity: tensor {name}",
                    where=str(self.path),
                    fix="The checkpoint is broken (training may have diverged): use another one.",
                )
        return digest.hexdigest()

    def _pieces(self, entry: TensorEntry) -> Iterator[memoryview]:
        buffer = bytearray(min(PIECE, entry.end - entry.start))
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            place = entry.start
            while place < entry.end:
                view = memoryview(buffer)[: min(PIECE, entry.end - place)]
                count = os.preadv(descriptor, [view], place)
                if count != len(view):
                    raise self._damaged("it became shorter while it was read")
                yield view
                place += count
        finally:
            os.close(descriptor)

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


@lru_cache(maxsize=64)
def _mapping(path: Path, size: int, changed: int) -> mmap.mmap:
    """One private mapping per file and version. Private, since torch wants writable memory: a write would stay with us."""
    del size, changed
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def map_tensor(path: Path, name: str) -> torch.Tensor:
    """The tensor `name` of a safetensors file, mapped. Raises SleepcError where file or tensor are not as they should be."""
    return _header(path, path.stat().st_mtime_ns if path.exists() else 0).map(name)


@lru_cache(maxsize=64)
def _header(path: Path, changed: int) -> TensorFile:
    del changed
    return TensorFile(path)


def scan(files: list[TensorFile], progress: Callable[[float], None] = lambda share: None) -> dict[Path, dict[str, str]]:
    """sha256 of every tensor of every file; raises SleepcError at a NaN or an infinity. Two threads, 8 MiB each."""
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


SAMPLES, SAMPLE = 16, 1024


def locate(value: torch.Tensor, key: str, files: list[TensorFile]) -> tuple[Path, str] | None:
    """The file tensor that holds `value`, or None: same dtype, shape and sampled bytes, the name most like `key` first."""
    wanted = _sample(value)
    candidates = [
        (_likeness(name, key), file, name)
        for file in files
        for name, entry in file.tensors.items()
        if entry.dtype == value.dtype and entry.shape == tuple(value.shape)
    ]
    for _, file, name in sorted(candidates, key=lambda c: c[0], reverse=True):
        if _sample(file.map(name)) == wanted:
            return file.path, name
    return None


def _likeness(name: str, key: str) -> tuple[bool, int]:
    common = 0
    for a, b in zip(reversed(name), reversed(key), strict=False):
        if a != b:
            break
        common += 1
    return name == key, common


def _sample(tensor: torch.Tensor) -> bytes:
    """Bytes at fixed places, the first and last among them."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    size = flat.numel()
    if size <= SAMPLES * SAMPLE:
        return flat.numpy().tobytes()
    starts = [i * (size - SAMPLE) // (SAMPLES - 1) for i in range(SAMPLES)]
    return b"".join(flat[s : s + SAMPLE].numpy().tobytes() for s in starts)
