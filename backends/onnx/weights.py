"""Parameters as initializers: written to one file, tensor by tensor, each in the forms that kernels want."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from sleepc.backends.onnx.quantise import quantise
from sleepc.ir.packed import PackedWeight, Packing, joined
from sleepc.ir.parameters import dtypes_of, shared_keys
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import Param, packed_of

Keys = str | tuple[str, ...]
Array = npt.NDArray[np.generic]
FILE = "weights.bin"
FITTING = {"source": (4, 8), "int4": (4,)}  # bits of a source's packed weights that a precision takes
ALIGNMENT = 4096  # ONNX Runtime maps a tensor only if it begins on a page

Form = str
"""How a parameter stands in the file: "plain", "half" (float16), or "int4", "int8": blocks [out, blocks, bytes], with
their ".scales" [out, blocks]; ".rows" are the same bytes as [out, bytes]. "transposed" swaps the dimensions of a matrix
first ("half.transposed", "int4.transposed.scales"). "packed": the numbers of a quantised source [out, groups, bytes],
".rows" in their shape there, and its other parts by name ("packed.steps").
"""


def several(keys: Keys) -> tuple[str, ...]:
    """Keys as a tuple."""
    return (keys,) if isinstance(keys, str) else keys


def formed(value: torch.Tensor, form: Form) -> Array:
    """A parameter in a form."""
    if form.startswith("int"):
        bits, matrix = int(form[3]), value.float()
        packed, scales = quantise((matrix.T if "transposed" in form else matrix).numpy(), bits)
        return scales if form.endswith("scales") else packed.reshape(len(packed), -1) if "rows" in form else packed
    if "transposed" in form:
        value = value.T
    return (value.half() if "half" in form else value).contiguous().numpy()


def part_of(weight: PackedWeight, form: Form) -> Array:
    """A part of a packed weight in a form."""
    name = form.partition(".")[2]
    if name in ("", "rows"):
        return weight.numbers if name else weight.numbers.reshape(*weight.scale.shape, -1)
    return np.asarray(getattr(weight, name))


def packed_as(param: Param, fitted: PackedWeight | None) -> PackedWeight | None:
    """What a parameter was fitted as, or what a quantised source has it as."""
    stored = packed_of(param)
    return fitted if fitted is not None else stored.read() if stored is not None else None


@dataclass(frozen=True)
class Weight:
    """A parameter that has not been asked for yet, since its form depends on who reads it."""

    key: str


@dataclass
class Weights:
    """Writes parameters into `folder`/weights.bin when they are asked for, each once; `written` says what is where."""

    params: Mapping[str, Param]
    dtypes: Mapping[str, torch.dtype]
    folder: Path
    shared: frozenset[str] = frozenset()  # keys that several ports of the program have
    precision: str = "fp32"  # of linear maps and embeddings
    fitted: Mapping[str, PackedWeight] = field(default_factory=dict)  # what a parameter stands in the file as
    written: dict[str, tuple[Keys, Form]] = field(default_factory=dict)  # by the initializer's name
    _tensors: dict[str, ir.ExternalTensor] = field(default_factory=dict)
    _read: tuple[Keys, PackedWeight] | None = None  # the last one, whose parts are asked for one after the other

    @classmethod
    def of(
        cls, program: ProgramGraphs, folder: Path, precision: str, fitted: Mapping[str, PackedWeight] | None = None
    ) -> Weights:
        """Those of a program."""
        return cls(program.params, dtypes_of(program), folder, shared_keys(program), precision, fitted or {})

    def form(self, keys: Keys, *, flipped: bool = False, packed: bool = False) -> Form:
        """How a linear map or an embedding has a parameter, or several that are `alike`. Of a quantised source as that
        has it, if it fits; what the conversion added or training changed stays as it is. `flipped`: read as [in, out].
        `packed`: in fp32 too, where the source has 4 bits.
        """
        key, precision = several(keys)[0], self.precision
        if packed and self.four_bits(key, flipped=flipped):
            return "packed"
        if precision == "fp32" or self.is_new(key):
            return "plain"
        if precision == "fp16":
            return "half"
        how = self.packing(key)
        fits = key in self.fitted or (how is not None and how.bits in FITTING.get(precision, ()))
        if how is not None and fits and how.turned is flipped:
            return "packed"
        if precision != "source":
            return precision
        return "int8" if how is not None and not how.bits else "plain"

    def packing(self, keys: Keys) -> Packing | None:
        """What a parameter was fitted as, or the source has it as; of several that are alike."""
        key = several(keys)[0]
        stored = packed_of(self.params[key])
        return self.fitted[key].how if key in self.fitted else stored.how if stored is not None else None

    def four_bits(self, key: str, *, flipped: bool = False) -> bool:
        """Has a quantised source a parameter in 4 bits, as [out, in] (`flipped`: [in, out])?"""
        how = self.packing(key)
        return how is not None and how.bits == 4 and how.turned is flipped

    def alike(self, keys: Sequence[str], *, packed: bool = False) -> list[tuple[str, ...]]:
        """Neighbours that have one form and, if they are packed, one packing."""
        forms = [self.form(key, packed=packed) for key in keys]
        kinds = [(form, self.packing(key) if form == "packed" else None) for form, key in zip(forms, keys, strict=True)]
        runs = groupby(range(len(keys)), lambda i: kinds[i])
        return [tuple(keys[i] for i in run) for _, run in runs]

    def name(self, keys: Keys, form: Form) -> str:
        """The initializer's name."""
        first = keys if isinstance(keys, str) else f"{keys[0]}+{len(keys) - 1}"
        return first if form == "plain" else f"{first}.{form}"

    def tensor(self, keys: Keys, form: Form) -> ir.ExternalTensor:
        """The initializer's values, in the file."""
        name = self.name(keys, form)
        if name not in self._tensors and form.endswith("rows"):  # the bytes are there
            blocks = self.tensor(keys, form.removesuffix(".rows"))
            rows, width = blocks.shape[0], blocks.shape[1] * blocks.shape[2]
            self._tensors[name] = self._reference(name, blocks, ir.Shape((rows, width)))
            self.written[name] = (keys, form)
        elif name not in self._tensors:
            self._tensors[name] = self._write(name, self._array(keys, form))
            self.written[name] = (keys, form)
        return self._tensors[name]

    def _array(self, keys: Keys, form: Form) -> Array:
        return part_of(self.packed(keys), form) if form.startswith("packed") else formed(self.value(keys), form)

    def packed(self, keys: Keys) -> PackedWeight:
        """A packed parameter, or several that are alike below each other."""
        if self._read is None or self._read[0] != keys:
            parts = [packed_as(self.params[key], self.fitted.get(key)) for key in several(keys)]
            self._read = keys, joined([part for part in parts if part is not None])
        return self._read[1]

    def value(self, keys: Keys) -> torch.Tensor:
        """A parameter, or several of one width below each other, in the dtype of its ports."""
        parts = [self.params[key].materialise().detach().cpu().to(self.dtypes[key]) for key in several(keys)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()

    def is_new(self, key: str) -> bool:
        """Did the conversion add it?"""
        return self.params[key].new

    def _write(self, name: str, array: Array) -> ir.ExternalTensor:
        with (self.folder / FILE).open("ab") as file:
            offset = _aligned(file)
            file.write(np.ascontiguousarray(array).data)  # not tofile, whose errors do not say that the disk is full
        kind = ir.DataType.from_numpy(array.dtype)
        return ir.ExternalTensor(
            FILE, offset, array.nbytes, kind, shape=ir.Shape(array.shape), name=name, base_dir=self.folder
        )

    def _reference(self, name: str, of: ir.ExternalTensor, shape: ir.Shape) -> ir.ExternalTensor:
        """The bytes of another tensor in another shape."""
        return ir.ExternalTensor(FILE, of.offset, of.length, of.dtype, shape=shape, name=name, base_dir=self.folder)


def _aligned(file: IO[bytes]) -> int:
    """Fill up to the next page; the offset of what comes next."""
    end = file.seek(0, 2)
    file.write(bytes(-end % ALIGNMENT))
    return file.tell()
