"""Every operator that has a translation, by itself, in both ways of writing files: values, dtypes and shapes against
PyTorch, at several sizes of one graph, T = 1 among them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from sleepc.backends.onnx.call import TRANSLATIONS, Style, translates
from sleepc.backends.onnx.emit import Emitter, declare
from sleepc.backends.onnx.lower import IR_VERSION, OPSETS
from sleepc.backends.onnx.translate import is_column, translate
from sleepc.backends.onnx.weights import Weights
from sleepc.errors import UsageError
from sleepc.ir import dims
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.levels import table
from sleepc.ir.types import TensorType

SIZES = ({"B": 2, "T": 5}, {"B": 3, "T": 1})


@dataclass(frozen=True)
class In:
    """An input: numbers around 0; above 0; integers from -9; places below `under`; booleans; or not numbers, too."""

    dims: tuple[int | str, ...]
    kind: str = "float"
    under: int = 2

    def make(self, sizes: dict[str, int]) -> torch.Tensor:
        shape = [dims.evaluate(dims.parse_dim(str(d)), sizes) for d in self.dims]
        generator = torch.Generator().manual_seed(len(shape) + sum(shape))
        normal = torch.randn(shape, generator=generator)
        if self.kind in ("integers", "places"):
            low, high = (-9, 10) if self.kind == "integers" else (0, self.under)
            return torch.randint(low, high, shape, generator=generator)
        if self.kind == "odd":
            special = torch.tensor([float("nan"), float("inf"), -float("inf")])
            return torch.where(normal > 0.5, special[torch.randint(0, 3, shape, generator=generator)], normal)
        return {"float": normal, "positive": normal.abs() + 0.1, "bool": normal > 0, "int32": (normal * 5).int()}[
            self.kind
        ]


@dataclass(frozen=True)
class Size:
    """A size as an argument: that of an input's dimension, and how many more."""

    at: int
    dim: int
    more: int = 0


X = In(("B", "T", 4))
Y = In(("B", "T", 4), "positive")
ROW = In((4,))
N = In(("B", "T", 4), "integers")
N2 = In(("B", 1, 4), "int32")
FLAG = In(("B", "T", 4), "bool")
FIXED = In((2, 3, 4))
AT = In(("B", "T", 2), "places", 4)
INF = float("inf")

Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return name, args, kwargs


UNARY = """
    abs ceil cos exp exp2 expm1 floor frac isfinite isinf isnan logical_not neg relu round sigmoid sign sin square tanh
    trunc tan erf silu gelu celu elu leaky_relu log_sigmoid mish relu6 selu hardsigmoid hardswish hardtanh clone
    contiguous alias detach zeros_like ones_like softplus
"""
POSITIVE = "log log10 log1p log2 reciprocal rsqrt sqrt"
INTEGER = "abs cos neg sqrt floor ceil round trunc rsqrt sigmoid logical_not bitwise_not"
CASES: list[Case] = [
    *(case(name, X) for name in UNARY.split()),
    *(case(name, Y) for name in POSITIVE.split()),
    *(case(name, N) for name in INTEGER.split()),
    *(case(name, In((4, "T"), "odd")) for name in ("isnan", "isinf", "isfinite", "relu")),
    case("gelu", X, approximate="tanh"),
    case("elu", X, 0.5, 1.5, 2.0),
    case("celu", X, 0.7),
    case("leaky_relu", X, 0.2),
    case("softplus", X, 2.0),
    case("hardtanh", X, -0.2, 0.3),
    case("glu", In(("B", "T", 6))),
    case("glu", In(("B", 6, "T")), -2),
    # two sides: shapes that broadcast, and dtypes that PyTorch promotes
    *(case(f"{n}.Tensor", X, other) for n in ["add", "sub", "mul", "div", "rsub"] for other in (Y, ROW, N, N2)),
    *(case(f"{n}.Tensor", N, N2) for n in ["add", "sub", "mul", "rsub", "subtract", "multiply"]),
    *(case(f"{n}.Tensor", N, In(("B", "T", 4), "positive")) for n in ("div", "true_divide", "divide")),
    *(case(f"{n}.Scalar", a, b) for n in ("add", "sub", "mul", "rsub") for a, b in [(X, 2), (X, 0.5), (N, 2)]),
    *(case(f"{n}.Scalar", N, 0.5) for n in ("mul", "rsub")),
    case("div.Scalar", N, 4),
    case("add.Tensor", X, Y, alpha=2),
    case("sub.Tensor", N, N2, alpha=3),
    case("rsub.Scalar", X, 1, 2),
    case("add.Tensor", FLAG, FLAG),
    case("mul.Tensor", FLAG, X),
    case("mul.Tensor", FLAG, FLAG),
    *(case(n, X, Y) for n in ("maximum", "minimum", "max.other", "min.other")),
    *(
        case(f"{n}.{kind}", a, b)
        for n in ["lt", "le", "gt", "ge", "eq", "ne"]
        for kind, a, b in [
            ("Tensor", X, Y),
            ("Tensor", N, N2),
            ("Tensor", FLAG, FLAG),
            ("Tensor", X, N),
            ("Scalar", X, 0.1),
            ("Scalar", N, 1.5),
            ("Scalar", N, 2),
            ("Scalar", FLAG, 1),
        ]
    ),
    *(case(n, a, b) for n in ("logical_and", "logical_or", "logical_xor") for a, b in [(FLAG, FLAG), (N, X)]),
    *(case(f"bitwise_{n}.Tensor", a, a) for n in ("and", "or", "xor") for a in (FLAG, N)),
    *(case(f"bitwise_{n}.Scalar", N, 5) for n in ("and", "or", "xor")),
    case("bitwise_not", FLAG),
    *(
        case(f"{n}.{kind}", a, b)
        for n in ("remainder", "fmod")
        for kind, a, b in [("Tensor", X, Y), ("Scalar", X, 0.7), ("Scalar", N, 3), ("Scalar", N, -3)]
    ),
    case("remainder.Scalar_Tensor", 7, Y),
    *(
        case(f"div.{kind}_mode", a, b, rounding_mode=mode)
        for mode in ("floor", "trunc", None)
        for kind, a, b in [("Tensor", X, Y), ("Scalar", N, 4), ("Scalar", N, -4), ("Scalar", X, 0.3)]
    ),
    case("floor_divide", X, Y),
    case("floor_divide.Scalar", N, 4),
    *(case("pow.Tensor_Scalar", a, b) for a, b in [(X, 2), (X, 3), (Y, 0.5), (N, 2), (Y, -1.5)]),
    case("pow.Tensor_Tensor", Y, X),
    case("pow.Scalar", 2.0, X),
    case("lerp.Scalar", X, Y, 0.3),
    case("lerp.Tensor", X, Y, X),
    case("addcmul", X, Y, Y, value=2),
    case("addcdiv", X, X, Y),
    *(case(n, X, -0.5, 0.5) for n in ("clamp", "clip")),
    case("clamp", N, None, 3),
    case("clamp", X, min=0.1),
    case("clamp_min", X, 0.2),
    case("clamp_max", N, 2),
    case("where.self", FLAG, X, ROW),
    case("where.ScalarOther", FLAG, N, 0.5),
    case("where.ScalarSelf", FLAG, 1.0, X),
    case("where.Scalar", FLAG, 1.0, 2.0),
    case("masked_fill.Scalar", X, FLAG, -INF),
    case("masked_fill.Tensor", X, FLAG, In((), "positive")),
    # reductions
    *(
        case(n, a, axes, keep)
        for n in ("mean.dim", "sum.dim_IntList", "amax", "amin")
        for a, axes, keep in [(X, [-1], True), (X, [1], False), (X, [0, -1], False)]
    ),
    *(case(n, X) for n in ("mean", "sum", "max", "min", "prod", "all", "any", "argmax", "argmin")),
    case("sum", N),
    case("sum.dim_IntList", FLAG, [-1]),
    case("sum.dim_IntList", X, [-1], dtype=torch.int64),
    case("mean.dim", N, [-1], dtype=torch.float32),
    case("prod.dim_int", X, -2, True),
    case("logsumexp", X, [-1], True),
    *(case(f"{n}.dim", a, -1) for n in ("any", "all") for a in (FLAG, N)),
    *(case(n, X, 1, keep) for n in ("argmax", "argmin", "max.dim", "min.dim") for keep in (True, False)),
    *(case(f"{n}.correction", X, [-1], correction=c, keepdim=True) for n in ("var", "std") for c in (0, 1)),
    case("var.correction", X, [0, 2], correction=0),
    case("var.dim", X, [-1], False, True),
    case("std.dim", X, [-1]),
    *(case("linalg_vector_norm", X, p, [-1], True) for p in (1, 2, 3.0, INF)),
    case("norm.ScalarOpt_dim", X, 2, [1]),
    *(case(n, X, axis, False) for n in ("_softmax", "_log_softmax") for axis in (-1, 1)),
    *(case(n, X, -1) for n in ("softmax.int", "log_softmax.int")),
    case("softmax.int", N, -1, torch.float32),
    case("cumsum", X, -2),
    case("cumsum", FLAG, 1),
    case("topk", X, 2),
    case("topk", X, 3, -1, False),
    *(case(n, X, *a) for n in ("sort", "argsort") for a in ((), (-1, True), (1,))),
    *(case(n, X, stable=True, dim=-1, descending=d) for n in ("sort.stable", "argsort.stable") for d in (True, False)),
    # shapes
    case("view", X, [Size(0, 0), Size(0, 1), 2, 2]),
    case("reshape", X, [-1, 4]),
    case("_unsafe_view", X, [Size(0, 0), -1]),
    case("flatten.using_ints", X, 1),
    case("unflatten.int", X, -1, [2, 2]),
    case("unsqueeze", X, -2),
    case("squeeze.dim", In(("B", 1, "T")), -2),
    case("squeeze.dims", In(("B", 1, 1, "T")), [1, 2]),
    case("squeeze", In((1, 3, 1))),
    case("view_as", In((2, 6)), In((3, 4))),
    case("reshape_as", In((2, 6)), In((3, 4))),
    case("expand", In(("B", 1, 4)), [-1, 3, -1]),
    case("expand", In((1, 4)), [Size(0, 1), 2, -1]),
    case("expand_as", ROW, X),
    case("broadcast_to", ROW, [3, 4]),
    case("broadcast_tensors", [X, ROW]),
    case("transpose.int", X, -1, 1),
    case("swapaxes", X, 0, -1),
    case("t", In((3, "T"))),
    case("permute", X, [2, 0, -2]),
    case("movedim.int", X, -1, 0),
    case("movedim.intlist", X, [0, 1], [-1, 0]),
    case("cat", [X, Y], -1),
    case("cat", [X, In((0,))], -1),
    case("cat", [X, N], 1),
    case("concat", [ROW, ROW]),
    case("concatenate", [ROW, ROW]),
    case("stack", [X, Y], -2),
    case("slice.Tensor", X, -1, 1, 3),
    case("slice.Tensor", X, 2, -3, -1),
    case("slice.Tensor", X, 2, 0, 2**63 - 1, 2),
    case("slice.Tensor", X, 1, 0, Size(0, 1)),
    case("slice.Tensor", In(("B", "T+2", 4)), 1, 2),
    case("narrow", X, -1, 1, 2),
    case("narrow", In(("B", "T+2")), -1, 1, Size(1, 1), ports=(X,)),
    case("select.int", X, -1, -2),
    case("select.int", X, 1, -1),
    case("unbind.int", X, -1),
    case("flip", X, [-1, 1]),
    case("roll", X, [1, -1], [-1, 0]),
    case("diff", X),
    *(case(n, In(("T", "T+1")), k) for n in ("triu", "tril") for k in (0, 1, -1)),
    case("triu", In(("T", 3), "bool")),
    *(case(n, FIXED, [1, 2]) for n in ("pad", "constant_pad_nd")),
    case("constant_pad_nd", In((2, 3), "integers"), [0, 1, 2, 0], 7),
    case("pad", FIXED, [-1, 0, 1, 1], "constant", 0.5),
    case("split.Tensor", X, 3, -1),
    case("split.sizes", X, [1, 3], 2),
    case("split_with_sizes", In(("B", "T+2")), [Size(1, 1), 2], -1, ports=(X,)),
    case("chunk", X, 2, -1),
    case("repeat", X, [2, 1, 1, 3]),
    case("repeat_interleave.self_int", X, 3, -2),
    # look-ups
    case("embedding", In((7, 3)), In(("B", "T"), "places", 7)),
    case("gather", X, -1, AT),
    case("take_along_dim", FIXED, In((2, 1, 2), "places", 4), -1),
    case("index_select", X, -1, In((3,), "places", 4)),
    case("scatter.src", X, 2, In(("B", "T", 1), "places", 4), In(("B", "T", 1))),
    case("scatter.src", X, 2, In(("B", "T", 1), "places", 4), Y),
    case("scatter.value", X, -1, AT, 0.5),
    case("scatter_add", X, -1, AT, In(("B", "T", 2))),
    case("slice_scatter", X, In(("B", "T", 2)), -1, 1, 3),
    case("slice_scatter", X, In(("B", "T", 2)), 2, 2),
    case("slice_scatter", X, In(("B", "T", 2)), -1, 1, 4, 2),
    case("select_scatter", X, In(("B", "T")), -1, -1),
    case("select_scatter", X, In(("B", 4)), 1, 0),
    case("one_hot", In(("B", "T"), "places", 5), 5),
    case("index.Tensor", X, [None, None, In((3,), "places", 4)]),
    case("index.Tensor", In((5, 4)), [In(("B", "T"), "places", 5)]),
    case("index.Tensor", In((5, 4, "T")), [In(("B", 1), "places", 5), In((3,), "places", 4)]),
    case("index.Tensor", In(("B", 5, 4, "T")), [None, In((2, 1), "places", 5), In((3,), "places", 4)]),
    # tensors out of nothing
    case("arange", 5),
    case("arange", Size(0, 1), ports=(X,)),
    case("arange.start", 2, Size(0, 1, 4), ports=(X,)),
    case("arange.start_step", 1, 10, 3),
    case("arange.start_step", 0, 1, 0.25, dtype=torch.float32),
    case("eye", 3),
    case("eye.m", 3, Size(0, 1), ports=(X,)),
    case("linspace", -1, 2, 7),
    case("scalar_tensor", 2.5),
    *(case(n, [Size(0, 0), 3], ports=(X,)) for n in ("zeros", "ones")),
    *(case(n, X, [Size(0, 1), 2]) for n in ("new_zeros", "new_ones")),
    case("full", [2, Size(0, 1)], 1.5, ports=(X,)),
    case("full", [], Size(0, 1), ports=(X,)),
    case("full_like", X, 3),
    case("new_full", X, [3], 2),
    case("add.Tensor", X, Size(0, 1)),
    case("mul.Tensor", N, Size(0, 1, 2)),
    # casts
    *(case("to.dtype", a, dtype) for a in (X, N, FLAG) for dtype in (torch.float32, torch.int64, torch.bool)),
    case("_to_copy", X, dtype=torch.int32),
    case("to.other", N, X),
    case("type_as", X, N),
    case("copy", X, In((4,), "integers")),
    # products
    case("linear", X, In((3, 4)), In((3,))),
    case("linear", X, In((3, 4))),
    case("matmul", X, In(("B", 4, "T"))),
    case("bmm", X, In(("B", 4, 3))),
    case("mm", In(("T", 4)), In((4, 3))),
    case("addmm", In((3,)), In(("T", 4)), In((4, 3))),
    # norms
    case("layer_norm", X, [4], In((4,)), In((4,))),
    case("layer_norm", X, [4], None, None, 1e-3),
    case("rms_norm", X, [4], In((4,)), 1e-3),
    case("rms_norm", X, [4]),
]


@dataclass
class Built:
    """One call as a graph of the program, and what to feed it."""

    graph: Graph
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[In]

    def given(self, sizes: dict[str, int]) -> list[torch.Tensor]:
        return [given.make(sizes) for given in self.inputs]

    def wanted(self, tensors: Sequence[torch.Tensor]) -> Any:
        """What PyTorch says."""
        at = iter(tensors)

        def real(x: Any) -> Any:
            if isinstance(x, Size):
                return tensors[x.at].shape[x.dim] + x.more
            if isinstance(x, list):
                return [real(y) for y in x]
            return next(at) if isinstance(x, In) else x

        return self.target(*real(list(self.args)), **self.kwargs)


def build(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Built:
    """The call over ports, with its sizes taken from them."""
    target, graph = table()[f"aten.{name}"], Graph("one")
    kwargs = dict(kwargs)
    extra = kwargs.pop("ports", ())
    inputs = [x for a in args for x in (a if isinstance(a, list) else [a]) if isinstance(x, In)] + list(extra)
    ports = []
    for i, given in enumerate(inputs):
        dtype = given.make(SIZES[0]).dtype
        ports.append(graph.add_port("input", str(i), TensorType(dtype, given.dims)))
    at = iter(ports)

    def symbolic(x: Any) -> Any:
        if isinstance(x, list):
            return [symbolic(y) for y in x]
        if isinstance(x, Size):
            size = graph.fx.call_function(torch.ops.aten.sym_size.int, (ports[x.at], x.dim))
            return graph.fx.call_function(operator.add, (size, x.more)) if x.more else size
        return next(at) if isinstance(x, In) else x

    symbols = tuple(symbolic(a) for a in args)
    node = graph.fx.call_function(target, symbols, kwargs)
    built = Built(graph, target, args, kwargs, inputs)
    found = built.wanted(built.given(SIZES[0]))
    results = {"0": node}
    if isinstance(found, (tuple, list)):
        results = {str(i): graph.fx.call_function(operator.getitem, (node, i)) for i in range(len(found))}
    graph.set_returns(results)
    infer_types(graph)
    return built


def compiled(built: Built, ops: Any, folder: Path, *, columns: bool = False) -> onnxruntime.InferenceSession:
    """The graph in ONNX Runtime, in a style where windows are written by the host or not."""
    e = Emitter(Weights({}, {}, folder))
    inputs = {name: ir.Value(name=f"in.{name}") for name in built.graph.ports()}
    for (name, value), node in zip(inputs.items(), built.graph.ports().values(), strict=True):
        type_ = node.meta["type"]
        declare(value, type_)
        for axis, dim in enumerate(type_.dims):
            if dim in SIZES[0]:
                e.sizes[str(dim)] = e("Shape", inputs[name], start=axis, end=axis + 1)
    found = translate(e, built.graph, inputs, Style(ops=ops, columns=columns))
    outputs = []
    for name, value in found.items():
        outputs.append(e("Identity", value))
        outputs[-1].name = f"out.{name}"
        declare(outputs[-1], built.graph.results()[name].meta["type"])
    graph = ir.Graph(
        list(inputs.values()),
        outputs,
        nodes=e.nodes,
        initializers=list(e.initializers.values()),
        opset_imports=OPSETS[ops],
        name="one",
    )
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def label(one: Case) -> str:
    kinds = (f"{x.kind}{len(x.dims)}" if isinstance(x, In) else str(x)[:12] for x in one[1])
    return "-".join((one[0], *kinds))


@pytest.mark.parametrize("one", CASES, ids=label)
def test_operator(one: Case, tmp_path: Path) -> None:
    built = build(*one)
    examples = []
    for sizes in SIZES:
        tensors = built.given(sizes)
        wanted = built.wanted(tensors)
        feed = {f"in.{i}": t.numpy() for i, t in enumerate(tensors)}
        examples.append((feed, list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]))
    for ops in ("ort", "portable"):
        session = compiled(built, ops, tmp_path)
        for feed, references in examples:
            for found, reference in zip(session.run(None, feed), references, strict=True):
                tensor = torch.from_numpy(np.asarray(found))
                assert tensor.dtype == reference.dtype
                torch.testing.assert_close(tensor, reference, rtol=2e-5, atol=2e-6, equal_nan=True)


def test_every_translation_of_pytorchs_is_tested() -> None:
    names = {f"aten.{name}" for name, _, _ in CASES}
    untested = [name for name, target in table().items() if target in TRANSLATIONS and name.startswith("aten.")]
    assert [name for name in untested if name not in names] == []


def test_a_size_that_is_no_polynomial_is_refused_where_somebody_asks(tmp_path: Path) -> None:
    graph = Graph("one")
    x = graph.add_port("input", "0", TensorType(torch.float32, ("B", "T", 4)))
    tokens = graph.fx.call_function(torch.ops.aten.sym_size.int, (x, 1))
    half = graph.fx.call_function(operator.floordiv, (tokens, 2))
    graph.set_returns({"0": graph.fx.call_function(torch.ops.aten.add.Tensor, (x, half))})
    infer_types(graph)
    with pytest.raises(UsageError, match="cannot say what size"):
        compiled(Built(graph, None, (), {}, []), "ort", tmp_path)


def test_an_operator_without_translation_is_refused(tmp_path: Path) -> None:
    built = build("erfinv", (X,), {})
    with pytest.raises(UsageError, match=r"no translation of aten\.erfinv") as caught:
        compiled(built, "ort", tmp_path)
    assert "eager backend" in str(caught.value.fix)


@pytest.mark.parametrize("ops", ["ort", "portable"])
def test_slots_are_written_where_nobody_asks_for_columns(ops: str, tmp_path: Path) -> None:
    """As in a state of the whole program, or in a sleep: only windows of blocks are written by the host."""
    graph = Graph("clock")
    state = graph.add_port("state", "ring", TensorType(torch.float32, ("B", 2, 5, 4)))
    new = graph.add_port("input", "new", TensorType(torch.float32, ("B", 2, "T", 4)))
    slots = graph.add_port("input", "slots", TensorType(torch.int64, ("B", "T")))
    written = graph.fx.call_function(torch.ops.sleepc.write_slots.default, (state, new, slots))
    graph.set_returns({"ring": written})
    infer_types(graph)
    assert is_column(graph, "ring")
    session = compiled(Built(graph, None, (), {}, []), ops, tmp_path, columns=True)
    ring, values, places = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 3, 4), torch.tensor([[4, 0, -1], [1, 2, 3]])
    feed = {"in.ring": ring.numpy(), "in.new": values.numpy(), "in.slots": places.numpy()}
    (found,) = session.run(None, feed)
    torch.testing.assert_close(torch.from_numpy(found), torch.ops.sleepc.write_slots(ring, values, places))


def test_an_operator_is_translated_once() -> None:
    """Otherwise the order of files would decide which one counts."""
    taken = next(iter(TRANSLATIONS))
    with pytest.raises(ValueError, match="is translated twice"):
        translates(taken)(TRANSLATIONS[taken])
