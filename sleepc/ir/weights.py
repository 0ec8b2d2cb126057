"""Parameters by reference: where a tensor's values are, read only when somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sleepc.ir.packed import StoredPacked
from sleepc.ir.tensorfile import TensorFile


@dataclass(frozen=True)
class FileTensor:
    """A tensor of an open safetensors file. `sha256` is of its bytes; `new` says that the conversion added it. `packed`
    is what a quantised source has it as.
    """

    source: TensorFile
    tensor: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str = ""
    new: bool = False
    packed: StoredPacked | None = None

    @property
    def file(self) -> Path:
        """Where the file was opened."""
        return self.source.path

    def materialise(self) -> torch.Tensor:
        """The tensor, mapped from its file (not copied). Raises SleepcError if the file was changed."""
        return self.source.map(self.tensor)

    def is_intact(self) -> bool:
        """Are the bytes in the file those of the hash?"""
        return self.source.sha256(self.tensor) == self.sha256


@dataclass(frozen=True, eq=False)
class HeldTensor:
    """A tensor in memory: of a model that has no file, or new in the conversion."""

    value: torch.Tensor
    new: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.value.shape)

    def materialise(self) -> torch.Tensor:
        """The tensor itself."""
        return self.value


Param = FileTensor | HeldTensor


def packed_of(param: Param) -> StoredPacked | None:
    """What a quantised source has a parameter as, if it is still the source's."""
    return param.packed if isinstance(param, FileTensor) else None


def is_learned(param: Param) -> bool:
    """Is it a value that the conversion added and training may change? What it added in integers are constants."""
    return param.new and param.dtype.is_floating_point
