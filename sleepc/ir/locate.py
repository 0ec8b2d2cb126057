"""From a tensor in memory back to the tensor of a file that it came from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from sleepc.ir.tensorfile import TensorFile, sample_places

SMAPS = Path("/proc/self/smaps")
REGION = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \d+\s+(/.*)")


@dataclass(frozen=True)
class Region:
    """Addresses [start, end) that map a file from byte `offset` on; nobody has written to them."""

    start: int
    end: int
    offset: int
    path: str


class Locator:
    """Finds values in safetensors files, whose tensors' hashes are known. Looks once at what this process has mapped,
    so make it after the values.
    """

    def __init__(self, files: list[TensorFile], hashes: dict[Path, dict[str, str]]) -> None:
        self.files, self.hashes = files, hashes
        self.by_path = {str(file.path.resolve()): file for file in files}
        self.regions = [region for region in _regions() if region.path in self.by_path]

    def find(self, value: torch.Tensor, key: str) -> tuple[Path, str] | None:
        """The file tensor that holds `value`, or None.

        A value that lies in an unwritten mapping of a file is the bytes there, and none of its pages is touched to know
        it. Any other is compared by dtype, shape and the hash of all its bytes, the tensor with the name most like
        `key` first; samples only tell which tensors it cannot be.
        """
        if value.is_meta:
            return None
        return self._mapped(value) or self._equal(value, key)

    def _mapped(self, value: torch.Tensor) -> tuple[Path, str] | None:
        if not value.is_contiguous() or value.device.type != "cpu" or not value.numel():
            return None
        address = value.data_ptr()
        for region in self.regions:
            if region.start <= address and address + value.nbytes <= region.end:
                file, place = self.by_path[region.path], region.offset + address - region.start
                return next(((file.path, name) for name in _candidates(file, value, place)), None)
        return None

    def _equal(self, value: torch.Tensor, key: str) -> tuple[Path, str] | None:
        candidates = [(_likeness(name, key), file, name) for file in self.files for name in _candidates(file, value)]
        wanted = _sample(value) if candidates else b""
        whole = cache(lambda: _sha256(value))
        for _, file, name in sorted(candidates, key=lambda c: c[0], reverse=True):
            if file.sample(name) == wanted and self.hashes[file.path][name] == whole():
                return file.path, name
        return None


def _regions() -> Iterator[Region]:
    """The mappings of files in this process that hold no page of their own; none if the system does not tell."""
    if not SMAPS.exists():
        return
    region: Region | None = None
    for line in SMAPS.read_text(errors="replace").splitlines():
        found = REGION.fullmatch(line)
        if found:
            start, end, offset = (int(found[i], 16) for i in (1, 2, 4))
            region = Region(start, end, offset, found[5])
        elif region is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield region
            region = None


def _candidates(file: TensorFile, value: torch.Tensor, place: int | None = None) -> Iterator[str]:
    """Tensors of the dtype and shape of `value`, at byte `place` of the file if that is known."""
    for name, entry in file.tensors.items():
        if entry.dtype == value.dtype and entry.shape == tuple(value.shape) and place in (None, entry.start):
            yield name


def _likeness(name: str, key: str) -> tuple[bool, int]:
    common = 0
    for a, b in zip(reversed(name), reversed(key), strict=False):
        if a != b:
            break
        common += 1
    return name == key, common


def _bytes(value: torch.Tensor) -> torch.Tensor:
    return value.detach().contiguous().view(-1).view(torch.uint8)


def _sha256(value: torch.Tensor) -> str:
    return hashlib.sha256(_bytes(value).cpu().numpy().data).hexdigest()


def _sample(value: torch.Tensor) -> bytes:
    flat = _bytes(value)
    return b"".join(flat[s : s + count].cpu().numpy().tobytes() for s, count in sample_places(flat.numel()))
