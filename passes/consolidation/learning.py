"""A step of gradient descent on a window, as a graph: blocks run over the window, and the way back to what they learn.

    x          the window's hidden states before the first block that learns
    p_t        the probabilities of the head, for tokens t = 0 .. n-2 of the window's n
    loss       the sum of -w_t log p_t[token t+1]; its gradient by the logits is w_t (p_t - e_{token t+1}). The w_t add
               up to 1: all alike (`next`), in proportion to t + 1 (`late`), or alike in a stretch (`span`) and 0 beside
    g          the gradient by all that a row learns, D of every map; |g| over all of it
    D'         D - lr min(1, clip / |g|) g, or D if |g| is not finite, which is counted

(Test-time training, arXiv 2512.23675, but for where D stands.) Rows have nothing in common. The way back is PyTorch's
own, traced once, so that a backend runs operators it knows; it ends at the first block that learns. What is computed
is differentiable in turn: training through a sleep goes through its steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from sleepc.errors import SleepcError, UsageError
from sleepc.ir import levels
from sleepc.ir.graph import PARAMETERS, Graph, Port, PortKind, with_result
from sleepc.ir.infer import infer_types, symbolic
from sleepc.ir.interp import run
from sleepc.ir.program import Learn, ProgramGraphs
from sleepc.ir.roles import DRAWN, SKIPPED
from sleepc.ir.states import find_state, with_role
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.ops import functional
from sleepc.passes.analysis.sleeps import sinks_of
from sleepc.passes.consolidation.drawn import draw
from sleepc.passes.consolidation.window_again import TOKENS, WindowStart, confine, drop_ports
from sleepc.passes.lib.emit import aten


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """x less its mean, over its deviation, in float32 or wider: PyTorch's own comes with results that targets lack."""
    over, wide = list(range(-len(shape), 0)), x.to(wide_dtype(x.dtype))
    centred = wide - wide.mean(over, keepdim=True)
    y = (centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt()).to(x.dtype)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


PLAIN: dict[Any, Any] = {getattr(torch.ops.sleepc, name).default: getattr(functional, name) for name in levels.OURS}
PLAIN[aten.layer_norm.default] = _layer_norm
SAME = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)  # nothing is written: the value itself
RESHAPES = (aten.view.default, aten._unsafe_view.default)  # which a value of other strides may not have


def learn_anew(program: ProgramGraphs) -> None:
    """What sleeps of a program at level STEP learn by, of its graphs as they are now; nothing if they learn nothing."""
    if program.learn is not None:
        tail = Tail(program, program.learn.start, program.window, sinks_of(program))
        program.learn = tail.learn(program.learn)


@dataclass(frozen=True)
class Tail:
    """The blocks of a program from `start` on, and its head, over windows of `window` tokens."""

    program: ProgramGraphs
    start: int
    window: int
    sinks: int

    def learn(self, how: Learn) -> Learn:
        """The same with the graph of a step from state to state, of these blocks. Raises UsageError for a way back that
        has an operator that no program has.
        """
        ports = self._ports()
        names = list(ports)
        fast = [spec.name for spec in with_role(self.program.all_states(), "fast") if spec.name in ports]
        descent = _Descent(self, fast, how)
        if not fast:
            raise SleepcError(f"nothing stands beside weights of blocks from {self.start} on that sleeps could learn")
        results: list[str] = []
        table: Any = core_aten_decompositions()

        def traced(*values: Tensor) -> list[Tensor]:
            found = descent(dict(zip(names, values, strict=True)))
            results[:] = found
            return list(found.values())

        with symbolic([type_ for _, type_ in ports.values()]) as values:
            made = make_fx(traced, decomposition_table=table)(*values)
        return replace(how, step=_graph(made.graph, ports, results))

    @cached_property
    def blocks(self) -> dict[str, Graph]:
        """The graphs of the classes of these blocks, over the window: h and what else they read -> h."""
        found: dict[str, Graph] = {}
        for block in self.program.layout[self.start :]:
            if block.cls not in found:
                cls = self.program.classes[block.cls]
                graph = with_result(cls.wake, "h")
                confine(self.program, cls, graph, self.sinks)
                graph.drop_dead()
                drop_ports(graph)
                found[block.cls] = graph
        return found

    @cached_property
    def given(self) -> Graph:
        """What blocks and head read in addition to h, and h if the first block learns."""
        graphs = (*self.blocks.values(), self.program.head)
        read = {name for graph in graphs for name in graph.ports("input")}
        return WindowStart(self.program, self.window, self.sinks).given(read if self.start == 0 else read - {"h"})

    @property
    def hidden(self) -> str | None:
        """The state with the window's hidden states before the first of the blocks, if it is not the first of all."""
        if self.start == 0:
            return None
        spec = find_state(self.program.classes[self.program.layout[self.start - 1].cls].states, "loop", "hidden")
        assert spec is not None, "the window's hidden states are recorded"
        return replace(spec, block=self.start - 1).name

    def _ports(self) -> dict[str, tuple[PortKind, TensorType]]:
        """All that a step reads: parameters by their keys, states by their full names."""
        found: dict[str, tuple[PortKind, TensorType]] = {}
        for i, block in enumerate(self.program.layout[self.start :], self.start):
            graph, sizes = self.blocks[block.cls], self.program.sizes(i)
            for kind in PARAMETERS:
                found |= {block.params[n]: (kind, _sized(p, sizes)) for n, p in graph.ports(kind).items() if p.users}
            full = self.program.state_names(i)
            found |= {full[name]: ("state", _sized(p, sizes)) for name, p in graph.ports("state").items()}
        for graph in (self.given, self.program.head):
            for kind in PARAMETERS:
                found |= {name: (kind, _sized(p, {})) for name, p in graph.ports(kind).items() if p.users}
        wanted = {*self.given.ports("state"), TOKENS, "since", SKIPPED, DRAWN, self.hidden}
        states = {spec.name: spec for spec in self.program.all_states() if spec.name in wanted}
        return found | {name: ("state", spec.type()) for name, spec in states.items()}


@dataclass(frozen=True)
class _Descent:
    """One step, on tensors by the names of its ports."""

    tail: Tail
    fast: Sequence[str]
    how: Learn

    def __call__(self, known: dict[str, Tensor]) -> dict[str, Tensor]:
        """New values of what is learned, and of counts: of steps that were left out, and of stretches."""
        learned = [known[name].detach().requires_grad_() for name in self.fast]
        with torch.enable_grad():
            logits = self._logits({**known, **dict(zip(self.fast, learned, strict=True))})
        gradients = torch.autograd.grad(logits, learned, self._slope(logits.detach(), known))
        size = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)  # [B]
        finite = torch.isfinite(size)
        lr, clip = self.how.lr, self.how.clip
        least = clip * clip
        rate = lr * clip * torch.where(finite, size, 0.0).clamp(min=least).rsqrt()
        new = {}
        for name, gradient in zip(self.fast, gradients, strict=True):
            safe = torch.where(finite[:, None, None], gradient, 0.0)
            new[name] = known[name] - rate[:, None, None] * safe
        if self.how.loss == "span":
            new[DRAWN] = known[DRAWN] + 1
        return {**new, SKIPPED: known[SKIPPED] + (~finite).to(torch.int64)}

    def _logits(self, known: Mapping[str, Tensor]) -> Tensor:
        """[B,L-1,V] of the window's tokens but for the last."""
        tail, program = self.tail, self.tail.program
        values = _run(tail.given, known)
        h = values["h"] if tail.hidden is None else known[tail.hidden][:, 0]
        for i, block in enumerate(program.layout[tail.start :], tail.start):
            graph, full = tail.blocks[block.cls], program.state_names(i)
            own = {port: known[key] for port, key in block.params.items() if key in known}
            own |= {name: known[full[name]] for name in graph.ports("state")}
            h = _run(graph, {**values, **own, "h": h})["h"]
        logits: Tensor = _run(program.head, {**known, **values, "h": h})["logits"]
        return logits[:, :-1].to(wide_dtype(program.dtype))

    def _slope(self, logits: Tensor, known: Mapping[str, Tensor]) -> Tensor:
        """The loss by the logits [B,L-1,V]: softmax less one at the next token, each as much as it counts."""
        after, share = known[TOKENS][:, 0, 1:], self._share(known).to(logits.dtype)
        share = share / share.sum(1, keepdim=True).clamp(min=1)
        right = after[..., None]
        less = torch.scatter_add(logits.softmax(-1), -1, right, torch.full_like(right, -1, dtype=logits.dtype))
        return less * share[..., None]

    def _share(self, known: Mapping[str, Tensor]) -> Tensor:
        """How much the window's tokens count [B,L-1], in whole numbers; 0 where there is no next token."""
        count = known["since"][:, None] - 1
        places = torch.arange(self.tail.window - 1, device=count.device)
        if self.how.loss == "late":
            return (places + 1) * (places < count).to(torch.int64)
        if self.how.loss == "next":
            return (places < count).to(torch.int64)
        length = count.clamp(max=self.how.span)
        start = draw(known[DRAWN])[:, None] % (count - length + 1)
        return ((places >= start) & (places < start + length)).to(torch.int64)


def _run(graph: Graph, values: Mapping[str, Any]) -> dict[str, Any]:
    """The graph's results; what no call reads need not be there."""
    return run(graph, {n: values[n] if port.users else None for n, port in graph.ports().items()}, _plain)


def _plain(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Our operators as what they are made of, which has a way back."""
    made = PLAIN.get(node.target)
    return NotImplemented if made is None else made(*args, **kwargs)


def _sized(port: fx.Node, sizes: Mapping[str, int]) -> TensorType:
    """The port's type with a block's own sizes as numbers."""
    type_: TensorType = port.meta["type"]
    return replace(type_, dims=tuple(sizes.get(str(dim), dim) for dim in type_.dims))


def _graph(traced: fx.Graph, ports: Mapping[str, tuple[PortKind, TensorType]], results: Sequence[str]) -> Graph:
    """What was traced, in operators of level STEP."""
    graph, known = Graph("learn"), dict[fx.Node, Any]()
    given = iter(ports.items())
    for node in traced.nodes:
        if node.op == "placeholder":
            name, (kind, type_) = next(given)
            known[node] = graph.fx.placeholder(f"{kind}_{len(known)}")
            known[node].meta.update(port=Port(kind, name), type=type_)
        elif node.op == "output":
            values = fx.map_arg(node.args[0], known.__getitem__)
            graph.fx.output(tuple(values))
        elif node.target in SAME:
            known[node] = known[node.args[0]]
        else:
            known[node] = _call(graph, node, known)
    graph.returns = tuple(results)
    graph.drop_dead()
    for kind in (*PARAMETERS, "state"):
        for port in graph.ports(kind).values():
            if not port.users:
                graph.fx.erase_node(port)
    infer_types(graph)
    return graph


def _call(graph: Graph, node: fx.Node, known: Mapping[fx.Node, Any]) -> fx.Node:
    target: Any = aten.reshape.default if node.target in RESHAPES else node.target
    if node.op != "call_function" or not levels.is_allowed(target, "STEP"):
        raise UsageError(
            f"the way back through blocks that learn needs {node.target}, which no program has",
            fix="Use --consolidation replay, or report the model.",
        )
    args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
    kwargs = {name: value for name, value in kwargs.items() if name not in levels.PLACEMENT}
    call = graph.fx.call_function(target, args, kwargs)
    call.meta["source"] = "gradient"
    return call
