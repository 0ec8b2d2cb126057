"""Types of values, as short text: `f32[B,T,576]`, `int`, `(f32[B,T], f32[B])`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
EXPORTED_DTYPES = {**DTYPES, "c64": torch.complex64, "c128": torch.complex128}  # at level ATEN
EXPORTED_NAMES = {dtype: name for name, dtype in EXPORTED_DTYPES.items()}


@dataclass(frozen=True)
class TensorType:
    """A tensor's dtype and dimensions; a symbolic dimension is a text of +, * and names ("B", "T", "T+260")."""

    dtype: torch.dtype
    dims: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{EXPORTED_NAMES[self.dtype]}[{','.join(str(d) for d in self.dims)}]"


@dataclass(frozen=True)
class IntType:
    """A size: the value of `aten.sym_size.int` and of arithmetic on it."""

    def __str__(self) -> str:
        return "int"


@dataclass(frozen=True)
class TupleType:
    """The value of an operator with several results."""

    items: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"({', '.join(str(item) for item in self.items)})"


Type = TensorType | IntType | TupleType


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What memories, and numbers added to scores, are in if activations are in `dtype`: float64 stays, all else is
    float32.
    """
    return torch.promote_types(dtype, torch.float32)
