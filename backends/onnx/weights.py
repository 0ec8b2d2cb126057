"""Parameters as initializers: written to one file, tensor by tensor, each in the forms that kernels want."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from sleepc.backends.onnx.quantise import quantise
from sleepc.ir.weights import Param

Keys = str | tuple[str, ...]
Array = npt.NDArray[np.generic]
FILE = "weights.bin"
ALIGNMENT = 4096  # ONNX Runtime maps a tensor only if it begins on a page

Form = str
"""How a parameter stands in the file: "plain", "half" (float16), or "int4", "int8": blocks [out, blocks, bytes], with
their ".scales" [out, blocks]; ".rows" are the same bytes as [out, bytes]. "transposed" swaps the dimensions of a matrix
first ("half.transposed", "int4.transposed.scales").
"""


def formed(value: torch.Tensor, form: Form) -> Array:
    """A parameter in a form."""
    if form.startswith("int"):
        bits, matrix = int(form[3]), value.float()
        packed, scales = quantise((matrix.T if "transposed" in form else matrix).numpy(), bits)
        return scales if form.endswith("scales") else packed.reshape(len(packed), -1) if "rows" in form else packed
    if "transposed" in form:
        value = value.T
    return (value.half() if "half" in form else value).contiguous().numpy()


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
    written: dict[str, tuple[Keys, Form]] = field(default_factory=dict)  # by the initializer's name
    _tensors: dict[str, ir.ExternalTensor] = field(default_factory=dict)

    def name(self, keys: Keys, form: Form) -> str:
        """The initializer's name."""
        first = keys if isinstance(keys, str) else f"{keys[0]}+{len(keys) - 1}"
        return first if form == "plain" else f"{first}.{form}"

    def tensor(self, keys: Keys, form: Form) -> ir.ExternalTensor:
        """The initializer's values, in the file."""
        name = self.name(keys, form)
        if name not in self._tensors and form.endswith("rows"):  # the bytes are there
            blocks = self.tensor(keys, form[:4])
            rows, width = blocks.shape[0], blocks.shape[1] * blocks.shape[2]
            self._tensors[name] = self._reference(name, blocks, ir.Shape((rows, width)))
            self.written[name] = (keys, form)
        elif name not in self._tensors:
            self._tensors[name] = self._write(name, formed(self.value(keys), form))
            self.written[name] = (keys, form)
        return self._tensors[name]

    def value(self, keys: Keys) -> torch.Tensor:
        """A parameter, or several of one width below each other, in the dtype of its ports."""
        parts = [
            self.params[key].materialise().detach().cpu().to(self.dtypes[key])
            for key in ((keys,) if isinstance(keys, str) else keys)
        ]
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
