"""A program at level LOWERED -> ONNX files in a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.dequantise import join_dequantised
from sleepc.backends.onnx.emit import MICROSOFT
from sleepc.backends.onnx.functions import attach
from sleepc.backends.onnx.manifest import ExportManifest, ModelFile, StateTensor, Tensor, Unchanged
from sleepc.backends.onnx.skips import join_skips
from sleepc.backends.onnx.sleep import sleep_graph
from sleepc.backends.onnx.softplus import keep_small_softplus
from sleepc.backends.onnx.views import keep_in_place
from sleepc.backends.onnx.wake import StepGraph, wake_graph
from sleepc.backends.onnx.weights import FILE, Weights
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import DTYPE_NAMES
from sleepc.passes.analysis.sleeps import passes_of, replays, sinks_of
from sleepc.passes.rewrite.kept_pairs import slots_of_heads
from sleepc.version import __version__

OPSETS = {"ort": {"": 23, MICROSOFT: 1}, "portable": {"": 18}}
IR_VERSION = 10
NAMES = {dtype.value: name for dtype, name in ((ir.DataType.FLOAT, "f32"), (ir.DataType.INT64, "i64"))}


def write_files(
    program: ProgramGraphs,
    folder: Path,
    style: Style,
    *,
    ep: str = "cpu",
    identity: str = "",
    weights: Weights | None = None,
) -> ExportManifest:
    """Write a lowered program as wake.onnx (and wake_one.onnx, if the style has it), sleep_replay.onnx,
    sleep_recurrent.onnx (if the program has a loop) and weights.bin. `weights` says afterwards what each weight
    of the file is.
    """
    weights = weights or Weights.of(program, folder, style.precision)
    steps = _steps(program, weights, style)
    files = {name: _save(step, folder / f"{name}.onnx", style) for name, step in steps.items()}
    asleep = steps.get("sleep_recurrent", steps["sleep_replay"])
    return ExportManifest(
        sleepc=__version__,
        identity=identity,
        precision=style.precision,
        ops=style.ops,
        ep=ep,
        sleep_ops="portable" if style.plain_sleeps else "same",
        packed=style.packed,
        opsets=OPSETS[style.ops],
        vocab=program.vocab,
        window=program.window,
        sinks=sinks_of(program),
        upto=program.upto,
        passes=passes_of(program),
        replays=replays(program),
        weights=FILE,
        weights_size=(folder / FILE).stat().st_size,
        wake=files["wake"],
        wake_one=files.get("wake_one"),
        sleep_replay=files["sleep_replay"],
        sleep_recurrent=files.get("sleep_recurrent"),
        states=_states(program, steps["wake"], asleep),
        budgets=slots_of_heads(program),
        rules=[],
        report={},
    )


def _steps(program: ProgramGraphs, weights: Weights, style: Style) -> dict[str, StepGraph]:
    """The graphs by the names of their files."""
    steps = {"wake": wake_graph(program, weights, style)}
    if style.one_token:
        steps["wake_one"] = wake_graph(program, weights, replace(style, tokens="one"))
    asleep = replace(style, ops="portable") if style.plain_sleeps else style
    steps["sleep_replay"] = sleep_graph(program, weights, asleep)
    if program.loop is not None:
        steps["sleep_recurrent"] = sleep_graph(program, weights, asleep, recurrent=True)
    return steps


def _states(program: ProgramGraphs, wake: StepGraph, asleep: StepGraph) -> list[StateTensor]:
    """What a host keeps, and how the two graphs change it."""
    return [
        StateTensor(
            name=s.name,
            dtype=DTYPE_NAMES[s.dtype],
            dims=s.dims,
            wake=wake.changes[s.name],
            sleep=asleep.changes.get(s.name, Unchanged()),
            initial=s.initial,
        )
        for s in program.all_states()
    ]


def _save(step: StepGraph, path: Path, style: Style) -> ModelFile:
    """Finish a graph and write it; what it reads and returns."""
    graph = ir.Graph(
        list(step.inputs.values()),
        list(step.outputs.values()),
        nodes=step.e.nodes,
        opset_imports=OPSETS[style.ops],
        name=path.stem,
    )
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="sleepc", producer_version=__version__)
    drop_unread(graph)
    keep_small_softplus(step.e, graph)
    if style.ops == "ort":
        join_skips(graph)
        join_dequantised(step.e, graph)
    if keep_in_place(step.e, graph):
        drop_unread(graph)
    for value in step.e.initializers.values():
        if value.uses():
            graph.register_initializer(value)
    for value in [v for v in graph.inputs if not v.uses() and v.name not in ("tokens", "lengths", "passes")]:
        graph.inputs.remove(value)
    attach(model)
    _write(model, path, style)
    return ModelFile(
        file=path.name, inputs=[_tensor(v) for v in graph.inputs], outputs=[_tensor(v) for v in graph.outputs]
    )


def _write(model: ir.Model, path: Path, style: Style) -> None:
    """Save a model. In plain operators, values of graphs inside have types too: iree-import-onnx takes those without
    as numbers.
    """
    inner = any(a.type == ir.AttributeType.GRAPH for node in model.graph for a in node.attributes.values())
    if not inner or style.ops != "portable":
        ir.save(model, path)
        return
    import onnx

    onnx.save(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True), path)


def drop_unread(graph: ir.Graph) -> None:
    """Remove nodes without readers; not by onnx-ir's pass, which takes unread outputs from nodes that need them."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
            continue
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                drop_unread(attribute.as_graph())


def _tensor(value: ir.Value) -> Tensor:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    dims = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
    names = {torch_type: DTYPE_NAMES[torch_type] for torch_type in DTYPE_NAMES}
    from sleepc.backends.onnx.emit import TYPES

    kinds = {TYPES[t]: n for t, n in names.items()}
    return Tensor(name=value.name, dtype=kinds[value.dtype], dims=dims)
