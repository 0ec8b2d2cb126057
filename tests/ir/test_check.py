"""One seeded fault for each rule of the verifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sleepc.ir.check import InvalidProgram, check_graph
from sleepc.ir.graph import Graph
from sleepc.ir.text import print_graph
from tests.ir.graphs import aten, attention_block, call, tensor, window_step


@pytest.mark.parametrize("make", [attention_block, window_step])
@pytest.mark.parametrize("level", ["ATEN", "CANONICAL", "CONVERTED", "STEP"])
def test_sound_graphs_pass_and_stay_as_they_are(make: Callable[[], Graph], level: str) -> None:
    graph = make()
    before = print_graph(graph)
    check_graph(graph, level, full=True)
    assert print_graph(graph) == before


def use_before_definition(g: Graph) -> None:
    first, *_, last = list(g.calls())
    first.append(last)


def no_output(g: Graph) -> None:
    g.fx.erase_node(g.output())


def port_after_call(g: Graph) -> None:
    with g.fx.inserting_before(g.output()):
        g.fx.placeholder("late")


def foreign_value(g: Graph) -> None:
    other = attention_block().ports()["h"]
    node = next(iter(g.calls()))
    node.args = (other, 0)


def name_missing(g: Graph) -> None:
    g.returns = ()


def one_name_twice(g: Graph) -> None:
    node = g.results()["h"]
    g.set_returns({"a": node, "b": node})
    g.returns = ("a", "a")


def placeholder_without_port(g: Graph) -> None:
    del g.ports()["qkv"].meta["port"]


def two_ports_of_a_name(g: Graph) -> None:
    g.ports()["qkv"].meta["port"] = g.ports()["out"].meta["port"]


def hidden_buffer(g: Graph) -> None:
    with g.fx.inserting_before(g.output()):
        g.fx.get_attr("buffer")


def random_operator(g: Graph) -> None:
    call(g, aten.rand_like.default, g.ports()["h"])


def any_function(g: Graph) -> None:
    call(g, print, g.ports()["h"])


def mutation(g: Graph) -> None:
    call(g, aten.add_.Tensor, g.ports()["h"], 1)


def no_type(g: Graph) -> None:
    del g.results()["h"].meta["type"]


def port_without_type(g: Graph) -> None:
    del g.ports()["h"].meta["type"]


def refused_arguments(g: Graph) -> None:
    node = call(g, aten.view.default, g.ports()["out"], [7, 7])
    node.meta["type"] = tensor(7, 7)


def wrong_type(g: Graph) -> None:
    g.results()["h"].meta["type"] = tensor("B", "T", 13)


def wrong_dtype(g: Graph) -> None:
    g.results()["h"].meta["type"] = tensor("B", "T", 12, dtype=torch.bfloat16)


def leaked_symbol(g: Graph) -> None:
    g.ports()["h"].meta["type"] = tensor("s77", "T", 12)


def undeclared_name(g: Graph) -> None:
    g.results()["h"].meta["type"] = tensor("B", "N", 12)


def size_not_canonical(g: Graph) -> None:
    g.ports()["h"].meta["type"] = tensor("B", "260+T", 12)


def size_no_text(g: Graph) -> None:
    g.ports()["h"].meta["type"] = tensor("B", "max(T,1)", 12)


def negative_size(g: Graph) -> None:
    g.ports()["h"].meta["type"] = tensor("B", -1, 12)


def tied_size(g: Graph) -> None:
    node = call(g, aten.view.default, g.ports()["h"], [3, -1, 12])
    node.meta["type"] = tensor(3, "T", 12)


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        ("V01", use_before_definition),
        ("V01", no_output),
        ("V01", port_after_call),
        ("V01", foreign_value),
        ("V01", name_missing),
        ("V01", one_name_twice),
        ("V02", placeholder_without_port),
        ("V02", two_ports_of_a_name),
        ("V03", hidden_buffer),
        ("V04", random_operator),
        ("V04", any_function),
        ("V05", mutation),
        ("V10", no_type),
        ("V10", port_without_type),
        ("V11", refused_arguments),
        ("V12", wrong_type),
        ("V12", wrong_dtype),
        ("V13", leaked_symbol),
        ("V13", undeclared_name),
        ("V13", size_not_canonical),
        ("V13", size_no_text),
        ("V13", negative_size),
        ("V14", tied_size),
    ],
)
def test_faults(code: str, damage: Callable[[Graph], None]) -> None:
    graph = attention_block()
    damage(graph)
    with pytest.raises(InvalidProgram) as caught:
        check_graph(graph, "STEP", full=True)
    assert caught.value.code == code
    assert code in str(caught.value)
    if code in ("V11", "V12", "V14"):
        check_graph(graph, "STEP", full=False)  # the cheap rules do not see these


def test_a_state_keeps_its_type() -> None:
    graph = window_step()
    node = call(graph, aten.neg.default, graph.results()["total"])
    node.meta["type"] = tensor()
    graph.set_returns({"k": node})
    with pytest.raises(InvalidProgram, match=r"state 'k' is f32\[B,2,8,4\] and becomes f32\[\]") as caught:
        check_graph(graph, "STEP", full=True)
    assert caught.value.code == "V22"


def test_a_written_state_is_not_read_again_even_through_a_view() -> None:
    with pytest.raises(InvalidProgram, match="read after it is written") as caught:
        check_graph(window_step(late_read=True), "STEP", full=False)
    assert caught.value.code == "V24"


def test_an_old_state_is_not_a_result_beside_the_new_one() -> None:
    graph = window_step()
    graph.set_returns({"old": graph.ports()["k"], "k": graph.results()["k"]})
    with pytest.raises(InvalidProgram) as caught:
        check_graph(graph, "STEP", full=False)
    assert caught.value.code == "V24"


def test_an_error_shows_the_place_and_the_source() -> None:
    graph = attention_block()
    node = list(graph.calls())[6]
    node.meta["type"] = tensor("B", "T", 99)
    with pytest.raises(InvalidProgram) as caught:
        check_graph(graph, "STEP", full=True)
    lines = str(caught.value).splitlines()
    marked = [i for i, line in enumerate(lines) if line.startswith("  > ")]
    assert len(marked) == 1
    assert "f32[B,T,99]" in lines[marked[0]]
    assert len(lines) == 1 + 4 + 1 + 4
    assert str(node.meta["source"]) in lines[0]
