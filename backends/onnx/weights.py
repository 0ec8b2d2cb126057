"""Parameters as initializers: written to one file, tensor by tensor, each in the forms that kernels want."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from sleepc.ir.weights import Param

Form = Literal["plain", "transposed", "half", "half-transposed"]
Array = npt.NDArray[np.generic]
FILE = "weights.bin"
ALIGNMENT = 4096  # ONNX Runtime maps a tensor only where it begins on a page

FORMS: dict[str, Callable[[torch.Tensor], Array]] = {
    "plain": lambda x: x.numpy(),
    "transposed": lambda x: x.T.contiguous().numpy(),
    "half": lambda x: x.half().numpy(),
    "half-transposed": lambda x: x.T.half().contiguous().numpy(),
}


@dataclass
class Weights:
    """Writes parameters into `folder`/weights.bin when they are asked for, each once; `written` says what is where."""

    params: Mapping[str, Param]
    dtypes: Mapping[str, torch.dtype]
    folder: Path
    written: dict[str, tuple[str, str]] = field(default_factory=dict)  # name of the initializer -> (key, form)
    _tensors: dict[str, ir.ExternalTensor] = field(default_factory=dict)

    def name(self, key: str, form: Form) -> str:
        """The initializer's name."""
        return key if form == "plain" else f"{key}.{form}"

    def tensor(self, key: str, form: Form) -> ir.ExternalTensor:
        """The initializer's values, in the file."""
        name = self.name(key, form)
        if name not in self._tensors:
            value = self.params[key].materialise().detach().cpu().to(self.dtypes[key]).contiguous()
            self._tensors[name] = self._write(name, FORMS[form](value))
            self.written[name] = (key, form)
        return self._tensors[name]

    def _write(self, name: str, array: Array) -> ir.ExternalTensor:
        with (self.folder / FILE).open("ab") as file:
            offset = _aligned(file)
            file.write(np.ascontiguousarray(array).tobytes() if array.nbytes < 1 << 20 else memoryview(array).cast("B"))
        return ir.ExternalTensor(
            FILE,
            offset,
            array.nbytes,
            ir.DataType.from_numpy(array.dtype),
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self.folder,
        )


def _aligned(file: IO[bytes]) -> int:
    """Fill up to the next page; the offset of what comes next."""
    end = file.seek(0, 2)
    file.write(bytes(-end % ALIGNMENT))
    return file.tell()
