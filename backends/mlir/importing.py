"""Entries as text of an MLIR dialect, by torch.export and torch-mlir's importer."""

from __future__ import annotations

import re
import subprocess
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export._remove_effect_tokens_pass import _remove_effect_tokens
from torch.fx.traceback import preserve_node_meta

from sleepc.backends.mlir.decompositions import DECOMPOSITIONS
from sleepc.backends.mlir.empties import without_empties
from sleepc.backends.mlir.traced import EntryPoint, block_of

# Passes of torch-mlir: from what its importer writes to the torch dialect as backends take it, and from there to what
# is compiled.
TORCH = "builtin.module(func.func(torch-match-quantized-custom-ops), torchdynamo-export-to-torch-backend-pipeline)"
DIALECTS = {
    "linalg": "builtin.module(torch-backend-to-linalg-on-tensors-backend-pipeline)",
    "stablehlo": "builtin.module(torch-backend-to-stablehlo-backend-pipeline)",
}


# How a place is told to compilers, as that of a file; and how an operator is named in what they say without one: an
# operator without a form of its own, one with, one of PyTorch's exporter.
PLACE = re.compile(r"(\w+(?:, block \d+)?): ([\w.]+)\"?:1:0")
NAMED = (r'name = "torch\.([\w.]+)"', r"'torch\.([\w.]+)'", r"torch\.ops\.([\w.]+)")


class NotLowered(Exception):
    """What an operator or a pass could not be made of, in lines of what a compiler `told`: the first error that it
    `said`, the `operator` and the `place`, a function and a block of it, where it says them; and the `text` that it was
    given, if there is one.
    """

    def __init__(self, told: str, text: str = "") -> None:
        error = told[told.rfind("\n", 0, max(told.find("error: "), 0)) + 1 :]  # what is before are warnings
        place = PLACE.search(error)
        named = place[2] if place else next((found[1] for each in NAMED if (found := re.search(each, error))), "")
        self.place, self.operator = (place[1] if place else ""), named
        self.said, self.text = error.partition("error: ")[2].partition("\n")[0][:400] or told[:400], text
        super().__init__(told)


@dataclass(frozen=True)
class DialectFunction:
    """A function in a dialect that is compiled, and in the torch dialect, from which it was made; and what goes in and
    out, by name: first the parameters, then the inputs.
    """

    name: str
    text: str
    torch_text: str
    parameters: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class _Module(nn.Module):
    """An entry as torch.export takes it: tensors in the order of their names, in and out; `names` gets those of what
    comes out, since an attribute that is set while it is traced is put back.
    """

    def __init__(self, entry: EntryPoint, names: list[str]) -> None:
        super().__init__()
        self.entry, self.tell = entry, names.extend

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        names = [*self.entry.parameters, *self.entry.inputs]
        found = self.entry.run(dict(zip(names, tensors, strict=True)))
        self.tell(found)
        return tuple(found.values())


def function_of(entry: EntryPoint, dialect: str) -> DialectFunction:
    """An entry in a dialect of DIALECTS. Raises NotLowered for what PyTorch's exporter or torch-mlir do not take."""
    names: list[str] = []
    program = _exported(_Module(entry, names), entry)
    outputs = dict(zip(names, _results(program), strict=True))
    _tell_places(program, entry.name)
    torch_text = lowered_text(TORCH, _imported(program, entry.name))
    text = lowered_text(DIALECTS[dialect], torch_text)
    return DialectFunction(entry.name, text, torch_text, entry.parameters, entry.inputs, outputs)


def _exported(module: _Module, entry: EntryPoint) -> ExportedProgram:
    from torch_mlir.extras.fx_decomp_util import get_decomposition_table

    tensors = (*entry.parameters.values(), *entry.inputs.values())
    # as where gradients are wanted: attention by products and a softmax, not by a kernel of PyTorch
    with warnings.catch_warnings(), torch.enable_grad(), preserve_node_meta():
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        try:
            program = torch.export.export(module, tensors, strict=False)
            found: ExportedProgram = program.run_decompositions({**get_decomposition_table(), **DECOMPOSITIONS})
            _remove_effect_tokens(found)  # of torch.linalg.inv's check of its matrix: they are inputs and outputs
            without_empties(found)
        except Exception as error:  # torch.export's errors have no class in common
            raise NotLowered(str(error) or type(error).__name__) from error
    return found


def _results(program: ExportedProgram) -> list[Tensor]:
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    return [node.meta["val"] for node in output.args[0]]


def _tell_places(program: ExportedProgram, name: str) -> None:
    """Of every operator, where it stands and what it is called, as the file that the importer takes it from: compilers
    carry that through and say it.
    """
    for node in program.graph.nodes:
        if node.op == "call_function":
            block = block_of(node)
            place = name if block is None else f"{name}, block {block}"
            node.meta["stack_trace"] = f'File "{place}: {str(node.target).removesuffix(".default")}", line 1,'


def _imported(program: ExportedProgram, name: str) -> str:
    from torch_mlir import ir
    from torch_mlir.dialects import torch as torch_dialect
    from torch_mlir.extras.fx_importer import FxImporter

    with ir.Context() as context:
        torch_dialect.register_dialect(context)
        importer = FxImporter(context=context)
        try:
            importer.import_frozen_program(program, func_name=name)
        except Exception as error:  # nor have torch-mlir's
            raise NotLowered(str(error)) from error
        return with_places(importer.module)


def with_places(module: Any) -> str:
    """The text of a module, in which every operation says where it comes from."""
    return str(module.operation.get_asm(enable_debug_info=True))


def lowered_text(passes: str, text: str) -> str:
    """The text after torch-mlir's passes, in a process of their own: some of their errors end it."""
    command = [_opt(), f"--pass-pipeline={passes}", "--mlir-print-debuginfo"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotLowered(f"{done.stderr}\nerror: torch-mlir's passes ended with {done.returncode}", text)
    return done.stdout


@cache
def _opt() -> str:
    import torch_mlir

    (folder,) = torch_mlir.__path__
    return str(Path(folder) / "_mlir_libs" / "torch-mlir-opt")
