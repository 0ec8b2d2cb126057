"""Tensors without elements, which compilers are least tried on: constants in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten
ZEROS = (aten.mm.default, aten.bmm.default, aten.sum.default, aten.sum.dim_IntList)


def without_empties(program: ExportedProgram) -> None:
    """Rewrite a program in place so that none of these operators computes a tensor without elements, or with one:

    1. whatever has no elements is a constant,
    2. a product (mm, bmm) and a sum over no elements is 0, and a linear map of them (addmm) its bias, times beta,
    3. what is put beside others (cat) goes without it.

    Other operators over no elements, as a mean, are left as they are.
    """
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        parts = [each for each in node.all_input_nodes if _empty(each)]
        value = node.meta["val"]
        if _empty(node) or (parts and node.target in ZEROS):
            _replace(program, node, aten.full.default, list(value.shape), 0, dtype=value.dtype)
        elif parts and node.target is aten.addmm.default:
            bias = _replace(program, node, aten.expand.default, node.args[0], list(value.shape))
            if node.kwargs.get("beta", 1) != 1:
                _replace(program, bias, aten.mul.Scalar, bias, node.kwargs["beta"])
        elif parts and node.target is aten.cat.default:
            pieces, *rest = node.args
            node.args = ([each for each in pieces if not _empty(each)], *rest)
    program.graph.eliminate_dead_code()


def _empty(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.numel() == 0


def _replace(program: ExportedProgram, node: Node, target: Any, *given: Any, **options: Any) -> Node:
    """What users of a node take from now on: a call with its type."""
    with program.graph.inserting_after(node):
        made: Node = program.graph.call_function(target, given, options)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    program.graph_signature.replace_all_uses(node.name, made.name)
    if node not in made.all_input_nodes:
        program.graph.erase_node(node)
    return made
