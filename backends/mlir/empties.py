"""Tensors without elements, which compilers are least tried on: constants in their place."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.bmm.default)


def without_empties(program: ExportedProgram) -> None:
    """Rewrite a program in place so that no operator computes a tensor without elements, or with one:

    1. what has no elements is a constant,
    2. a product over no elements is 0,
    3. what is put beside others goes without it.
    """
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        parts = [each for each in node.all_input_nodes if _empty(each)]
        if _empty(node) or (parts and node.target in PRODUCTS):
            _replace(program, node)
        elif parts and node.target is aten.cat.default:
            pieces, *rest = node.args
            node.args = ([each for each in pieces if not _empty(each)], *rest)
    program.graph.eliminate_dead_code()


def _empty(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.numel() == 0


def _replace(program: ExportedProgram, node: Node) -> None:
    value = node.meta["val"]
    with program.graph.inserting_before(node):
        zeros = program.graph.call_function(aten.full.default, (list(value.shape), 0), {"dtype": value.dtype})
    zeros.meta = dict(node.meta)
    node.replace_all_uses_with(zeros)
    program.graph_signature.replace_all_uses(node.name, zeros.name)
    program.graph.erase_node(node)
