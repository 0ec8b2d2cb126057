"""Entries as text of an MLIR dialect, by torch.export and torch-mlir's importer."""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sleepc.backends.mlir.decompositions import DECOMPOSITIONS
from sleepc.backends.mlir.empties import without_empties
from sleepc.backends.mlir.traced import EntryPoint

# Passes of torch-mlir: from what its importer writes to the torch dialect as backends take it, and from there to what
# is compiled.
TORCH = "builtin.module(func.func(torch-match-quantized-custom-ops), torchdynamo-export-to-torch-backend-pipeline)"
DIALECTS = {
    "linalg": "builtin.module(torch-backend-to-linalg-on-tensors-backend-pipeline)",
    "stablehlo": "builtin.module(torch-backend-to-stablehlo-backend-pipeline)",
}


# How an operator is named in what a compiler says: one without a form of its own, one with, one of PyTorch's exporter.
NAMED = (r'name = "torch\.([\w.]+)"', r"'torch\.([\w.]+)'", r"torch\.ops\.([\w.]+)")


class NotLowered(Exception):
    """What an operator or a pass could not be made of; `operator` as the compiler calls it, if it does, the `text` that
    it was given, if there is one, and the function of it that the operator is in, if the compiler says where.
    """

    def __init__(self, said: str, text: str = "", function: str = "") -> None:
        self.function = function
        found = next(filter(None, (re.search(each, said) for each in NAMED)), None)
        self.operator, self.said, self.text = (found[1] if found else ""), said, text
        super().__init__(said)


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
    torch_text = lowered_text(TORCH, _imported(program, entry.name))
    text = lowered_text(DIALECTS[dialect], torch_text)
    return DialectFunction(entry.name, text, torch_text, entry.parameters, entry.inputs, outputs)


def _exported(module: _Module, entry: EntryPoint) -> ExportedProgram:
    from torch_mlir.extras.fx_decomp_util import get_decomposition_table

    tensors = (*entry.parameters.values(), *entry.inputs.values())
    # as where gradients are wanted: attention by products and a softmax, not by a kernel of PyTorch
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        try:
            program = torch.export.export(module, tensors, strict=False)
            found: ExportedProgram = program.run_decompositions({**get_decomposition_table(), **DECOMPOSITIONS})
            without_empties(found)
        except Exception as error:  # torch.export's errors have no class in common
            raise NotLowered(str(error) or type(error).__name__) from error
    return found


def _results(program: ExportedProgram) -> list[Tensor]:
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    return [node.meta["val"] for node in output.args[0]]


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
        return str(importer.module)


def lowered_text(passes: str, text: str) -> str:
    """The text after torch-mlir's passes, in a process of their own: some of their errors end it."""
    command = [_opt(), f"--pass-pipeline={passes}"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = first_error(done.stderr.splitlines()) or f"torch-mlir's passes ended with {done.returncode}"
        raise NotLowered(said, text)
    return done.stdout


@cache
def _opt() -> str:
    import torch_mlir

    (folder,) = torch_mlir.__path__
    return str(Path(folder) / "_mlir_libs" / "torch-mlir-opt")


def first_error(lines: Iterable[str]) -> str:
    """The first line of a compiler's output that says what is wrong, without its place; empty if none does."""
    said = [line for line in lines if "error:" in line]
    return re.sub(r"^.*?error: ", "", said[0])[:400] if said else ""


def function_of_error(lines: Iterable[str], text: str) -> str:
    """The name of the function of `text` that this first line lies in, without what `join` adds; empty if it says no
    line.
    """
    found = next((place for line in lines if (place := re.match(r"<stdin>:(\d+):\d+: error:", line))), None)
    before = text.splitlines()[: int(found[1])] if found else []
    names = re.findall(r"^\s*func\.func [^@]*@(\w+)", "\n".join(before), re.MULTILINE)
    return str(names[-1]) if names else ""
