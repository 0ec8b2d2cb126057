"""Entries as text of an MLIR dialect, by torch.export and torch-mlir's importer."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sleepc.backends.mlir.decompositions import DECOMPOSITIONS
from sleepc.backends.mlir.entries import EntryPoint

# Passes of torch-mlir: from what its importer writes to the torch dialect as backends take it, and from there on.
TORCH = "builtin.module(func.func(torch-match-quantized-custom-ops), torchdynamo-export-to-torch-backend-pipeline)"
DIALECTS = {
    "linalg": "builtin.module(torch-backend-to-linalg-on-tensors-backend-pipeline)",
    "torch": "",
    "stablehlo": "builtin.module(torch-backend-to-stablehlo-backend-pipeline)",
}


# How an operator is named in what a compiler says: one without a form of its own, one with, one of PyTorch's exporter.
NAMED = (r'name = "torch\.([\w.]+)"', r"'torch\.([\w.]+)'", r"torch\.ops\.([\w.]+)")


class NotLowered(Exception):
    """What an operator or a pass could not be made of; `operator` as the compiler calls it, if it does."""

    def __init__(self, said: str) -> None:
        found = next(filter(None, (re.search(each, said) for each in NAMED)), None)
        self.operator, self.said = (found[1] if found else ""), said
        super().__init__(said)


@dataclass(frozen=True)
class DialectFunction:
    """A function in a dialect, and what goes in and out, by name: first the parameters, then the inputs."""

    name: str
    text: str
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
    """An entry in a dialect. Raises NotLowered for what PyTorch's exporter or torch-mlir do not take."""
    names: list[str] = []
    program = _exported(_Module(entry, names), entry)
    outputs = dict(zip(names, _results(program), strict=True))
    return DialectFunction(entry.name, _imported(program, entry.name, dialect), entry.parameters, entry.inputs, outputs)


def _exported(module: _Module, entry: EntryPoint) -> ExportedProgram:
    from torch_mlir.extras.fx_decomp_util import get_decomposition_table

    tensors = (*entry.parameters.values(), *entry.inputs.values())
    # as where gradients are wanted: attention by products and a softmax, not by a kernel of PyTorch
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        try:
            program = torch.export.export(module, tensors, strict=False)
            found: ExportedProgram = program.run_decompositions({**get_decomposition_table(), **DECOMPOSITIONS})
        except Exception as error:  # torch.export's errors have no class in common
            raise NotLowered(str(error) or type(error).__name__) from error
    return found


def _results(program: ExportedProgram) -> list[Tensor]:
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    return [node.meta["val"] for node in output.args[0]]


def _imported(program: ExportedProgram, name: str, dialect: str) -> str:
    from torch_mlir import ir
    from torch_mlir.dialects import torch as torch_dialect
    from torch_mlir.extras.fx_importer import FxImporter
    from torch_mlir.passmanager import PassManager

    with ir.Context() as context:
        torch_dialect.register_dialect(context)
        importer = FxImporter(context=context)
        try:
            importer.import_frozen_program(program, func_name=name)
            for passes in filter(None, (TORCH, DIALECTS[dialect])):
                PassManager.parse(passes).run(importer.module.operation)
        except Exception as error:  # nor have torch-mlir's
            raise NotLowered(str(error)) from error
        return str(importer.module)
