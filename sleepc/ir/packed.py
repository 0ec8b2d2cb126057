"""Weights as a quantised source has them: whole numbers in groups along the rows, as kernels for few bits read them.

Floats alone do not tell which whole numbers they were made of, so these lie in a file beside them, and are found by the
hash of the floats: a weight that anything has changed has none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepc.errors import SleepcError
from sleepc.held_file import DAMAGED
from sleepc.ir.tensorfile import TensorFile
from sleepc.json_file import parse_json

Array = npt.NDArray[Any]
METADATA = "packed"  # the key in the header of a file of packed weights
CLOSE = 1e-6  # of a matrix's largest value: sums in another order
PIECE = 4 << 20  # numbers that are compared at once
PARTS = ("numbers", "scales", "steps", "lows", "low_steps")
DTYPES = {"numbers": np.uint8, "scales": np.float16, "steps": np.int8, "lows": np.float16, "low_steps": np.uint8}
GROUPS = (16, 32)


@dataclass(frozen=True)
class Packing:
    """How numbers are to be read: of `bits` (4 or 8), in groups of `group`; see PackedWeight. `kind` is the source's
    name of it, `turned` says that rows are the columns of the parameter.
    """

    kind: str
    bits: int
    group: int
    raised: int = 0
    turned: bool = False


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [out, in] with

        value = (number - 2^(bits - 1)) * scale + low
        scale = scales * steps,   low = lows * low_steps + raised * scale

    numbers u8 [out, in * bits / 8] (of 4 bits two in a byte, the first in its lower half); steps i8 and low_steps u8
    [out, groups]; scales and lows f16 [out, n], where n divides the groups: each is for as many of them. Without steps
    they count as 1, without lows low is 0.
    """

    how: Packing
    numbers: Array
    scales: Array
    steps: Array | None = None
    lows: Array | None = None
    low_steps: Array | None = None

    @classmethod
    def of(cls, how: Packing, parts: Mapping[str, Array]) -> PackedWeight:
        """Of parts by name, or SleepcError if they do not fit each other."""
        found = cls(how, **{name: part for name, part in parts.items() if name in PARTS})
        if not found._fits():
            shapes = ", ".join(f"{name} {part.dtype}{list(part.shape)}" for name, part in parts.items())
            raise SleepcError(f"parts of a packed weight do not fit each other: {shapes}", fix=DAMAGED)
        return found

    def _fits(self) -> bool:
        rows, width = self.numbers.shape[0], self.numbers.shape[-1] * 8 // self.how.bits
        groups = width // self.how.group
        shapes = {"numbers": self.numbers.shape[-1], "steps": groups, "low_steps": groups}
        return width == groups * self.how.group and all(
            part.dtype == DTYPES[name]
            and part.ndim == 2
            and len(part) == rows
            and (part.shape[1] == shapes[name] if name in shapes else part.shape[1] and groups % part.shape[1] == 0)
            for name, part in self.parts().items()
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return len(self.numbers), self.numbers.shape[1] * 8 // self.how.bits

    def parts(self) -> dict[str, Array]:
        """What there is of it, by name."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    def rows(self, which: Array | slice) -> PackedWeight:
        """Some of its rows, in this order."""
        return PackedWeight.of(self.how, {name: part[which] for name, part in self.parts().items()})

    @cached_property
    def scale(self) -> npt.NDArray[np.float32]:
        """[out, groups]."""
        return self._for_groups(self.scales, self.steps)

    @cached_property
    def low(self) -> npt.NDArray[np.float32] | None:
        """[out, groups], if it is not 0."""
        if self.lows is None:
            return None
        found: npt.NDArray[np.float32] = self._for_groups(self.lows, self.low_steps) + self.how.raised * self.scale
        return found

    def _for_groups(self, values: Array, steps: Array | None) -> npt.NDArray[np.float32]:
        groups = self.shape[1] // self.how.group
        found: npt.NDArray[np.float32] = np.repeat(values.astype(np.float32), groups // values.shape[1], axis=1)
        return found if steps is None else found * steps

    def value(self) -> npt.NDArray[np.float32]:
        """[out, in]."""
        numbers = self.numbers
        if self.how.bits == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], -1)
        found = numbers.reshape(*self.scale.shape, self.how.group).astype(np.float32)
        found -= 2 ** (self.how.bits - 1)
        found *= self.scale[..., None]
        if self.low is not None:
            found += self.low[..., None]
        return found.reshape(self.shape)

    def parameter(self) -> npt.NDArray[np.float32]:
        """Its value as the parameter has it: [out, in], or [in, out] if it is turned."""
        return np.ascontiguousarray(self.value().T) if self.how.turned else self.value()

    def first_off(self, matrix: Array) -> tuple[int, int] | None:
        """(a row, how many values of the piece that begins there are not the matrix's); None if all are, but for
        a sum's order. The matrix has the same shape.
        """
        step = max(PIECE // max(matrix.shape[1], 1), 1)
        pieces = [slice(at, at + step) for at in range(0, len(matrix), step)]
        allowed = CLOSE * max((float(np.abs(matrix[rows]).max()) for rows in pieces), default=0.0)
        for rows in pieces:
            off = int(np.count_nonzero(~(np.abs(self.rows(rows).value() - matrix[rows]) <= allowed)))
            if off:
                return rows.start, off
        return None


def joined(weights: list[PackedWeight]) -> PackedWeight:
    """Weights of one packing and width below each other."""
    if len(weights) == 1:
        return weights[0]
    first = weights[0]
    return PackedWeight.of(first.how, {n: np.concatenate([getattr(w, n) for w in weights]) for n in first.parts()})


@dataclass(frozen=True)
class StoredPacked:
    """A packed weight in a file; `hashes` are of its parts, by name. If its kind has no packed form, there are none,
    and it has no bits.
    """

    file: TensorFile
    tensor: str
    how: Packing
    hashes: tuple[tuple[str, str], ...]

    def is_intact(self) -> bool:
        """Are the bytes of all parts those of their hashes?"""
        return all(self.file.sha256(f"{self.tensor}.{part}") == sha256 for part, sha256 in self.hashes)

    def read(self) -> PackedWeight:
        """The weight, mapped. Raises SleepcError if the file was changed, or its parts do not fit each other."""
        parts: dict[str, Array] = {}
        for part, sha256 in self.hashes:
            name = f"{self.tensor}.{part}"
            if self.file.sha256(name) != sha256:
                raise SleepcError(f"tensor {name} was changed after it was written", where=str(self.file.path))
            parts[part] = self.file.map(name).numpy()
        return PackedWeight.of(self.how, parts)


def describe(how: Packing, of: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    """A weight's entry in the header, under its tensor's name. `of`: the sha256 of the floats."""
    return {**vars(how), "of": of, "hashes": dict(hashes)}


def packed_in(file: TensorFile) -> dict[str, StoredPacked]:
    """What a file has, by the sha256 of the floats. Raises SleepcError if its header is not what `describe` makes."""
    raw = file.metadata.get(METADATA) if isinstance(file.metadata, dict) else None
    try:
        data = parse_json(str(raw).encode(), what="its header", where=str(file.path), fix=DAMAGED)
        return {str(entry["of"]): _stored(file, name, entry) for name, entry in data.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{file.path.name} does not describe packed weights"
        raise SleepcError(what, where=str(file.path), fix=DAMAGED) from error


def _stored(file: TensorFile, name: str, entry: dict[str, Any]) -> StoredPacked:
    how = Packing(*(entry[key] for key in ("kind", "bits", "group", "raised", "turned")))
    if not re.fullmatch(r"\w{1,32}", how.kind):
        raise ValueError(name)
    if how.bits == 0:
        return StoredPacked(file, name, Packing(how.kind, 0, 0), ())
    hashes = tuple((part, entry["hashes"][part]) for part in PARTS if part in entry["hashes"])
    known = how.bits in (4, 8) and how.group in GROUPS and type(how.raised) is int and 0 <= how.raised < 256
    there = {part for part, _ in hashes if f"{name}.{part}" in file.tensors}
    if not known or type(how.turned) is not bool or not {"numbers", "scales"} <= there or len(there) < len(hashes):
        raise ValueError(name)
    return StoredPacked(file, name, how, hashes)


def sha256(part: Array) -> str:
    """Of the bytes of a part, as they stand in a file."""
    return hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()
