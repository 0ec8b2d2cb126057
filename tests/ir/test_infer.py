import operator
from typing import Any

import pytest
import torch

from sleepc.errors import SleepcError
from sleepc.ir.diagnose import InvalidProgram
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from tests.ir.graphs import WIDTH, aten, attention_block, call, tensor, window_step


def types_of(graph: Graph) -> list[str]:
    return [str(node.meta["type"]) for node in graph.fx.nodes if node.op != "output"]


def test_attention_block_by_hand() -> None:
    types = types_of(attention_block())
    assert types[:7] == [
        "f32[B,T,12]",
        "f32[36,12]",
        "f32[12,12]",
        "int",
        "int",
        "f32[B,T,36]",
        "(f32[B,T,12], f32[B,T,12], f32[B,T,12])",
    ]
    assert "f32[B,4,T,T]" in types
    assert "bool[T,T]" in types
    assert types[-1] == "f32[B,T,12]"


def one(*arguments: Any, target: Any, dims: tuple[int | str, ...] = ("B", "T", WIDTH)) -> Graph:
    """A graph of one call on a port x of these sizes."""
    g = Graph("g")
    x = g.add_port("input", "x", tensor(*dims))
    sizes = {"B": call(g, aten.sym_size.int, x, 0), "T": call(g, aten.sym_size.int, x, 1)}

    def put(value: Any) -> Any:
        return [put(v) for v in value] if isinstance(value, list) else sizes.get(value, value)

    g.set_returns({"y": call(g, target, x, *map(put, arguments))})
    return g


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (one([-1], target=aten.reshape.default), "f32[12*B*T]"),
        (one(1, 1, target=aten.slice.Tensor), "f32[B,T-1,12]"),
        (one(2, target=aten.cumsum.default), "f32[B,T,12]"),
        (one(torch.float16, target=aten.to.dtype), "f16[B,T,12]"),
        (one(["B", "T", 3, 4], target=aten.view.default), "f32[B,T,3,4]"),
        (one(5, -1, target=aten.topk.default), "(f32[B,T,5], i64[B,T,5])"),
        (one(target=aten.relu.default, dims=("B", "260+T", "N")), "f32[B,T+260,N]"),
    ],
)
def test_sizes_stay_symbolic(graph: Graph, expected: str) -> None:
    infer_types(graph)
    assert str(graph.results()["y"].meta["type"]) == expected


def test_arithmetic_of_sizes_reaches_shapes() -> None:
    g = Graph("g")
    x = g.add_port("input", "x", tensor("B", "T"))
    size = call(g, operator.sub, call(g, operator.mul, call(g, aten.sym_size.int, x, 1), 2), 1)
    g.set_returns({"y": call(g, aten.arange.default, size)})
    infer_types(g)
    assert types_of(g) == ["f32[B,T]", "int", "int", "int", "i64[2*T-1]"]


def test_arguments_that_are_equal_and_of_other_types_are_told_apart() -> None:
    g = Graph("g")
    g.add_port("input", "x", tensor("B"))
    g.set_returns({str(n): call(g, aten.full.default, [2], n) for n in (1, 1.0, True)})
    infer_types(g)
    assert types_of(g)[1:] == ["i64[2]", "f32[2]", "bool[2]"]


def test_values_of_one_type_with_other_strides_are_told_apart() -> None:
    g = Graph("g")
    x = g.add_port("input", "x", tensor("B", 4, 4))
    g.set_returns({"y": call(g, aten.view.default, x, [-1])})
    infer_types(g)
    assert types_of(g)[-1] == "f32[16*B]"
    turned = call(g, aten.transpose.int, x, 1, 2)
    g.set_returns({"y": call(g, aten.view.default, turned, [-1])})
    with pytest.raises(InvalidProgram, match="refuses its arguments"):
        infer_types(g)


@pytest.mark.parametrize("turn", [1, 2])
def test_what_one_graph_compares_its_sizes_with_changes_no_other(turn: int) -> None:
    """T >= 5 in one graph and T < 6 in the next are not T = 5; what was refused is refused again."""
    first, second = (one(1, 0, end, target=aten.slice.Tensor) for end in (5, 6))
    infer_types(first)
    infer_types(second)
    assert (types_of(first)[-1], types_of(second)[-1]) == ("f32[B,5,12]", "f32[B,T,12]")
    with pytest.raises(InvalidProgram, match="particular sizes"):
        infer_types(one(["B", 5, WIDTH], target=aten.view.default))


def test_an_operator_that_writes_is_refused() -> None:
    with pytest.raises(InvalidProgram, match="writes to its arguments"):
        infer_types(one(1, 0, target=aten.transpose_.default))


def test_port_types_become_canonical_and_our_operators_infer() -> None:
    assert types_of(window_step())[-1] == "f32[B,2,8,4]"
    graph = one(target=aten.relu.default, dims=("B", "3+T"))
    infer_types(graph)
    assert types_of(graph)[0] == "f32[B,T+3]"


@pytest.mark.parametrize(
    ("graph", "what"),
    [
        (one(["B", 5, WIDTH], target=aten.view.default), "T = 5"),
        (one([3, -1, WIDTH], target=aten.view.default), "B = 3"),
        (one([15, WIDTH], target=aten.view.default), "15"),
    ],
)
def test_a_size_tied_to_a_value_is_found(graph: Graph, what: str) -> None:
    with pytest.raises(InvalidProgram, match="right only for particular sizes") as caught:
        infer_types(graph)
    assert caught.value.code == "V14"
    assert what in str(caught.value)
    assert "> %3" in str(caught.value)


def test_equal_sizes_of_two_names_are_found() -> None:
    g = Graph("g")
    x, y = g.add_port("input", "x", tensor("B", "N")), g.add_port("input", "y", tensor("B", "T"))
    g.set_returns({"z": call(g, aten.add.Tensor, x, y)})
    with pytest.raises(InvalidProgram) as caught:
        infer_types(g)
    assert caught.value.code in ("V11", "V14")


@pytest.mark.parametrize(
    "graph",
    [
        one(3, target=operator.mul),  # a tensor where a size belongs
        one(0, target=operator.getitem),  # rows of a tensor are aten.select.int
        one([7, 5], target=aten.view.default, dims=("B", 6)),
        one("rule", target=aten.add.Tensor),
        one(torch.complex64, target=aten.to.dtype),
        one(target=aten.equal.default),
    ],
)
def test_arguments_that_an_operator_refuses(graph: Graph) -> None:
    with pytest.raises(InvalidProgram) as caught:
        infer_types(graph)
    assert caught.value.code == "V11"
    assert "layers.0" in str(caught.value)


def test_a_port_needs_a_type() -> None:
    g = Graph("g")
    g.set_returns({"x": g.add_port("input", "x", None)})
    with pytest.raises(InvalidProgram) as caught:
        infer_types(g)
    assert caught.value.code == "V10"


def test_huge_sizes_cost_nothing() -> None:
    g = Graph("g")
    x = g.add_port("input", "x", tensor("B", 2**40))
    size = call(g, aten.sym_size.int, x, 0)
    for _ in range(60):
        size = call(g, operator.mul, size, size)
    g.set_returns({"y": call(g, aten.arange.default, size)})
    with pytest.raises(SleepcError):
        infer_types(g)
