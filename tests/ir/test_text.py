from __future__ import annotations

import math
import operator
import string
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from sleepc.errors import SleepcError
from sleepc.ir.check import check_graph
from sleepc.ir.graph import Graph, PortKind
from sleepc.ir.levels import PLACEMENT
from sleepc.ir.levels import operator as find
from sleepc.ir.text import KINDS, MAX_BYTES, parse_graph, print_graph
from sleepc.ir.types import DTYPES, IntType, TensorType, TupleType
from tests.ir.graphs import aten, attention_block, call, tensor, window_step

GOLDEN = """\
graph block.0 {
  %0: f32[B,T,576] = input "h"
  %1: f32[576,576] = param "p0"
  %2: f32[B,3,260,64] = state "k"
  %3: int = aten.sym_size.int(%0, 0)
  %4: f32[B,T,576] = aten.linear(%0, %1, None)  # layers.0.q_proj
  %5: f32[B,T,576] = aten.mul.Tensor(%4, -1e-05)
  %6: (f32[B,T,288], f32[B,T,288]) = aten.split.Tensor(%5, 288, -1)
  %7: f32[B,T,288] = getitem(%6, 1)
  %8: i64[B+260] = aten.arange.start_step(0, %9, dtype=i64)
  return "h"=%7, "k"=%2
}
""".replace("%9", "%3")

# Random graphs: any literal in any place. They have a text, not a meaning.

anything = st.text(st.characters(exclude_categories=()), max_size=6)
sizes = st.one_of(st.integers(0, 2**62), st.sampled_from(["B", "T", "T+260", "2*B*T", "T-3", "B*T+N_1+7"]))
tensors = st.builds(TensorType, st.sampled_from(list(DTYPES.values())), st.lists(sizes, max_size=3).map(tuple))
types = st.one_of(tensors, st.just(IntType()), st.lists(tensors, max_size=3).map(tuple).map(TupleType))
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e22, math.pi]),
    anything,
    st.sampled_from(list(DTYPES.values())),
)
OPERATORS = [
    "aten.linear",
    "aten.add.Tensor",
    "aten.view",
    "aten.split.sizes",
    "aten.full",
    "aten.arange.start_step",
    "aten.index.Tensor",
    "sleepc.delta_rule",
    "sleepc.window_attention",
]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    g = Graph(draw(st.text(string.ascii_letters + "._-09", min_size=1).map(lambda s: f"g{s[:9]}")))
    nodes = []
    for name in draw(st.lists(anything, min_size=1, max_size=3, unique=True)):
        kind: PortKind = draw(st.sampled_from(KINDS))
        nodes.append(g.add_port(kind, name, draw(types)))
    for _ in range(draw(st.integers(0, 4))):
        node = _random_call(draw, g, nodes)
        node.meta["type"] = draw(types)
        node.meta["source"] = draw(st.one_of(anything, st.just("layers.0")))
        nodes.append(node)
    names = draw(st.lists(anything, max_size=3, unique=True))
    g.set_returns({name: draw(st.sampled_from(nodes)) for name in names})
    return g


def _random_call(draw: st.DrawFn, g: Graph, nodes: list[fx.Node]) -> fx.Node:
    one = st.sampled_from(nodes)
    if draw(st.integers(0, 4)) == 0:
        target = draw(st.sampled_from([operator.add, operator.floordiv, operator.mul]))
        return call(g, target, draw(one), draw(st.one_of(one, st.integers(-99, 99))))
    if draw(st.integers(0, 4)) == 0:
        return call(g, operator.getitem, draw(one), draw(st.integers(0, 9)))
    leaves = st.one_of(one, plain)
    values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
    target = find(draw(st.sampled_from(OPERATORS)), "STEP")
    schema: Any = target._schema  # type: ignore[attr-defined]
    positional = [a.name for a in schema.arguments if not a.kwarg_only]
    count = draw(st.integers(0, len(positional)))
    rest = [a.name for a in schema.arguments[count:] if a.name not in PLACEMENT]
    named = draw(st.lists(st.sampled_from(rest), unique=True)) if rest else []
    args = [draw(values) for _ in range(count)]
    return call(g, target, *args, **{name: draw(values) for name in named})


def shape_of(g: Graph) -> list[object]:
    """All that a graph holds, comparable; NaN equals NaN here, and lists are lists."""
    number = {node: f"%{i}" for i, node in enumerate(g.fx.nodes)}

    def plain_value(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return number[value]
        if isinstance(value, (list, tuple)):
            return [plain_value(v) for v in value]
        return (type(value).__name__, repr(value))

    rows: list[object] = [g.name, g.returns]
    for node in g.fx.nodes:
        kwargs = {k: plain_value(v) for k, v in node.kwargs.items()}
        source = " ".join(node.meta.get("source", "").split())
        source = source.encode("ascii", "backslashreplace").decode()
        about = (node.meta.get("port"), node.meta.get("type"), source)
        target = node.target if node.op == "call_function" else ""
        rows.append((node.op, target, plain_value(node.args), kwargs, about))
    return rows


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_parsing_takes_back_what_printing_wrote(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text, "STEP")
    assert print_graph(again) == text
    assert shape_of(again) == shape_of(graph)
    text.encode("ascii")


def test_golden_text() -> None:
    graph = parse_graph(GOLDEN, "STEP")
    assert print_graph(graph) == GOLDEN
    assert list(graph.ports("state")) == ["k"]
    assert graph.results()["k"] is graph.ports()["k"]
    assert list(graph.calls())[1].meta["source"] == "layers.0.q_proj"


@pytest.mark.parametrize("graph", [attention_block(), window_step()])
def test_a_graph_that_is_read_back_passes_all_checks(graph: Graph) -> None:
    check_graph(parse_graph(print_graph(graph), "STEP"), "STEP", full=True)


@pytest.mark.parametrize(
    ("old", "new", "what", "place"),
    [
        ("aten.linear", "aten.rand", "unknown operator aten.rand", "line 6, column 22"),
        ("aten.linear", "os.system", "unknown operator os.system", "line 6, column 22"),
        ("aten.linear", "aten.linear.default", "unknown operator", "line 6"),
        ("(%0, %1, None)", "(%0, %77, None)", "%77 is not defined", "line 6, column 38"),
        ("(%0, %1, None)", "(%0, %4, None)", "%4 is not defined", "line 6, column 38"),
        ("%5: f32", "%4: f32", "%4 is defined twice", "line 7, column 3"),
        ("None", "none", "expected a number", "line 6"),
        ("None", "1.5.2", "expected a number", "line 6"),
        ("None", "99999999999999999999", "too large", "line 6"),
        ("None", "1e999", "too large", "line 6"),
        ("None", "9" * 5000, "too long", "line 6"),
        ("None", "[" * 9 + "]" * 9, "nested too deep", "line 6"),
        ("None", "None, 1, 2", "arguments that do not fit", "line 6"),
        ("None", "weight=None", "arguments that do not fit", "line 6"),
        ("None", "nonsense=None", "arguments that do not fit", "line 6"),
        ("None", "bias=None, None", "without name after", "line 6"),
        ("None", "bias=None, bias=None", "bias is not allowed", "line 6"),
        ("dtype=i64", 'device="cuda"', "device is not allowed", "line 10"),
        ("dtype=i64", "layout=1", "layout is not allowed", "line 10"),
        ("dtype=i64", '"a\\qb"', "not a text", "line 10"),
        ("getitem(%6, 1)", "getitem(%6)", "number of arguments", "line 9"),
        ("getitem(%6, 1)", 'getitem("abc", 1)', "nodes and integers", "line 9"),
        ("getitem(%6, 1)", "getitem(1, %6)", "a node and an integer", "line 9"),
        ("getitem(%6, 1)", "sym.mul(2, 1.5)", "nodes and integers", "line 9"),
        ("f32[B,T,576] = input", "f31[B,T,576] = input", "unknown type f31", "line 2, column 7"),
        ("f32[B,T,576] = input", "? = input", "expected a name", "line 2, column 7"),
        ("f32[B,T,576] = input", "f32[B,-1,576] = input", "negative", "line 2"),
        ("f32[B,T,576] = input", "f32[B,T/2,576] = input", "expected a size", "line 2"),
        ("f32[B,T,576] = input", "f32[B,(T),576] = input", "not a size", "line 2"),
        ("f32[B,T,576] = input", "f32[B,T + 1,576] = input", "expected a size", "line 2"),
        ("f32[B,T,576] = input", "f32[B,,576] = input", "not a size", "line 2"),
        ("f32[B,T,576] = input", "f32[B,T,576] = inputs", "unknown operator", "line 2"),
        ('param "p0"', 'param "h"', "two ports are named", "line 3"),
        ('param "p0"', "param p0", "expected a string", "line 3"),
        ('param "p0"', 'param "p0" "p1"', "expected a newline", "line 3"),
        ('"k"=%2', '"h"=%2', "two results are named", "line 11"),
        ('return "h"', '  %9: f32[] = input "x"\n  return "h"', "a port after a call", "line 11"),
        ("}\n", "}\n\n", "expected the end", "line 13"),
        ("}\n", "} graph", "expected the end", "line 12"),
        ("}\n", "", "expected '}'", "line 12"),
        ("graph block.0", "graph .", "expected the name of a graph", "line 1"),
        ("graph block.0", "import os", "expected 'graph'", "line 1, column 1"),
        ("%3: int", "%3\t: int", "expected ':'", "line 5"),
        ("%3: int", "%³: int", "expected a node", "line 5"),
    ],
)
def test_what_is_refused(old: str, new: str, what: str, place: str) -> None:
    assert old in GOLDEN
    with pytest.raises(SleepcError) as caught:
        parse_graph(GOLDEN.replace(old, new, 1), "STEP")
    assert what in str(caught.value)
    assert place in str(caught.value)


def test_errors_show_the_line() -> None:
    with pytest.raises(SleepcError) as caught:
        parse_graph(GOLDEN.replace("None", "%8"), "STEP")
    assert "aten.linear(%0, %1, %8)" in str(caught.value)


def test_a_text_has_a_limit_and_a_level() -> None:
    with pytest.raises(SleepcError, match="longer than"):
        parse_graph(" " * (MAX_BYTES + 1), "STEP")
    with pytest.raises(SleepcError, match="unknown level"):
        parse_graph(GOLDEN, "GONE")


def test_long_hostile_texts_are_refused_soon() -> None:
    head = "graph g {\n  %0: f32["
    for tail in ("9*" * 10**6, "[" * 10**6, '"' + "\\" * 10**6, "T+" * 10**6, "1" * 10**6):
        with pytest.raises(SleepcError):
            parse_graph(head + tail, "STEP")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda g: call(g, aten.arange.default, 5, device=torch.device("cpu")), "device"),
        (lambda g: call(g, aten.zeros.default, [2], pin_memory=False), "pin_memory"),
        (lambda g: call(g, aten.add.Tensor, 1j, 2), "no text form"),
        (lambda g: call(g, aten.add.Tensor, 2**63, 2), "no text form"),
        (lambda g: call(g, aten.to.dtype, 1, torch.complex64), "no text form"),
        (lambda g: call(g, print), "not an operator"),
        (lambda g: setattr(g, "name", "a b"), "not a name"),
    ],
)
def test_what_has_no_text_is_not_printed(change: Any, what: str) -> None:
    graph = window_step()
    change(graph)
    with pytest.raises(SleepcError, match=what):
        print_graph(graph)


def test_a_missing_type_is_printed_but_not_read() -> None:
    graph = window_step()
    call(graph, aten.neg.default, graph.results()["total"])
    text = print_graph(graph)
    assert ": ? = aten.neg(" in text
    with pytest.raises(SleepcError):
        parse_graph(text, "STEP")


def test_no_results() -> None:
    g = Graph("g")
    g.add_port("input", "x", tensor())
    g.set_returns({})
    text = print_graph(g)
    assert text.splitlines()[-2] == "  return"
    assert print_graph(parse_graph(text, "STEP")) == text


# Hostile texts: random changes of sound ones.

PIECES = [
    *["%0", "%3", "%999", "aten.view", "aten.add.Tensor", "sym.mul", "getitem", "sleepc.replay"],
    *[
        "f32[B,T]",
        "int",
        "None",
        "True",
        "nan",
        "-inf",
        "-",
        "*",
        "+",
        "\\",
        "é",
        "\x00",
        "\n",
        "#",
    ],
    *['"', "(", ")", "[", "]", "{", "}", ",", ":", "=", " ", "9223372036854775807", "0", "1e308"],
    *["__import__('os').system('true')", "graph", "return", 'input "h"', 'state "x"', "dtype=f32"],
]
TEXTS = [GOLDEN, print_graph(attention_block()), print_graph(window_step())]


@st.composite
def hostile(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 5, 40]))
        other = draw(st.integers(0, len(text)))
        copied = st.just(text[other : other + draw(st.integers(1, 60))])
        new = draw(st.one_of(st.just(""), st.sampled_from(PIECES), copied, anything))
        text = text[:start] + new + text[end:]
    return text


WATCHED = (
    "exec",
    "compile",
    "import",
    "open",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pickle.",
)
_events: list[str] | None = None


def _audit(event: str, _: object) -> None:
    if _events is not None and event.startswith(WATCHED):
        _events.append(event)


sys.addaudithook(_audit)


def parse_watched(text: str) -> Graph | None:
    """Parse, and fail if the interpreter compiled, imported, opened or started anything."""
    global _events
    seen: list[str] = []
    _events = seen
    try:
        return parse_graph(text, "STEP")
    except SleepcError:
        return None
    finally:
        _events = None
        assert not seen


def test_the_watch_sees() -> None:
    global _events
    seen: list[str] = []
    _events = seen
    compile("1", "text", "eval")
    _events = None
    assert seen == ["compile"]


@settings(max_examples=400, deadline=None)
@given(hostile())
def test_hostile_texts_raise_nothing_else_and_run_nothing(text: str) -> None:
    parse_graph(GOLDEN, "STEP")  # what is imported once is imported now
    graph = parse_watched(text)
    if graph is not None:
        again = print_graph(graph)
        assert print_graph(parse_graph(again, "STEP")) == again


@settings(max_examples=40, deadline=None)
@given(hostile())
def test_hostile_graphs_fail_the_checks_cleanly(text: str) -> None:
    try:
        check_graph(parse_graph(text, "STEP"), "STEP", full=True)
    except SleepcError:
        return  # any other class of error is the failure that this looks for
