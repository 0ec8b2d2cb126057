"""What a converted program must compute, computed another way: whole streams, layer by layer, before any rewriting.

No rewrite pass, no ring, no slots, no clock, no session: windows are masks over token indices (timeline.py), memories
are loops over tokens (reference.py), and the model itself is the CANONICAL program, read by the one interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import silu

from sleepc.ir.graph import Graph
from sleepc.ir.interp import Runner
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.find_sites import Site, find_site
from sleepc.recipe import Recipe
from sleepc.verify import reference
from sleepc.verify.reference import Memory, Written, memory_names
from sleepc.verify.timeline import Timeline, held_tokens, make_timeline, sees

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Layer:
    """What one block leaves: k and v [B,Hkv,T,..] as attention sees them, and its memory at the end, if it has one."""

    k: Tensor
    v: Tensor
    memory: Memory | None


@dataclass(frozen=True)
class Stream:
    """A stream read to its end: the last hidden states [B,T,d], its timeline, and what every block left."""

    oracle: Oracle
    hidden: Tensor
    given: dict[str, Any]
    time: Timeline
    layers: tuple[Layer, ...]

    def logits(self, start: int = 0, end: int | None = None) -> Tensor:
        """Logits [B,n,V] of tokens start..end-1: the head is asked for those only, since vocabularies are large."""
        cut = slice(start, end)
        values = {name: _cut(v, cut, self.hidden.shape[1]) for name, v in self.given.items()}
        return self.oracle.head({**values, "h": self.hidden[:, cut]})

    def state(self) -> dict[str, Tensor]:
        """What a session's state holds at the end: memories, KV windows and counts, by their names there."""
        found: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            found[f"{i}.k"], found[f"{i}.v"] = self.window(i)
            names = memory_names(self.oracle.recipe.rule)
            found |= {f"{i}.{name}": s for name, s in zip(names, layer.memory or (), strict=False)}
        rows = self.hidden.shape[0]
        last = self.time.cuts[-1] if self.time.cuts else 0
        found["position"] = torch.full((rows,), self.time.next_position)
        found["since"] = torch.full((rows,), len(self.time.position) - last)
        found["slept"] = torch.full((rows,), bool(self.time.cuts))
        return found

    def window(self, block: int) -> tuple[Tensor, Tensor]:
        """The KV window of a block, k and v [B,Hkv,sinks+L,..]; slots that hold nothing are zero."""
        held = held_tokens(self.time, self.oracle.recipe)
        layer = self.layers[block]
        k, v = (torch.where((held >= 0)[:, None], x[:, :, held.clamp(min=0)], 0.0) for x in (layer.k, layer.v))
        return k, v


def _cut(value: Any, cut: slice, length: int) -> Any:
    has_tokens = isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == length
    return value[:, cut] if has_tokens else value


class Oracle:
    """The meaning of `recipe` for a program at level CANONICAL.

    `parameters`: every tensor by key, those of the memories under "blocks.{i}.memory.*" (see `parameters_of`); they may
    require gradients. `memory=False` leaves the memories out (m = 0, no mixer): the sliding-window baseline. `double`
    computes everything in float64, whatever the program's own casts say.
    """

    def __init__(
        self,
        canonical: ProgramGraphs,
        recipe: Recipe,
        parameters: Mapping[str, Tensor],
        *,
        memory: bool = True,
        double: bool = False,
    ) -> None:
        assert canonical.level == "CANONICAL", canonical.level
        self.program, self.recipe, self.parameters, self.double = canonical, recipe, parameters, double
        self.chosen = recipe.chosen_layers(len(canonical.layout)) if memory else ()
        self.runner = cache(lambda name: Runner(canonical.classes[name].wake))
        self.site = cache(lambda name: find_site(canonical.classes[name].wake))

    def __call__(self, tokens: Tensor, cuts: Sequence[int] | None = None) -> Stream:
        """Read tokens [B,T], with sleeps after every L-th, or after as many tokens as `cuts` says."""
        batch, length = tokens.shape
        time = make_timeline(length, self.recipe, self.program.max_positions, cuts)
        inputs = {"tokens": tokens, "positions": time.position.expand(batch, length).contiguous()}
        given = Runner(self.program.embed)({**self.parameters, **inputs}, self._widen)
        h, layers = given.pop("h"), []
        for i in range(len(self.program.layout)):
            h, layer = self._block(i, {**given, "h": h}, time)
            layers.append(layer)
        return Stream(self, h, given, time, tuple(layers))

    def head(self, values: Mapping[str, Any]) -> Tensor:
        """Logits from the last hidden states."""
        logits: Tensor = Runner(self.program.head)({**self.parameters, **values}, self._widen)["logits"]
        return logits

    def _widen(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Casts to narrower floats go to float64 where everything does."""
        if not self.double or not any(a in FLOATS for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)):
            return NotImplemented
        wide = {dtype: torch.float64 for dtype in FLOATS}
        args = tuple(wide.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {n: wide.get(a, a) if isinstance(a, torch.dtype) else a for n, a in kwargs.items()}
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _block(self, i: int, values: dict[str, Any], time: Timeline) -> tuple[Tensor, Layer]:
        block = self.program.layout[i]
        site = self.site(block.cls)
        values = {**{port: self.parameters[key] for port, key in block.params.items()}, **values}
        seen = _Watch(self, i, site, time, values)
        h = self.runner(block.cls)(values, seen)["h"]
        memory = seen.memory
        if i in self.chosen and self.recipe.strategy == "insert":
            h, memory = self._insert(i, h, site, time)
        return h, Layer(seen.k, seen.v, memory)

    def _memory_parameters(self, i: int) -> dict[str, Tensor]:
        prefix = f"blocks.{i}.memory."
        return {key.removeprefix(prefix): p for key, p in self.parameters.items() if key.startswith(prefix)}

    def _wide(self, x: Tensor) -> Tensor:
        return x.to(torch.float64 if self.double or self.program.dtype == torch.float64 else torch.float32)

    def _recorded(self, w: Written, *, with_v: bool) -> Written:
        """What is left of it in a window's record, whose keys and values have the activations' dtype."""
        dtype = torch.float64 if self.double else self.program.dtype
        v = w.v.to(dtype).to(w.v.dtype) if with_v else w.v
        return Written(w.k.to(dtype).to(w.k.dtype), v, w.g, w.beta)

    def parallel(
        self, i: int, site: Site, found: Mapping[fx.Node, Tensor], window: Tensor, time: Timeline
    ) -> tuple[Tensor, Memory]:
        """(1 - m) o_window + m o_memory, m = 0 before the first sleep; and the memory."""
        p = self._memory_parameters(i)
        x, q, k, v = (self._wide(found[node]) for node in (site.x, site.q, site.k, site.v))
        q = reference.unit(q @ p["m_q"].reshape(site.q_heads, site.d_k, site.d_k))
        k = reference.unit(k @ p["m_k"].reshape(site.kv_heads, site.d_k, site.d_k))
        written = Written(k, v, *reference.gates(x, p))
        out, memory = reference.run_memory(q, written, self._recorded(written, with_v=False), time, self.recipe)
        m = torch.sigmoid(x @ p["w_m"].T + p["b_m"]).transpose(1, 2)[..., None]
        m = torch.where((time.slept > 0)[:, None], m, 0.0)
        return ((1 - m) * self._wide(window) + m * out).to(window.dtype), memory

    def _insert(self, i: int, h: Tensor, site: Site, time: Timeline) -> tuple[Tensor, Memory]:
        """h + W_o (RMSNorm_head(o) silu(W_g x)), x = RMSNorm(h); and the memory."""
        p, wide = self._memory_parameters(i), self._wide(h)
        x = reference.rms(wide) * p["norm"]
        mixed = silu(reference.causal_conv(x @ p["w_qkv"].T, p["conv"]))
        heads = [(site.q_heads, site.d_k), (site.kv_heads, site.d_k), (site.kv_heads, site.d_v)]
        q, k, v = reference.split_heads(mixed, heads)
        written = Written(reference.unit(k), v, *reference.gates(x, p))
        recorded = self._recorded(written, with_v=True)
        out, memory = reference.run_memory(reference.unit(q), written, recorded, time, self.recipe)
        merged = (reference.rms(out) * p["out_norm"]).transpose(1, 2).flatten(2)
        return (wide + (merged * silu(x @ p["w_g"].T)) @ p["w_o"].T).to(h.dtype), memory


class _Watch:
    """The hook of one block: notes q, k, v and x on the way, and answers for the attention."""

    def __init__(self, oracle: Oracle, i: int, site: Site, time: Timeline, values: Mapping[str, Any]) -> None:
        self.oracle, self.i, self.site, self.time = oracle, i, site, time
        self.wanted = {site.q, site.k, site.v, site.x}
        self.found = {n: values[n.meta["port"].name] for n in self.wanted if n.op == "placeholder"}
        self.memory: Memory | None = None
        self.k: Tensor
        self.v: Tensor

    def __call__(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node is self.site.node:
            return self._attention(args, kwargs)
        value = self.oracle._widen(node, args, kwargs)
        if node in self.wanted:
            value = node.target(*args, **kwargs) if value is NotImplemented else value  # type: ignore[operator]
            self.found[node] = value
        return value

    def _attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        q, self.k, self.v, mask, sinks = args
        assert mask is None, "the mask was not classified"
        oracle = self.oracle
        see = sees(self.time, oracle.recipe, kwargs["window"])
        window = reference.attention(q, self.k, self.v, see, sinks, scale=kwargs["scale"], softcap=kwargs["softcap"])
        if self.i not in oracle.chosen or oracle.recipe.strategy != "parallel":
            return window
        mixed, self.memory = oracle.parallel(self.i, self.site, self.found, window, self.time)
        return mixed


def parameters_of(canonical: ProgramGraphs, step: ProgramGraphs, *, double: bool = False) -> dict[str, Tensor]:
    """All that the oracle needs: the model's parameters from `canonical`, the memories' from `step`, as ports say."""
    dtypes: dict[str, torch.dtype] = {}
    for graph in (canonical.embed, canonical.head):
        dtypes |= {key: _dtype(graph, key) for key in (*graph.ports("param"), *graph.ports("const"))}
    for block in canonical.layout:
        wake = canonical.classes[block.cls].wake
        dtypes |= {key: _dtype(wake, port) for port, key in block.params.items()}
    memory = torch.float64 if canonical.dtype == torch.float64 else torch.float32
    new = {key: memory for key in step.params if ".memory." in key and key not in dtypes}
    result = {}
    for key, dtype in {**dtypes, **new}.items():
        value = (canonical if key in dtypes else step).params[key].materialise()
        result[key] = value.to(torch.float64 if double and dtype.is_floating_point else dtype)
    return result


def _dtype(graph: Graph, port: str) -> torch.dtype:
    type_ = graph.ports()[port].meta["type"]
    assert isinstance(type_, TensorType)
    return type_.dtype
