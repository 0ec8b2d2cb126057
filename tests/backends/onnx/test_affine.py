"""The delta rules in plain operators, as affine maps: equal to the operator's own loop over tokens, in any pass."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.emit import Emitter, declare
from sleepc.backends.onnx.lower import IR_VERSION, OPSETS
from sleepc.backends.onnx.translate import translate
from sleepc.backends.onnx.weights import Weights
from sleepc.ir.compare import max_error
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.types import TensorType

ROWS, HEADS, DK, DV = 2, 2, 4, 3


def tokens(count: int, channel: bool, *, repeated: bool = False) -> dict[str, torch.Tensor]:
    """Values of a replay; `repeated`: one key, written whole each time."""
    draw = torch.Generator().manual_seed(count)
    given = {name: torch.randn(ROWS, HEADS, count, width, generator=draw) for name, width in (("k", DK), ("v", DV))}
    given["g"] = -torch.rand((ROWS, HEADS, count, DK) if channel else (ROWS, HEADS, count), generator=draw)
    given["beta"] = torch.rand(ROWS, HEADS, count, generator=draw)
    if repeated:
        given["k"], given["beta"] = given["k"][:, :, :1].expand_as(given["k"]).clone(), torch.ones(ROWS, HEADS, count)
    given["k"] /= given["k"].norm(dim=-1, keepdim=True)
    return given | {"S": torch.randn(ROWS, HEADS, DK, DV, generator=draw)}


def written(given: dict[str, torch.Tensor], rule: str, folder: Path) -> onnx.ModelProto:
    """A replay of these shapes as a model, for any number of rows; the number of passes is an input."""
    graph, e = Graph("one"), Emitter(Weights({}, {}, folder))
    dims: dict[str, Any] = {name: ("B", *x.shape[1:]) for name, x in given.items()}
    ports = {name: graph.add_port("input", name, TensorType(torch.float32, dims[name])) for name in given}
    parts = [ports[name] for name in ("k", "v", "g", "beta")]
    node = graph.fx.call_function(
        torch.ops.sleepc.replay.default, (*parts, [ports["S"]]), {"rule": rule, "passes": 1, "written": False}
    )
    graph.set_returns({"S": graph.fx.call_function(operator.getitem, (node, 0))})
    infer_types(graph)
    values = {name: ir.Value(name=name) for name in given}
    for name, value in values.items():
        declare(value, TensorType(torch.float32, dims[name]))
    passes = ir.Value(name="passes", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    e.sizes["B"] = e("Shape", values["S"], start=0, end=1)
    new = e("Identity", translate(e, graph, values, Style(ops="portable"), passes)["S"])
    new.name = "new"
    declare(new, TensorType(torch.float32, dims["S"]))
    constants = list(e.initializers.values())
    whole = ir.Graph(
        [*values.values(), passes],
        [new],
        nodes=e.nodes,
        initializers=constants,
        opset_imports=OPSETS["portable"],
        name="g",
    )
    model = ir.to_proto(ir.Model(whole, ir_version=IR_VERSION))
    onnx.checker.check_model(model, full_check=True)
    return model


def replayed(given: dict[str, torch.Tensor], rule: str, passes: int) -> torch.Tensor:
    """The same in float64, by PyTorch."""
    wide = {name: x.double() for name, x in given.items()}
    parts = [wide[name] for name in ("k", "v", "g", "beta")]
    (found,) = torch.ops.sleepc.replay(*parts, [wide["S"]], rule=rule, passes=passes, written=False, chunk=1)
    assert isinstance(found, torch.Tensor)
    return found


RULES = ("gated_delta", "gated_delta of channels", "delta", "gated", "gated of channels", "linear")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("count", "repeated"), [(1, False), (13, False), (40, True)])
def test_equal_to_the_loop_over_tokens(rule: str, count: int, repeated: bool, tmp_path: Path) -> None:
    rule, _, channels = rule.partition(" of ")
    given = tokens(count, bool(channels), repeated=repeated)
    model = written(given, rule, tmp_path)
    assert not {node.op_type for node in model.graph.node} & {"Scan", "Loop", "If"}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {value.name: given[value.name].numpy() for value in model.graph.input if value.name in given}
    corrects = "delta" in rule
    for passes in (1, 2, 3, 65) if corrects else (1,):
        more = {"passes": torch.tensor(passes).numpy()} if "passes" in {v.name for v in model.graph.input} else {}
        (found,) = session.run(None, feed | more)
        assert max_error(torch.from_numpy(found), replayed(given, rule, passes)) < (3e-5 if passes == 65 else 1e-5)


def test_nodes_grow_with_the_logarithm_of_tokens(tmp_path: Path) -> None:
    sizes = [len(written(tokens(8 << n, False), "gated_delta", tmp_path).graph.node) for n in (0, 1, 2, 5)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] < 20
    assert sizes[3] - sizes[2] == 3 * (sizes[2] - sizes[1])
