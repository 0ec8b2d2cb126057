"""kernels.json, and a file for each kind of GPU: what kernels are there, and what a host has to do with them. Imports
neither torch nor Triton.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sleepc.backends.listed_files import FileFacts, Hash
from sleepc.sealed_json import FileName, Strict

MANIFEST = "kernels.json"
FORMAT = 1
SCRATCH = 2
"""Null addresses that every kernel takes after its arguments: room that the compiler asked none of."""
RULES = (
    "An operation is what an operator of the memory is for a call of so many tokens: `1`, `T` (any number from 2 to"
    " the window), or a fixed number. It is done by its launches, one after the other on one stream.",
    "Inputs have the types that the operation says: queries, keys and values of many tokens are bfloat16 in a program"
    " in bfloat16, and float32 else. What is read has that of the queries.",
    "B is the number of rows, T that of tokens, `chunks` is ceil(T / chunk). All tensors are contiguous, and their"
    " addresses are multiples of 16 bytes. The host has room for the buffers; nothing in them needs to be cleared.",
    "A launch has a grid of B * per_row programs in x, times chunks if per_chunk, and 1 in y and z; a block of"
    " `threads` threads; `shared` bytes of dynamic shared memory (on NVIDIA's GPUs, more than 48 KB have to be"
    " allowed by CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES).",
    "Arguments are passed in the order of the kernel's `arguments`, then two null addresses. In a launch an argument"
    " is a number, or the name of one of the operation's tensors, or T.",
    "Rows that are padded have k, beta and g of 0 in their padding: the state then stays as it is.",
    "The code is native, and nothing here has run it: run it only if you trust where the folder comes from.",
)

Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z]\w{0,63}$")]
Scalar = bool | int | float | str
Dims = Annotated[tuple[Count | Literal["B", "T", "chunks"], ...], Field(max_length=8)]


class ArgumentType(Strict):
    """An argument of a kernel: an address (`*fp32`) or a number."""

    name: Word
    type: Annotated[str, Field(pattern=r"^(\*(fp32|bf16|fp16)|i32|fp32)$")]


class KernelFacts(Strict):
    """One kernel, compiled: its function in `code`, of which `assembly` is the text (PTX, or AMD's); how a host starts
    it, what it takes, and what it was compiled with. `compiled` is the compiler's hash of
    its source and of how it was compiled.
    """

    kernel: Word
    symbol: Word
    code: FileName
    assembly: FileName
    arguments: list[ArgumentType]
    threads: Count
    warps: Count
    shared: Count
    registers: Count
    spilled: Count
    constants: dict[Word, Scalar]
    compiled: Hash


class TensorFacts(Strict):
    """A tensor of an operation."""

    dtype: Literal["fp32", "bf16", "fp16"]
    dims: Dims


class LaunchFacts(Strict):
    """A kernel started once, by its name in `kernels`."""

    kernel: Word
    per_row: Count
    per_chunk: bool
    arguments: dict[Word, int | float | str]


class OperationFacts(Strict):
    """An operator of blocks' memories: what goes in, the room that it needs, and what comes out."""

    operator: Word
    options: dict[Word, Scalar]
    blocks: list[Count]
    tokens: Annotated[str, Field(pattern=r"^(T|\d{1,9})$")]
    chunk: Count
    inputs: dict[Word, TensorFacts]
    buffers: dict[Word, TensorFacts]
    results: list[Word]
    launches: list[LaunchFacts]


class DeviceManifest(Strict):
    """All that a host needs for one kind of GPU."""

    format: Literal[1] = 1
    sleepc: str
    triton: str
    identity: str
    target: str
    warp: Count
    kernels: dict[Word, KernelFacts]
    operations: list[OperationFacts]
    launcher: FileName
    rules: list[str]
    files: dict[FileName, FileFacts]
    sha256: str = ""  # of everything else in the file

    @model_validator(mode="after")
    def _fits(self) -> DeviceManifest:
        """Are launches of kernels that are there, with their arguments, on tensors that are there?"""
        named = {name for each in self.kernels.values() for name in (each.code, each.assembly)} | {self.launcher}
        _require(named == set(self.files), "other files than those of its kernels")
        for each in self.operations:
            tensors = {**each.inputs, **each.buffers}
            _require(set(each.results) <= set(each.buffers), f"{each.operator} has results that nothing writes")
            for launch in each.launches:
                _require(launch.kernel in self.kernels, f"no kernel {launch.kernel}")
                _check_arguments(launch, self.kernels[launch.kernel].arguments, tensors)
        return self


class KernelsManifest(Strict):
    """kernels.json: the kinds of GPUs that there are files for, each with a manifest of its own."""

    format: Literal[1] = 1
    sleepc: str
    identity: str
    targets: dict[Word, FileName]
    files: dict[FileName, FileFacts]
    report: dict[str, Any]
    sha256: str = ""  # of everything else in the file


def _check_arguments(launch: LaunchFacts, wanted: list[ArgumentType], tensors: dict[str, TensorFacts]) -> None:
    _require([*launch.arguments] == [each.name for each in wanted], f"other arguments than those of {launch.kernel}")
    for each in wanted:
        given = launch.arguments[each.name]
        if each.type.startswith("*"):
            found = tensors.get(str(given))
            _require(found is not None and f"*{found.dtype}" == each.type, f"{each.name} of {launch.kernel} is {given}")
        else:
            _require(not isinstance(given, str) or given == "T", f"{each.name} of {launch.kernel} is {given}")


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(text)
