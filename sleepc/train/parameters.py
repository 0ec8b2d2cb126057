"""Which parameters a training changes, and in which dtypes the others are held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.levels import aten
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import FileTensor, Param, is_learned
from sleepc.passes.adapt.add_low_rank import low_rank_keys
from sleepc.train.settings import What


def trained_keys(program: ProgramGraphs, what: What) -> list[str]:
    """Keys of the parameters to train: those that the conversion or LoRA matrices added; with `all` every floating
    parameter of the source too, the first key of each tensor.
    """
    keys = list(dict.fromkeys(key for _, names in graphs_with_keys(program) for key in names.values()))
    chosen = [key for key in keys if is_learned(program.params[key])]
    if what != "all":
        return chosen
    first = {_place(program.params[key]): key for key in reversed(keys)}
    source = [key for key in keys if not program.params[key].new and program.params[key].dtype.is_floating_point]
    return chosen + [key for key in source if first[_place(program.params[key])] == key]


def tied_keys(program: ProgramGraphs, keys: Iterable[str]) -> dict[str, list[str]]:
    """For each of `keys` all keys of the same tensor, itself among them (a tied head): they are trained as one."""
    places: dict[object, list[str]] = {}
    for key, param in program.params.items():
        places.setdefault(_place(param), []).append(key)
    return {key: places[_place(program.params[key])] for key in keys}


def linear_keys(program: ProgramGraphs) -> set[str]:
    """Keys of source weights that nothing but linear maps reads: those that may be held in bfloat16."""
    linear: set[str] = set()
    other: set[str] = set()
    for graph, names in graphs_with_keys(program):
        for port, node in graph.ports("param").items():
            only = all(is_call(user, aten.linear.default) and user.args[0] is not node for user in node.users)
            (linear if only else other).add(names[port])
    low = low_rank_keys(program)
    memories = {key for key, param in program.params.items() if param.new} - {*low, *low.values()}
    return linear - other - memories


def matrix_keys(program: ProgramGraphs, keys: Iterable[str]) -> set[str]:
    """Those of `keys` that are matrices of linear maps in blocks, and nothing else (an embedding, or the head)."""
    inside = {key for block in program.layout for key in block.params.values()}
    inside -= {key for graph in (program.embed, program.head) for key in graph.ports("param")}
    linear = linear_keys(program) & inside
    return {
        key
        for key, ties in tied_keys(program, keys).items()
        if linear.issuperset(ties) and len(program.params[key].shape) == 2
    }


def _place(param: Param) -> object:
    if isinstance(param, FileTensor):
        return param.file, param.tensor
    return param.value.data_ptr(), param.shape, param.value.stride()


def graphs_with_keys(program: ProgramGraphs) -> Iterator[tuple[Graph, dict[str, str]]]:
    """Every use of a graph, with the keys of its parameters by port; constants (tables of angles) are left out."""
    yield program.embed, {name: name for name in program.embed.ports("param")}
    for block in program.layout:
        for graph in program.classes[block.cls].graphs():
            yield graph, {port: block.params[port] for port in graph.ports("param")}
    yield program.head, {name: name for name in program.head.ports("param")}
    if program.encode is not None:
        yield program.encode.step, {key: key for key in program.encode.step.ports("param")}
