"""Parameters in one safetensors file that is mapped when it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from sleepc.errors import SleepcError
from sleepc.ir.parameters import dtypes_of
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import DTYPES, TensorFile
from sleepc.ir.weights import Param

FILE = "weights.safetensors"
ALIGNMENT = 64  # bytes: IREE maps a tensor that begins so, and copies any other
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_weights(program: ProgramGraphs, path: Path) -> None:
    """Every parameter that has a port, in the port's dtype, one after the other: those of whole ALIGNMENTs first, so
    that all of them begin on one.
    """
    dtypes = dtypes_of(program)
    sizes = {key: _bytes(program.params[key], dtype) for key, dtype in dtypes.items()}
    keys = sorted(sizes, key=lambda key: sizes[key] % ALIGNMENT != 0)
    header, place = {}, 0
    for key in keys:
        shape, end = list(program.params[key].shape), place + sizes[key]
        header[key] = {"dtype": NAMES[dtypes[key]], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, ensure_ascii=False).encode()  # IREE takes names as they stand, and reads no \\u
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in keys:
            file.write(_value(program.params, key, dtypes[key]).flatten().view(torch.uint8).numpy().data)


def check_weights(program: ProgramGraphs, path: Path) -> int:
    """How many parameters the file has, each bit for bit. Raises SleepcError at the first one that differs."""
    dtypes, file = dtypes_of(program), TensorFile(path)
    if set(file.tensors) != set(dtypes):
        raise SleepcError("it has other tensors than the program has parameters", where=path.name)
    for key, dtype in dtypes.items():
        expected, found = _value(program.params, key, dtype), file.map(key)
        same = found.dtype == dtype and found.shape == expected.shape
        if not same or not torch.equal(_bits(found), _bits(expected)):
            raise SleepcError(f"weight {key} does not have the values of the parameter", where=path.name)
    return len(dtypes)


def _value(params: Mapping[str, Param], key: str, dtype: torch.dtype) -> torch.Tensor:
    return params[key].materialise().detach().cpu().to(dtype).contiguous()


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.flatten().contiguous().view(torch.uint8)


def _bytes(param: Param, dtype: torch.dtype) -> int:
    return torch.Size(param.shape).numel() * dtype.itemsize
