"""The function bodies say what ONNX Runtime's kernels do: where no kernel matches, results are the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, parser

from sleepc.backends.onnx.emit import MICROSOFT
from sleepc.backends.onnx.functions import convolution, recurrence
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.runtime.session import Session
from tests.backends.onnx.exports import exported, new_folder
from tests.families import VOCAB, WINDOW

NOWHERE = "test.nokernel"
TOLERANCE = 1e-5
ROWS, HEADS, DK, DV = 2, 2, 4, 3
Arrays = dict[str, Any]


def run(node: onnx.NodeProto, given: Arrays, ranks: dict[str, int], function: str | None) -> list[Any]:
    """Results of one node: of the kernel, or of a function in a domain without kernels."""
    functions, domain = [], MICROSOFT
    if function is not None:
        functions, domain = [parser.parse_function(function)], NOWHERE
        functions[0].domain = domain
        node.overload = functions[0].overload
    node.domain = domain
    inputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * a.ndim) for n, a in given.items()]
    outputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * r) for n, r in ranks.items()]
    graph = helper.make_graph([node], "one", inputs, outputs)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, given)
    return found


def hold_equal(node: onnx.NodeProto, given: Arrays, ranks: dict[str, int], function: str) -> None:
    copies = (onnx.NodeProto.FromString(node.SerializeToString()) for _ in range(2))
    kernel, inlined = (run(n, given, ranks, f) for n, f in zip(copies, (None, function), strict=True))
    for a, b in zip(inlined, kernel, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= TOLERANCE


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("copies", "scale"), [(1, 1.0), (3, 0.0)])
@pytest.mark.parametrize(
    ("rule", "channel"),
    [("linear", 0), ("delta", 0), ("gated", 0), ("gated", 1), ("gated_delta", 0), ("gated_delta", 1)],
)
def test_recurrence(rule: str, channel: int, copies: int, scale: float, tokens: int) -> None:
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32) / 2

    given = {"q": random(ROWS, tokens, HEADS * copies * DK), "k": random(ROWS, tokens, HEADS * DK)}
    given |= {"v": random(ROWS, tokens, HEADS * DV), "S": random(ROWS, HEADS, DK, DV)}
    names = ["q", "k", "v", "S", "", ""]
    if "gated" in rule:
        given["g"], names[4] = -np.abs(random(ROWS, tokens, HEADS * (DK if channel else 1))), "g"
    if "delta" in rule:
        given["beta"], names[5] = np.abs(random(ROWS, tokens, HEADS)), "beta"
    while not names[-1]:
        names.pop()
    options: Arrays = {"q_num_heads": HEADS * copies, "kv_num_heads": HEADS, "update_rule": rule, "scale": scale}
    node = helper.make_node("LinearAttention", names, ["o", "S2"], **options)
    hold_equal(node, given, {"o": 3, "S2": 4}, recurrence(rule, "gated" in rule, "delta" in rule))


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("taps", [1, 4])
def test_convolution(taps: int, tokens: int, activation: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {"x": (ROWS, 6, tokens), "w": (6, 1, taps), "tail": (ROWS, 6, taps - 1)}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    node = helper.make_node("CausalConvWithState", ["x", "w", "", "tail"], ["y", "new"], activation=activation)
    hold_equal(node, given, {"y": 3, "new": 3}, convolution(activation))


def nodes_of(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    """All nodes, those of graphs inside it too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def without_kernels(folder: Path) -> tuple[Path, set[str]]:
    """A copy of an export whose functions, and the nodes that call them, have a domain that nobody knows; which."""
    copy, found = new_folder(), set()
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    for path in copy.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        names = {(f.name, f.overload) for f in model.functions}
        for part in (*model.functions, *(n for n in nodes_of(model.graph) if (n.op_type, n.overload) in names)):
            part.domain = NOWHERE
        model.opset_import.append(helper.make_opsetid(NOWHERE, 1))
        onnx.save(model, path)
        found |= {f"{path.stem} {name} {overload}" for name, overload in names}
    return copy, found


@pytest.mark.parametrize(
    ("name", "recipe", "bodies"),
    [
        # in a Loop of replays; of blocks that run again; convolutions of fewer tokens than taps
        ("llama", "parallel-hard", {"sleep_replay LinearAttention gated_delta", "sleep_replay LinearAttention delta"}),
        (
            "gemma2",
            "recurrent-insert",
            {
                f"{file} {body}"
                for file in ("wake", "sleep_recurrent")
                for body in ("LinearAttention gated_delta", "CausalConvWithState none")
            },
        ),
    ],
)
def test_an_export_without_kernels_computes_the_same(name: str, recipe: str, bodies: set[str]) -> None:
    folder, manifest = exported(name, recipe)
    other, found = without_kernels(folder)
    assert found == bodies
    one, two = (Session(OnnxSteps(f, manifest, threads=1), 2) for f in (folder, other))
    rng = np.random.default_rng(0)
    for count in (1, 2, WINDOW, 2 * WINDOW, 1):
        tokens = rng.integers(0, VOCAB, (2, count))
        a, b = (session.feed(tokens, logits="all") for session in (one, two))
        assert np.abs(a - b).max() <= TOLERANCE * max(1.0, np.abs(a).max())
    assert min(one.stats.sleeps, two.stats.sleeps) >= 3


def test_files_that_call_no_such_kernel_have_no_bodies() -> None:
    for ops, file in (("ort", "wake.onnx"), ("portable", "sleep_replay.onnx")):
        folder, _ = exported("llama", "parallel-hard", ops)
        assert not onnx.load(folder / file, load_external_data=False).functions
