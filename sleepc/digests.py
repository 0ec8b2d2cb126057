"""What identifies tensors and models: sha256 of their bytes, and names of their element types."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import cast

import torch

from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import DTYPE_NAMES
from sleepc.ir.weights import FileTensor, Param
from sleepc.manifest import DtypeName


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """The name of a dtype in a manifest."""
    return cast(DtypeName, DTYPE_NAMES[dtype])


def tensors_digest(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """sha256 of tensors given as (key, dtype, shape, sha256 of the bytes), in any order."""
    rows = sorted((key, dtype, list(shape), sha256) for key, dtype, shape, sha256 in tensors)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def sha256_of(value: torch.Tensor) -> str:
    """sha256 of a tensor's bytes as they stand in a file."""
    flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(cast(bytes, flat.numpy())).hexdigest()  # an array is a buffer


def weights_digest(program: ProgramGraphs) -> str:
    """sha256 of a model's parameters: of those in files by the hashes of their bytes, of the others by their values.
    Buffers are left out, which a library may compute a little differently from one version to the next.
    """
    keys = {key for graph in (program.embed, program.head) for key in graph.ports("param")}
    for block in program.layout:
        keys |= {block.params[port] for port in program.classes[block.cls].wake.ports("param")}
    return tensors_digest(
        (key, dtype_name(param.dtype), param.shape, _sha256(param)) for key in keys for param in (program.params[key],)
    )


def _sha256(param: Param) -> str:
    if isinstance(param, FileTensor) and param.sha256:
        return param.sha256
    return sha256_of(param.materialise())
