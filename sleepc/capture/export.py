"""nn.Module -> one flat graph of ATen operators with named ports, exported for any batch and length."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind

from sleepc.capture.attention_free import has_attention, no_attention
from sleepc.capture.call import BATCH, LENGTH, TokensToLogits
from sleepc.capture.counting import counting_start
from sleepc.capture.export_errors import explain
from sleepc.capture.fake_run import left_alone
from sleepc.capture.picked_keys import most_picked, noting_picked
from sleepc.capture.quiet import quiet
from sleepc.capture.recurrence import refuse_recurrence
from sleepc.errors import Refusal, SleepcError
from sleepc.ir.graph import Graph, PortKind, is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import HeldTensor, Param
from sleepc.ops import RECURRENCES


@quiet()
def capture_module(model: nn.Module, *, max_positions: int | None = None, decomposed: bool = False) -> ProgramGraphs:
    """Export `model` (in eval mode, any device, also meta) to a program at level ATEN.

    Parameters are held by reference to the module's tensors, under their qualified names. Operators may write to their
    arguments; `decomposed` takes this apart by PyTorch's own means: slow, but it knows about views.
    Raises Refusal: RECURRENT if layers have a recurrence of their own, POSITIONS if the model counts in another
    way than by one, OPERATOR if what it does depends on values; SleepcError if torch.export cannot follow the
    model.
    """
    wrapped = TokensToLogits(model.eval())
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with noting_picked() as picked:
        ran = refuse_recurrence(wrapped, device)
    most = most_picked(wrapped, device, picked, max_positions) if picked else None
    if wrapped.hugging_face:
        wrapped.start = counting_start(wrapped)
    tokens = torch.zeros(BATCH, LENGTH, dtype=torch.int64, device=device)
    positions = torch.arange(LENGTH, device=device).expand(BATCH, LENGTH).contiguous()
    dynamic = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    try:
        # torch's cache of fake results takes longer than it saves where sizes are symbols
        uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
        with torch.no_grad(), left_alone(wrapped), uncached, warnings.catch_warnings():
            # what the model assigns while it runs is taken out of it again
            warnings.filterwarnings("ignore", "The tensor attribute")
            exported = export(
                wrapped,
                (tokens, positions),
                dynamic_shapes={"tokens": dynamic, "positions": dynamic},
                strict=False,
            )
            if ran is None:
                ran = refuse_recurrence(exported.module(), device)
            if decomposed:
                exported = exported.run_decompositions({})  # operators stay what they are
            program = _to_program(exported, max_positions)
    except SleepcError:
        raise
    except Exception as error:
        if not has_attention(wrapped, tokens, positions):
            raise no_attention(type(model).__name__) from error
        raise explain(error, wrapped) from error
    _check_count(program.embed, ran)
    program.picked = most
    return program


def _check_count(graph: Graph, ran: int | None) -> None:
    """Raises Refusal(RECURRENT) if more or fewer recurrences stand in the graph than ran."""
    found = sum(is_call(node, *RECURRENCES) for node in graph.calls())
    if ran is not None and ran != found:
        raise Refusal("RECURRENT", f"{ran} convolutions and recurrences of layers ran, and {found} are in the graph")


def _to_program(exported: ExportedProgram, max_positions: int | None) -> ProgramGraphs:
    graph = Graph("embed")
    params: dict[str, Param] = {}
    values: dict[fx.Node, Any] = {}
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    for spec, node in zip(exported.graph_signature.input_specs, placeholders, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            values[node] = graph.add_port("input", node.name, None)
            values[node].meta["val"] = node.meta["val"]
            continue
        name, tensor = _stored(exported, spec)
        kind: PortKind = "param" if spec.kind is InputKind.PARAMETER else "const"
        values[node] = graph.add_port(kind, name, None)
        values[node].meta["val"] = node.meta["val"]
        params[name] = HeldTensor(tensor)
    results = _inline(exported.graph_module, values, graph, "")
    outputs = exported.graph_signature.output_specs
    (logits,) = [n for n, spec in zip(results, outputs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    graph.set_returns({"logits": logits})
    _refuse_memory(graph, {spec.target for spec in outputs if spec.kind is OutputKind.BUFFER_MUTATION})
    vocab = int(logits.meta["val"].shape[-1])
    dtype = next((p.dtype for p in params.values() if p.dtype.is_floating_point), torch.float32)
    head = Graph("head")
    return ProgramGraphs(embed=graph, head=head, params=params, vocab=vocab, dtype=dtype, max_positions=max_positions)


def _refuse_memory(graph: Graph, written: set[str | None]) -> None:
    """Raises Refusal(RECURRENT) if logits depend on what a buffer that the model writes held before: the next call
    would find something else in it.
    """
    needed = {graph.results()["logits"]}
    for node in reversed(list(graph.fx.nodes)):
        if node in needed:
            over = is_call(node, torch.ops.aten.copy.default)  # of what it copies over, nothing is left
            needed.update(node.all_input_nodes[1:] if over else node.all_input_nodes)
    names = {name.removeprefix("model.") for name in written if name}
    found = sorted(names.intersection(n.meta["port"].name for n in needed if n.op == "placeholder"))
    if found:
        raise Refusal(
            "RECURRENT",
            "the model keeps state in buffers: it reads what the last call wrote",
            where=", ".join(found),
            fix="sleepc converts models in which only softmax attention passes information between tokens.",
        )


def _stored(exported: ExportedProgram, spec: Any) -> tuple[str, torch.Tensor]:
    name = spec.target
    tensor = exported.state_dict.get(name)
    if tensor is None:
        tensor = exported.constants[name]
    return name.removeprefix("model."), tensor.detach()


def _inline(module: fx.GraphModule, values: dict[fx.Node, Any], into: Graph, where: str) -> list[Any]:
    """Copy the calls of `module` into `into`; regions (no_grad, autocast) are opened, since inference needs none."""
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            values[node] = getattr(module, str(node.target))
        elif node.op == "call_function":
            regions = [values[a] for a in node.args if isinstance(a, fx.Node) and isinstance(values[a], fx.GraphModule)]
            if regions:
                values[node] = _inline_region(regions[0], node, values, into, where)
            elif is_call(node, operator.getitem) and isinstance(values[node.args[0]], list):
                values[node] = values[node.args[0]][node.args[1]]
            else:
                copied = into.fx.node_copy(node, lambda n: values[n])
                copied.meta = {"val": node.meta.get("val"), "source": where or _source(node)}
                values[node] = copied
        elif node.op == "output":
            return [values[n] for n in node.args[0]]
    raise SleepcError("an exported graph has no output")


def _inline_region(
    region: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any], into: Graph, where: str
) -> list[Any]:
    position = [isinstance(a, fx.Node) and values[a] is region for a in node.args].index(True)
    arguments = node.args[position + 1 :]
    inner = [n for n in region.graph.nodes if n.op == "placeholder"]
    scope: dict[fx.Node, Any] = {p: values[a] for p, a in zip(inner, arguments, strict=True)}  # type: ignore[index]
    return _inline(region, scope, into, where or _source(node))


def _source(node: fx.Node) -> str:
    """The place of the operation in the model, for people: the innermost module's path."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1].removeprefix("model.") if paths else ""
