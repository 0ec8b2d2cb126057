"""A lowered program -> an IREE module, its weights and what is in them, in a folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sleepc.backends.export_files import StateArray
from sleepc.backends.mlir.compiling import compile_module, join
from sleepc.backends.mlir.devices import CPU, arch_of_processor, features_for
from sleepc.backends.mlir.entries import entries_of, parts_of
from sleepc.backends.mlir.importing import DialectFunction, NotLowered, function_of
from sleepc.backends.mlir.installed import versions
from sleepc.backends.mlir.manifest import FunctionFile, ModuleManifest, RowTensor
from sleepc.backends.mlir.traced import EntryPoint
from sleepc.backends.mlir.weights import FILE, write_weights
from sleepc.backends.processor import architecture
from sleepc.errors import SleepcError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import DTYPE_NAMES
from sleepc.passes.analysis.sleeps import passes_of, sinks_of
from sleepc.passes.rewrite.kept_pairs import slots_of_heads
from sleepc.progress import Progress, silent
from sleepc.version import __version__

MODULE = "program.vmfb"


@dataclass(frozen=True)
class ModuleStyle:
    """How files are written: tokens of a chunk, the device beside this processor (or CPU) and its architecture, the
    dialect that is compiled, and of which dialect the texts are kept: of that one, or of torch, from which it is made.
    """

    chunk: int = 16
    device: str = CPU
    arch: str = ""
    dialect: str = "linalg"
    emit: str = ""


def write_files(
    program: ProgramGraphs, folder: Path, style: ModuleStyle, *, identity: str = "", progress: Progress = silent
) -> ModuleManifest:
    """Write a lowered program as program.vmfb, code for another device if that is asked for, weights.safetensors, and
    the texts if they are kept. Raises SleepcError, with the operator and the block, for what is not compiled.
    """
    chunk = min(style.chunk, program.window)
    functions = [_lowered(program, chunk, entry, style, progress) for entry in entries_of(program, chunk)]
    write_weights(program, folder / FILE)
    text, arch, started = join(functions), arch_of_processor(style.device, style.arch), time.perf_counter()
    _compile(text, folder / MODULE, (CPU, arch), progress)
    compiled = ModuleFacts(identity, arch, chunk, time.perf_counter() - started)
    others = [] if style.device == CPU else [f"program.{style.device}.vmfb"]
    for name in others:
        _compile(text, folder / name, (style.device, style.arch), progress)
    texts = {f.name: f"{f.name}.{style.emit}.mlir" for f in functions} if style.emit else {}
    for function in functions if texts else ():
        text = function.text if style.emit == style.dialect else function.torch_text
        (folder / texts[function.name]).write_text(text)
    described = {f.name: _described(f, texts.get(f.name)) for f in functions}
    return _manifest(program, compiled, described, others, (folder / FILE).stat().st_size)


@dataclass(frozen=True)
class ModuleFacts:
    """Of a module: the artifact's identity, the architecture, tokens of a chunk, and how long IREE took."""

    identity: str
    arch: str
    chunk: int
    seconds: float


def _manifest(
    program: ProgramGraphs, facts: ModuleFacts, functions: dict[str, FunctionFile], others: list[str], size: int
) -> ModuleManifest:
    loop = program.loop
    return ModuleManifest(
        sleepc=__version__,
        identity=facts.identity,
        precision="fp32",
        vocab=program.vocab,
        window=program.window,
        sinks=sinks_of(program),
        upto=program.upto,
        passes=passes_of(program),
        weights=FILE,
        weights_size=size,
        budgets=slots_of_heads(program),
        module=MODULE,
        arch=facts.arch,
        machine=architecture(),
        features=sorted(features_for(facts.arch)),
        others=others,
        versions=versions(),
        chunk=facts.chunk,
        loops=loop is not None,
        settle=loop.settle if loop else 0,
        replays=loop is None and "again" in functions,
        functions=functions,
        states=[
            StateArray(name=s.name, dtype=DTYPE_NAMES[s.dtype], dims=s.dims, initial=s.initial)
            for s in program.all_states()
        ],
        report={"compile_seconds": facts.seconds},
    )


def _described(function: DialectFunction, text: str | None) -> FunctionFile:
    return FunctionFile(
        text=text,
        parameters=list(function.parameters),
        inputs=[_tensor(name, value) for name, value in function.inputs.items()],
        outputs=[_tensor(name, value) for name, value in function.outputs.items()],
    )


def _lowered(
    program: ProgramGraphs, chunk: int, entry: EntryPoint, style: ModuleStyle, progress: Progress
) -> DialectFunction:
    progress(f"importing {entry.name}", None)
    try:
        return function_of(entry, style.dialect)
    except NotLowered as error:
        place = error.place or _blame(program, entry.name, chunk, style.dialect)
        what = f"{error.operator or 'an operator'} is not lowered to {style.dialect}"
        fix = (
            "--debug shows what the compiler said and keeps what it was given. An export for another runtime (--to) "
            "may have the operator."
        )
        raise SleepcError(what, where=place, fix=fix, input=error.text) from error


def _blame(program: ProgramGraphs, name: str, chunk: int, dialect: str) -> str:
    """The function with its first block that fails on its own, if one does, where no compiler says a place: a process
    that ended, or PyTorch's exporter.
    """
    for said, part in parts_of(program, name, chunk):
        try:
            function_of(part, dialect)
        except NotLowered:
            return f"{name}, {said}"
    return name


def _compile(text: str, to: Path, device: tuple[str, str], progress: Progress) -> None:
    name, arch = device
    progress(f"compiling for {name}", None)
    try:
        compile_module(text, to, name, arch)
    except NotLowered as error:
        what = f"IREE does not compile {error.operator or 'the program'} for {name}: {error.said}"
        fix = "--debug shows all that it said and keeps what it was given."
        place = f"{error.place}, --iree {name}" if error.place else f"--iree {name}"
        raise SleepcError(what, where=place, fix=fix, input=error.text) from error


def _tensor(name: str, value: torch.Tensor) -> RowTensor:
    return RowTensor(name=name, dtype=DTYPE_NAMES[value.dtype], sizes=tuple(value.shape))
