"""Nodes without a CUDA kernel are found by a table; the checker is held to what the CPU provider really does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from sleepc.backends.contract import Draft
from sleepc.backends.onnx.call import Operators, Style
from sleepc.backends.onnx.kernels import TABLE, Table, check_kernels, cuda_table
from sleepc.backends.onnx.manifest import MANIFEST
from sleepc.backends.onnx.registry import as_text, registered
from sleepc.backends.onnx.target import TARGET, Options
from sleepc.capturing import capture
from sleepc.errors import SleepcError
from tests.backends.onnx.exports import lower
from tests.families import Family, make_module

STRATEGIES: dict[str, dict[str, Any]] = {
    "parallel": {},
    "insert": {"strategy": "insert"},
    "replace": {"strategy": "replace"},
    "recurrent": {"passes": 2, "consolidation": "recurrent"},
}
UNARY = (
    "Abs",
    "BitwiseNot",
    "Ceil",
    "Erf",
    "Exp",
    "Identity",
    "Neg",
    "Not",
    "Reciprocal",
    "Round",
    "Sign",
    "Sqrt",
    "Tanh",
)
BINARY = ("Add", "And", "BitwiseAnd", "Div", "Equal", "Greater", "Max", "Mod", "Mul", "Sub", "Where")
TYPES = ("FLOAT", "DOUBLE", "INT64", "INT32", "INT16", "INT8", "UINT8", "BOOL")


@cache
def captured(name: str) -> Family:
    """A family in float32."""
    module = make_module(name, torch.float32)
    return Family(module, capture(module))


def write(path: Path, nodes: list[Any], inputs: dict[str, str], opset: int = 23, **options: Any) -> Path:
    """A file with these nodes; the last one's outputs are the graph's."""
    values = [helper.make_tensor_value_info(n, TensorProto.DataType.Value(t), [None]) for n, t in inputs.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output]
    graph = helper.make_graph(nodes, "g", values, outputs)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10, **options), path)
    return path


@pytest.fixture(scope="module")
def cpu() -> Table:
    """The CPU provider's kernels, of the operators in the table."""
    return registered("CPUExecutionProvider", {d: list(ops) for d, ops in cuda_table().kernels.items()})


def test_the_table_is_written_as_it_is_committed(cpu: Table) -> None:
    assert as_text(cuda_table()) == TABLE.read_text()
    assert Table.model_validate_json(as_text(cpu)) == cpu


def small_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of one node each that follow the standard."""
    for opset in (18, 23):
        for op in (*UNARY, *BINARY):
            schema = onnx.defs.get_schema(op, opset)
            parameters = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
            for kind in TYPES:
                if f"tensor({kind.lower()})" not in parameters[schema.inputs[-1].type_str]:
                    continue
                names = ["c", "a", "b"] if op == "Where" else ["a"] if op in UNARY else ["a", "b"]
                inputs = {name: "BOOL" if name == "c" else kind for name in names}
                path = folder / f"{op}.{kind}.{opset}.onnx"
                fmod: dict[str, Any] = {"fmod": 1} if op == "Mod" and kind in ("FLOAT", "DOUBLE") else {}
                yield path.name, write(path, [helper.make_node(op, names, ["y"], **fmod)], inputs, opset)


def test_the_checker_says_what_the_runtime_does(tmp_path: Path, cpu: Table) -> None:
    """Exactly the files that the CPU provider has no kernel for are refused, and there are some of both kinds."""
    refused, wrong = 0, []
    for name, path in small_files(tmp_path):
        try:
            ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            runs = True
        except ort.capi.onnxruntime_pybind11_state.NotImplemented:
            runs = False
        refused += not runs
        if runs == bool(check_kernels(path, cpu)):
            wrong.append(name)
    assert refused > 5
    assert wrong == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_every_node_that_is_written_has_a_kernel(name: str, strategy: str, tmp_path: Path) -> None:
    program, _ = captured(name).convert(**STRATEGIES[strategy])
    for ops in get_args(Operators):
        folder = tmp_path / ops
        folder.mkdir()
        lower(program, folder, Style(ops=ops, columns=False))
        files = sorted(folder.glob("*.onnx"))
        assert len(files) == (3 if strategy == "recurrent" else 2)
        assert [check_kernels(path) for path in files] == [[]] * len(files)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_precision_has_kernels(precision: Any, tmp_path: Path) -> None:
    program, _ = captured("llama").convert()
    lower(program, tmp_path, Style(precision=precision, columns=False))
    assert check_kernels(tmp_path / "wake.onnx") == []


def test_what_is_missing_is_named_once_with_its_types(tmp_path: Path) -> None:
    where = [helper.make_node("Where", ["c", "a", "b"], [f"y{i}"], f"choose.{i}") for i in range(3)]
    found = check_kernels(write(tmp_path / "wake.onnx", where, {"c": "BOOL", "a": "BOOL", "b": "BOOL"}))
    assert found == ["wake.onnx: ai.onnx::Where-16 on B = bool, T = bool: choose.0 and 2 more"]


def test_graphs_inside_nodes_and_functions_are_looked_into(tmp_path: Path) -> None:
    mish = helper.make_node("Mish", ["x"], ["y"], "inner")
    body = helper.make_graph(
        [mish],
        "body",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    scan = helper.make_node("Scan", ["a"], ["r"], "scan", body=body, num_scan_inputs=1)
    assert check_kernels(write(tmp_path / "scan.onnx", [scan], {"a": "FLOAT"})) == [
        "scan.onnx: ai.onnx::Mish-22 on T = float: inner"
    ]
    function = helper.make_function("own", "Soft", ["x"], ["y"], [mish], [helper.make_opsetid("", 23)])
    call = helper.make_node("Soft", ["a"], ["r"], "call", domain="own")
    path = write(tmp_path / "function.onnx", [call], {"a": "DOUBLE"}, functions=[function])
    assert check_kernels(path) == ["function.onnx: ai.onnx::Mish-22 on T = double: inner"]


def test_a_function_with_a_kernel_of_its_own_is_not_looked_into(tmp_path: Path) -> None:
    """ONNX Runtime runs the kernel and leaves the body alone."""
    mish = helper.make_node("Mish", ["X"], ["Y"])
    imports = [helper.make_opsetid("", 23)]
    function = helper.make_function("com.microsoft", "QuickGelu", ["X"], ["Y"], [mish], imports)
    call = helper.make_node("QuickGelu", ["a"], ["r"], domain="com.microsoft")
    assert check_kernels(write(tmp_path / "f.onnx", [call], {"a": "FLOAT"}, functions=[function])) == []


def test_an_operator_that_is_in_no_table_is_named(tmp_path: Path) -> None:
    call = helper.make_node("Whatever", ["a"], ["r"], "what", domain="com.microsoft")
    assert check_kernels(write(tmp_path / "f.onnx", [call], {"a": "FLOAT"})) == [
        "f.onnx: com.microsoft::Whatever is not in the table of ONNX Runtime 1.31.1: what"
    ]


def test_what_is_computed_from_sizes_alone_may_be_on_the_cpu(tmp_path: Path) -> None:
    """The same operator on the same type is refused where its input comes from the device."""
    size = [helper.make_node("Shape", ["a"], ["s"]), helper.make_node("BitwiseNot", ["s"], ["r"], "not")]
    assert check_kernels(write(tmp_path / "size.onnx", size, {"a": "INT64"})) == []
    value = [helper.make_node("BitwiseNot", ["a"], ["r"], "not")]
    assert check_kernels(write(tmp_path / "value.onnx", value, {"a": "INT64"})) != []


def test_a_kernel_is_for_the_version_it_names(tmp_path: Path) -> None:
    """An opset that has a newer version of the operator than the kernels know is refused: Attention-25 has none."""
    node = helper.make_node("Attention", ["q", "q", "q"], ["y"], q_num_heads=2, kv_num_heads=2)
    assert check_kernels(write(tmp_path / "old.onnx", [node], {"q": "FLOAT"}, 23)) == []
    assert check_kernels(write(tmp_path / "new.onnx", [node], {"q": "FLOAT"}, 25)) != []


def test_an_export_for_cuda_without_a_kernel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = captured("llama").convert()
    table = cuda_table()
    standard = {**table.kernels[""], "Attention": []}
    without = table.model_copy(update={"kernels": {**table.kernels, "": standard}})
    monkeypatch.setattr("sleepc.backends.onnx.kernels.cuda_table", lambda: without)
    with pytest.raises(SleepcError, match=r"CUDA has no kernel for wake\.onnx: ai\.onnx::Attention-23 on T1 = float"):
        TARGET.write(program, Options(ep="cuda"), Draft(tmp_path, program, range(60)))
    assert not (tmp_path / MANIFEST).exists()
