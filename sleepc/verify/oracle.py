"""What a converted program must compute, computed another way: whole windows, block by block, before any rewriting.

No rewrite pass, no ring, no slots, no clock, no session: windows are masks over token indices (timeline.py), memories
are loops over tokens (reference.py), and the model itself is the CANONICAL program, read by the one interpreter. A
sleep is Algorithm 1 of arXiv 2605.26099, line by line, if it evicts hard, keeps no sinks and loops over all blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from sleepc.ir.graph import Graph
from sleepc.ir.interp import Hook, Runner, widened
from sleepc.ir.parameters import block_key
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import TAKEN, Role, name_of
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.memory.features import find as find_features
from sleepc.memory.parameters import (
    CONV,
    INTO,
    KEY_MAP,
    MIX,
    MIX_BIAS,
    NORM,
    OUT_GATE,
    OUT_NORM,
    OUTPUT,
    PREFIX,
    PROJECTION,
    QUERY_MAP,
)
from sleepc.passes.analysis.find_sites import Site, find_site, find_sites, recurrences_of
from sleepc.passes.consolidation.contract import Layer
from sleepc.passes.consolidation.registry import find as find_consolidation
from sleepc.passes.plan import Budget, budgets, may_keep
from sleepc.passes.rewrite.kept_pairs import can_keep
from sleepc.recipe import LayerPlan, Recipe
from sleepc.verify import reference
from sleepc.verify.dropped import dropped, slots_hold
from sleepc.verify.kept import dtype_of, keep_pairs, kept_columns, kept_state, no_pairs, renumbers_with_pairs
from sleepc.verify.memory_values import new_parameters
from sleepc.verify.native import epsilon_before
from sleepc.verify.own_states import Own, own_answer, own_states
from sleepc.verify.reference import Memory, Written, memory_names
from sleepc.verify.soft import encode, kept_after, no_soft_tokens, soft_columns, soft_state
from sleepc.verify.timeline import Timeline, held_tokens, key_positions, make_timeline, sees


@dataclass(frozen=True)
class Window:
    """Tokens start .. end-1 between two sleeps. `asleep`: read again while they are consolidated. `live`: do memories
    count in a mix?
    """

    start: int
    end: int
    asleep: bool
    live: bool


@dataclass(frozen=True)
class ReadWindow:
    """A window that was read: the last hidden states [B,n,d], and what else the head reads."""

    start: int
    end: int
    h: Tensor
    given: dict[str, Any]


@dataclass
class ReadStream:
    """A stream read to its end: its timeline, its windows, and what every block left."""

    oracle: Oracle
    rows: int
    time: Timeline
    layers: list[Layer]
    windows: list[ReadWindow] = field(default_factory=list)
    taken: Tensor | None = None  # the passes of each row's last sleep, if they are counted [B]

    def logits(self, start: int = 0, end: int | None = None) -> Tensor:
        """Logits [B,n,V] of tokens start..end-1."""
        end = len(self.time.position) if end is None else end
        return self.logits_at(torch.arange(start, end))

    def logits_at(self, places: Tensor) -> Tensor:
        """Logits [B,n,V] of tokens [n], in rising order: the head is asked for no other, since vocabularies are
        large.
        """
        parts = []
        for window in self.windows:
            at = places[(places >= window.start) & (places < window.end)] - window.start
            if len(at):
                parts.append(self.oracle.head({**window.given, "h": window.h}, at))
        return torch.cat(parts, 1) if parts else torch.zeros(self.rows, 0, self.oracle.program.vocab)

    def state(self) -> dict[str, Tensor]:
        """What a session's state holds at the end: memories, KV windows and counts, by their names there."""
        found = {f"{i}.{name}": x for i, each in enumerate(self.layers) for name, x in self._of_layer(i, each).items()}

        def note(role: Role, part: str, value: Tensor) -> None:
            found[name_of(role, part)] = value

        last = self.time.cuts[-1] if self.time.cuts else 0
        note("clock", "position", torch.full((self.rows,), self.time.next_position))
        note("clock", "since", torch.full((self.rows,), len(self.time.position) - last))
        note("clock", "slept", torch.full((self.rows,), bool(self.time.cuts)))
        if self.oracle.renumbers:
            note("clock", "offset", torch.full((self.rows,), self.time.next_offset))
        if self.oracle.recipe.settle:
            zero = torch.zeros(self.rows, dtype=torch.int64)
            note("count", TAKEN, zero if self.taken is None else self.taken)
        return found

    def _of_layer(self, i: int, layer: Layer) -> dict[str, Tensor]:
        """The states of one block."""
        found: dict[str, Tensor] = {}
        if layer.k is not None and layer.v is not None:
            held = held_tokens(self.time, self.oracle.recipe.sinks, self.oracle.ring(i))
            for name, x in (("k", layer.k), ("v", layer.v)):
                kept = torch.where((held >= 0)[:, None], x[:, :, held.clamp(min=0)], 0.0)
                found[name_of("kv", name)] = kept
        if layer.soft is not None:
            found |= {name_of("kept", n): x for n, x in soft_state(self.oracle, i, layer.soft).items()}
        if layer.kept is not None:
            found |= {name_of("kept", n): x for n, x in kept_state(self.oracle, i, layer, self.time).items()}
            if layer.made is not None and self.oracle.waits(i):
                with_v, rule = self.oracle.plans[i].strategy != "parallel", self.oracle.plans[i].rule
                waiting = slots_hold(rule, layer.made, layer.kept, with_v=with_v, dtype=dtype_of(self.oracle))
                found |= {name_of("kept", n): x for n, x in waiting.items()}
        found |= own_states(self.oracle.program.classes[self.oracle.program.layout[i].cls].wake, layer.own)
        found |= {name_of("fast", part): fast for part, fast in layer.fast.items()}
        if layer.memory is not None:
            names = memory_names(self.oracle.plans[i].rule)
            found |= {name_of("memory", n): x for n, x in zip(names, layer.memory, strict=True)}
        return found


class Oracle:
    """The meaning of `recipe` for a program at level CANONICAL.

    `parameters`: every tensor by key, those of the memories under "blocks.{i}.memory.*" (see `parameters_of`); they may
    require gradients. `double` computes everything in float64, whatever the program's own casts say.
    """

    def __init__(
        self, canonical: ProgramGraphs, recipe: Recipe, parameters: Mapping[str, Tensor], *, double: bool = False
    ) -> None:
        assert canonical.level == "CANONICAL", canonical.level
        self.program, self.recipe, self.parameters, self.double = canonical, recipe, parameters, double
        self.plans = recipe.plan(len(canonical.layout))
        self.consolidation = find_consolidation(recipe.consolidation)
        self.embed, self.ending = Runner(canonical.embed), Runner(canonical.head)
        self.runner = cache(lambda name: Runner(canonical.classes[name].wake))
        self.sites = find_sites(canonical)
        self.own = {name: recurrences_of(cls.wake) for name, cls in canonical.classes.items()}
        written = self.consolidation.written(recipe, len(canonical.layout))
        graphs = {i: canonical.classes[canonical.layout[i].cls].wake for i in written}
        self.written = {i: self.consolidation.maps(recipe, graph) for i, graph in graphs.items()}
        self.epsilon = cache(self._epsilon_before)
        self.turner = cache(lambda name: _Turner(canonical.classes[name].wake))
        sites = [self.sites.get(block.cls) for block in canonical.layout]
        may = may_keep(self.plans, recipe.window)
        heads = [site.kv_heads if i in may and site and can_keep(site) else 0 for i, site in enumerate(sites)]
        self.budgets = budgets(self.consolidation.keep(recipe), heads)
        self.soft = self.consolidation.soft(recipe)
        self.most = max((n for budget in self.budgets for n in budget), default=0)
        self.renumbers = self._renumbers()

    def _renumbers(self) -> bool:
        """Do positions begin anew from the oldest key that is kept? With kept pairs wherever the model lets them."""
        if self.program.max_positions is None:
            return False
        return self.recipe.last_position == "renumber" or (self.most > 0 and renumbers_with_pairs(self))

    def __call__(self, tokens: Tensor, cuts: Sequence[int] | None = None) -> ReadStream:
        """Read tokens [B,T], with sleeps after every L-th, or after as many tokens as `cuts` says."""
        rows, length = tokens.shape
        longest = max((self.ring(i) for i in range(len(self.plans)) if self._attends(i)), default=0)
        last, room = self.program.max_positions, longest + self.most
        if self.soft is not None and last is not None:
            last -= self.soft.tokens  # the encoder reads so many places behind the window
        time = make_timeline(length, self.recipe, last, cuts, room, renumbers=self.renumbers)
        stream = ReadStream(self, rows, time, [self._layer(i, budget, rows) for i, budget in enumerate(self.budgets)])
        for start, end in time.windows():
            before = [(layer.memory, layer.own) for layer in stream.layers]
            positions = (time.position - time.offset)[start:end]
            given = self.given(tokens[:, start:end], positions)
            window = Window(start, end, asleep=False, live=bool(time.slept[start] > 0))
            block_outputs: list[Tensor] = []
            h = given.pop("h")
            first = h
            for i in range(len(self.plans)):
                h = self.block(i, {**given, "h": h}, window, stream)
                block_outputs.append(h)
            stream.windows.append(ReadWindow(start, end, h, given))
            if end in time.cuts:
                inputs, read = [first, *block_outputs[:-1]], tokens[:, start:end]
                self._sleep(stream, _Sleep(self, stream, window, given, read, inputs, block_outputs, before))
        return stream

    def _layer(self, i: int, budget: Budget, rows: int) -> Layer:
        """Block i before it has read anything."""
        if self.soft is None:
            return Layer(kept=no_pairs(budget, rows))
        return Layer(soft=no_soft_tokens(rows, self.site_of(i), self._own_dtype) if budget else None)

    @property
    def _own_dtype(self) -> torch.dtype:
        return torch.float64 if self.double else self.program.dtype

    def _sleep(self, stream: ReadStream, sleep: _Sleep) -> None:
        """Memories take what is dropped, or the window; its passes still see the pairs that were kept before it."""
        start, end = sleep.window.start, sleep.window.end
        if self.soft is not None:
            made = encode(self, stream.layers, stream.time, (start, end), sleep.tokens)
            for i, (layer, pairs) in enumerate(zip(stream.layers, made, strict=True)):
                layer.soft = kept_after(self, i, layer, stream.time, (start, end), pairs)
        kept = [keep_pairs(self, i, layer, stream.time, start, end) for i, layer in enumerate(stream.layers)]
        for layer, plan, after in zip(stream.layers, self.plans, kept, strict=True):
            if layer.kept and after and layer.made and plan.write == "sleep":
                layer.written = dropped(plan.rule, layer.made, (layer.kept, after), start, end, dtype_of(self))
        self.consolidation.remember(sleep)
        stream.taken = sleep.taken
        for layer, after in zip(stream.layers, kept, strict=True):
            layer.kept = after

    def given(self, tokens: Tensor, positions: Tensor) -> dict[str, Any]:
        """What blocks read, of tokens [B,T] at positions [T]."""
        rows = positions.expand(len(tokens), -1).contiguous()
        return self.embed({**self.parameters, "tokens": tokens, "positions": rows}, self.widen)

    def head(self, values: Mapping[str, Any], at: Tensor) -> Tensor:
        """Logits [B,n,V] of places [n], from the last hidden states [B,T,d]."""
        alone = set(self.program.head.ports("input")) == {"h"}
        if alone:
            values = {**values, "h": values["h"][:, at]}
        logits: Tensor = self.ending({**self.parameters, **values}, self.widen)["logits"]
        return logits if alone else logits[:, at]

    def _epsilon_before(self, i: int) -> float:
        """Of the norm in front of block i."""
        block = self.program.layout[i]
        bound = {port: self.parameters[key] for port, key in block.params.items()}
        return epsilon_before(self.program.classes[block.cls].wake, bound)

    def site_of(self, i: int) -> Site:
        """The attention of block i, which has one."""
        return self.sites[self.program.layout[i].cls]

    def _attends(self, i: int) -> bool:
        """Has block i a KV window?"""
        return self.plans[i].strategy != "replace" and self.program.layout[i].cls in self.sites

    def ring(self, i: int) -> int:
        """How many tokens the attention of block i keeps."""
        window = self.plans[i].window
        if window is None:
            assert self.program.max_positions is not None
            return self.program.max_positions - self.recipe.sinks
        return window

    def waits(self, i: int) -> bool:
        """Are pairs written into the memory of block i when they are dropped?"""
        asleep = self.consolidation.asleep(self.recipe, self.plans, i)
        return self.plans[i].write == "sleep" and asleep.recorded and asleep.drops

    def brought(self, i: int, site: Site) -> bool:
        """Are the sinks of block i, whose own window is longer than what it keeps, brought near?"""
        return brings_near(self.recipe, site, self.ring(i))

    def turned(self, i: int, k: Tensor, positions: Tensor) -> Tensor:
        """k [B,Hkv,t,d] before positions, of block i, with positions [t] applied."""
        if not k.shape[2]:
            return k
        block, turner = self.program.layout[i], self.turner(self.program.layout[i].cls)
        given = self.given(torch.zeros(len(k), k.shape[2], dtype=torch.int64), positions)
        return turner(k, {**{port: self.parameters[key] for port, key in block.params.items()}, **given}, self.widen)

    def widen(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Casts to narrower floats go to float64 if everything does."""
        return widened(node, args, kwargs, torch.float64) if self.double else NotImplemented

    def block(self, i: int, values: dict[str, Any], window: Window, stream: ReadStream) -> Tensor:
        """Block i over a window -> h [B,n,d]."""
        cls = self.program.layout[i].cls
        values = {**self._bound(i), **values}
        if cls not in self.sites:
            hook = _OwnHook(self, i, window, stream.layers[i], values["h"])
            return self._behind(i, self.original(i, values, hook), stream)
        watch = _BlockHook(self, i, self.sites[cls], window, stream, values)
        h = self._behind(i, self.original(i, values, watch), stream)
        return watch.mixer.insert(h) if self.plans[i].strategy == "insert" else h

    def original(self, i: int, values: Mapping[str, Any], hook: Hook) -> Tensor:
        """h after block i of the original, whose nodes `hook` may answer."""
        h: Tensor = self.runner(self.program.layout[i].cls)({**self._bound(i), **values}, hook)["h"]
        return h

    def _behind(self, i: int, h: Tensor, stream: ReadStream) -> Tensor:
        """h after what the consolidation has added behind block i."""
        return self.consolidation.behind(self.wide(h), stream.layers[i], self.parameters_of(i)).to(h.dtype)

    def _bound(self, i: int) -> dict[str, Tensor]:
        return {port: self.parameters[key] for port, key in self.program.layout[i].params.items()}

    def parameters_of(self, i: int) -> dict[str, Tensor]:
        """Those of the memory of block i, by their short names."""
        prefix = block_key(i, PREFIX)
        return {key.removeprefix(prefix): p for key, p in self.parameters.items() if key.startswith(prefix)}

    def wide(self, x: Tensor) -> Tensor:
        """x in the dtype of memories."""
        return x.to(torch.float64 if self.double else wide_dtype(self.program.dtype))

    def recorded(self, w: Written, *, with_v: bool) -> Written:
        """What is left of it in a window's record, whose keys and values have the activations' dtype."""
        dtype = torch.float64 if self.double else self.program.dtype
        narrow = ("k", "v") if with_v else ("k",)
        return {name: x.to(dtype).to(x.dtype) if name in narrow else x for name, x in w.items()}


@dataclass
class _Sleep:
    """The sleep at the end of a window that was read (StreamSleep); `given` is what blocks read in addition to h."""

    oracle: Oracle
    stream: ReadStream
    window: Window
    given: dict[str, Any]
    tokens: Tensor
    block_inputs: list[Tensor]
    block_outputs: list[Tensor]
    before: list[tuple[Memory | None, Own]]
    taken: Tensor | None = None

    def __post_init__(self) -> None:
        self.recipe, self.plans = self.oracle.recipe, self.oracle.plans
        self.layers, self.rows = self.stream.layers, self.stream.rows

    @property
    def earlier(self) -> int:
        return self.stream.time.cuts.index(self.window.end)

    def parameters_of(self, i: int) -> Mapping[str, Tensor]:
        return self.oracle.parameters_of(i)

    def replay(self, i: int, first: int, passes: int) -> None:
        layer = self.layers[i]
        if layer.written is not None:
            rule, heads = self.plans[i].rule, layer.written["k"].shape[1]
            fixed = reference.learned(rule, self.parameters_of(i), heads)
            layer.memory = reference.replay(rule, layer.memory, fixed, layer.written, first, passes)

    def restart(self, i: int) -> None:
        layer, (memory, own) = self.layers[i], self.before[i]
        layer.memory, layer.own = memory, {**layer.own, **{n: x for n, x in own.items() if n.startswith("own")}}
        for name in [n for n in layer.own if n.startswith("own") and n not in own]:
            del layer.own[name]

    def run(self, i: int, h: Tensor, *, live: bool | None = None) -> Tensor:
        live = self.window.live if live is None else live
        again = Window(self.window.start, self.window.end, asleep=True, live=live)
        return self.oracle.block(i, {**self.given, "h": h}, again, self.stream)

    def logits(self, h: Tensor) -> Tensor:
        return self.oracle.head({**self.given, "h": h}, torch.arange(h.shape[1]))


def brings_near(recipe: Recipe, site: Site, ring: int) -> bool:
    """Are the sinks of a layer that keeps `ring` tokens, fewer than its own window has, to be brought near?"""
    roomy = site.mask.window > ring and site.mask.window >= recipe.window + recipe.sinks
    return roomy and site.rotated and recipe.sinks > 0 and recipe.eviction == "sliding"


class _Turner:
    """Positions applied to keys of a block class: the block's own way to k, on other keys than h gives."""

    def __init__(self, wake: Graph) -> None:
        graph = wake.clone()
        site = find_site(graph)
        key = site.node.args[1]
        assert isinstance(key, fx.Node)
        graph.set_returns({"k": key})
        graph.drop_dead()
        self.before, self.runner = site.k, Runner(graph)

    def __call__(self, k: Tensor, values: Mapping[str, Any], widen: Hook) -> Tensor:
        """k [B,Hkv,t,d] before positions -> as attention sees it, for `values` of the ports."""

        def hook(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return k if node is self.before else widen(node, args, kwargs)

        found: Tensor = self.runner(values, hook)["k"]
        return found


class _OwnHook:
    """The hook of a block's own convolutions and recurrences, and of the map that sleeps write. While asleep a
    convolution sees zeros before the window, and what it sees is not what it goes on from. `h`: what enters the block.
    """

    def __init__(self, oracle: Oracle, i: int, window: Window, layer: Layer, h: Tensor) -> None:
        self.oracle, self.layer, self.window, self.h = oracle, layer, window, h
        self.names = {node: name for name, node in oracle.own[oracle.program.layout[i].cls].items()}
        self.maps = {one.call: (part, one) for part, one in oracle.written.get(i, {}).items()}
        self.parameters = oracle.parameters_of(i)

    def __call__(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node in self.maps:
            part, one = self.maps[node]
            plain: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
            added = self._added(part, args[node.args.index(one.x)], plain.shape[-1])
            return plain + added.reshape(plain.shape).to(plain.dtype)
        if node not in self.names:
            return self.oracle.widen(node, args, kwargs)
        name, fresh = self.names[node], self.window.asleep and self.names[node].startswith("tail")
        out, own = own_answer(name, args, kwargs, {} if fresh else self.layer.own)
        if not fresh:
            self.layer.own = own
        return [out]

    def _added(self, part: str, z: Tensor, width: int) -> Tensor:
        """What sleeps have added to a map's answer to z [B,n,in] or [B n,in]: [B,n,out]."""
        oracle, layer, (rows, count) = self.oracle, self.layer, self.h.shape[:2]
        z = z.view(rows, count, -1)
        into = self.parameters.get(INTO + part)
        read = oracle.wide(z)
        if into is not None:
            read = read @ into.T if into.dim() == 2 else read * into
        if part not in layer.fast:
            layer.fast[part] = read.new_zeros(rows, read.shape[2], width)
        if not self.window.asleep and part == "down":
            seen = {"k": oracle.wide(z), "v": reference.rms(oracle.wide(self.h))}
            layer.inputs, layer.sources = oracle.recorded(seen, with_v=True).values()
        return torch.einsum("bni,bio->bno", read, layer.fast[part])


class _BlockHook:
    """The hook of one block with attention: notes q, k, v and x on the way, and answers for the attention."""

    def __init__(
        self, oracle: Oracle, i: int, site: Site, window: Window, stream: ReadStream, values: Mapping[str, Any]
    ) -> None:
        self.oracle, self.i, self.site, self.window, self.stream = oracle, i, site, window, stream
        self.own = _OwnHook(oracle, i, window, stream.layers[i], values["h"])
        self.layer, self.plan = stream.layers[i], oracle.plans[i]
        self.mixer = Mixer(oracle, i, site, window, self.layer, self.plan)
        self.wanted = {site.q, site.k, site.v, site.x}
        self.found = {n: values[n.meta["port"].name] for n in self.wanted if n.op == "placeholder"}

    def __call__(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node is self.site.node:
            return self._attention(args, kwargs)
        value = self.own(node, args, kwargs)
        if node in self.wanted:
            value = node.target(*args, **kwargs) if value is NotImplemented else value  # type: ignore[operator]
            self.found[node] = value
        return value

    def _attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        site, found = self.site, self.found
        if self.plan.strategy == "replace":
            return self.mixer.replace(found[site.x], found[site.q], found[site.k], found[site.v])
        q, k, v, mask, sink_logits, *by_distance = args
        assert mask is None, "the mask was not classified"
        options = {name: kwargs[name] for name in ("scale", "softcap")} | {"bias": self._bias(*by_distance)}
        out = self._windowed(q, k, v, sink_logits, options, found[site.k])
        if self.plan.strategy != "parallel":
            return out
        return self.mixer.parallel(found[site.x], found[site.q], found[site.k], found[site.v], out)

    def _bias(self, by_distance: Tensor | None = None) -> Tensor | None:
        """What is added to the scores of the window's queries, for all tokens up to its end: [Hq,n,K] or [B,Hq,n,K]."""
        position, part = self.stream.time.position, (slice(self.window.start, self.window.end), slice(self.window.end))
        if by_distance is not None:
            return reference.bias_by_distance(by_distance, (position[:, None] - position[None])[part])
        return reference.bias(self.site.slopes, position)[:, *part] if self.site.slopes else None

    def _windowed(
        self, q: Tensor, k: Tensor, v: Tensor, sink_logits: Tensor | None, options: dict[str, Any], plain: Tensor
    ) -> Tensor:
        """Attention over what is not evicted; while asleep over the window itself and the sinks from before it.
        `plain`: k before positions.
        """
        oracle, layer, (start, end) = self.oracle, self.layer, (self.window.start, self.window.end)
        before = (k[:, :, :0], v[:, :, :0]) if layer.k is None or layer.v is None else (layer.k, layer.v)
        old_k, old_v = (old[:, :, :start] for old in before)
        time, part = self.stream.time, (slice(start, end), slice(0, end))
        first, ring, every = oracle.recipe.sinks, oracle.ring(self.i), oracle.recipe.window
        brought = oracle.brought(self.i, self.site)
        slots = layer.kept is not None or layer.soft is not None
        turns = self.site.rotated and (brought or oracle.renumbers or slots)
        seen_k = old_k
        if turns:
            own = self.site.mask.window if brought else 0
            seen_k = oracle.turned(self.i, old_k, key_positions(time, start, first, ring, own, every).clamp(min=0))
        # Rotations in float32 take q and k there first: what is kept is wider than what attention sees.
        keys, values = torch.cat([seen_k.to(k.dtype), k], 2), torch.cat([old_v, v], 2)
        if not self.window.asleep:
            layer.k, layer.v = torch.cat([old_k, plain], 2) if turns else keys, values
        see = sees(time, first, ring, self.site.mask, brought=brought)[part]
        if self.window.asleep:
            token = torch.arange(end)
            see = see & ((token >= start) | (token < first))
        if layer.kept is not None:
            far_k, far_v, far = kept_columns(oracle, self.i, layer, time, start, end)
            keys, values = torch.cat([far_k.to(k.dtype), keys], 2), torch.cat([far_v, values], 2)
            far = far.repeat_interleave(q.shape[1] // far.shape[1], 1)
            see = torch.cat([far, see.expand(*q.shape[:2], *see.shape)], -1)
        if layer.soft is not None:
            far_k, far_v, far = soft_columns(oracle, self.i, layer.soft, time, start, end)
            keys, values = torch.cat([far_k.to(k.dtype), keys], 2), torch.cat([far_v, values], 2)
            see = torch.cat([far, see], -1)
        return reference.attention(q, keys, values, see, sink_logits, **options)


@dataclass(frozen=True)
class Mixer:
    """The memory of one block over one window: what it answers; what it holds and has seen goes into `layer`."""

    oracle: Oracle
    i: int
    site: Site
    window: Window
    layer: Layer
    plan: LayerPlan

    def parallel(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Tensor) -> Tensor:
        """(1 - m) o_window + m o_memory, m = 0 while memories do not count yet."""
        p, site = self.oracle.parameters_of(self.i), self.site
        x, q, k, v = (self.oracle.wide(value) for value in (x, q, k, v))
        q = self._featured(q @ p[QUERY_MAP.name].reshape(site.q_heads, site.d_k, site.d_k))
        k = self._featured(k @ p[KEY_MAP.name].reshape(site.kv_heads, site.d_k, site.d_k))
        written = {"k": k, "v": v} | reference.gates(self.plan.rule, x, p, site.kv_heads)
        out = self._answer(q, written, with_v=False)
        m = torch.sigmoid(x @ p[MIX.name].T + p[MIX_BIAS.name]).transpose(1, 2)[..., None] * float(self.window.live)
        return ((1 - m) * self.oracle.wide(attended) + m * out).to(attended.dtype)

    def replace(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """RMSNorm_head(o) silu(W_g x) [B,Hq,T,dv], keys and values expanded by head, scale 1/sqrt(dk)."""
        site, p = self.site, self.oracle.parameters_of(self.i)
        if self.plan.layout == "native":
            x = self.oracle.wide(x)
            return self._by_head(self._mix(x, x @ p[PROJECTION.name].T, site.q_heads, site.d_k**-0.5), v.dtype)
        copies = site.q_heads // site.kv_heads
        parts = (q, k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1))
        y = torch.cat([self.oracle.wide(part).transpose(1, 2).flatten(2) for part in parts], -1)
        return self._by_head(self._mix(self.oracle.wide(x), y, site.q_heads, site.d_k**-0.5), v.dtype)

    def _by_head(self, merged: Tensor, dtype: torch.dtype) -> Tensor:
        """[B,T,Hq dv] -> [B,Hq,T,dv]."""
        return merged.reshape(*merged.shape[:2], self.site.q_heads, self.site.d_v).transpose(1, 2).to(dtype)

    def insert(self, h: Tensor) -> Tensor:
        """h + W_o (RMSNorm_head(o) silu(W_g x)), x = RMSNorm(h)."""
        p, wide = self.oracle.parameters_of(self.i), self.oracle.wide(h)
        x = reference.rms(wide) * p[NORM.name]
        return (wide + self._mix(x, x @ p[PROJECTION.name].T, self.site.kv_heads, 1.0) @ p[OUTPUT.name].T).to(h.dtype)

    def _mix(self, x: Tensor, y: Tensor, heads: int, scale: float) -> Tensor:
        """RMSNorm_head(o) silu(W_g x) [B,T,Hq dv] for y = q|k|v before the convolution."""
        p, site = self.oracle.parameters_of(self.i), self.site
        before = y[:, :0] if self.window.asleep or self.layer.mixed is None else self.layer.mixed
        seen = torch.cat([before, y], 1)
        if not self.window.asleep:
            self.layer.mixed = seen
        mixed = torch.nn.functional.silu(reference.causal_conv(seen, p[CONV.name])[:, before.shape[1] :])
        q, k, v = reference.split_heads(mixed, [(site.q_heads, site.d_k), (heads, site.d_k), (heads, site.d_v)])
        written = {"k": self._featured(k), "v": v} | reference.gates(self.plan.rule, x, p, heads)
        out = scale * self._answer(self._featured(q), written, with_v=True)
        merged = (reference.rms(out, self._epsilon()) * p[OUT_NORM.name]).transpose(1, 2).flatten(2)
        return merged * torch.nn.functional.silu(x @ p[OUT_GATE.name].T)

    def _epsilon(self) -> float:
        """Of the norm of what the memory answers: in a native layer that of the norm in front of it."""
        return self.oracle.epsilon(self.i) if self.plan.layout == "native" else 1e-6

    def _featured(self, x: Tensor) -> Tensor:
        return reference.unit(find_features(self.oracle.recipe.features).naive(x))

    def _answer(self, q: Tensor, written: Written, *, with_v: bool) -> Tensor:
        memory = self.layer.memory or reference.empty_memory(self.plan.rule, written)
        online, rule = self.plan.write == "online", self.plan.rule
        fixed = reference.learned(rule, self.oracle.parameters_of(self.i), written["k"].shape[1])
        how: dict[str, Any] = {"online": online, "order": self.oracle.recipe.read}
        out, self.layer.memory = reference.answer(rule, q, written, memory, fixed, **how)
        self.layer.written = written
        if not self.window.asleep:
            self.layer.written = new = self.oracle.recorded(written, with_v=with_v)
            old = self.layer.made or {name: x[:, :, :0] for name, x in new.items()}
            self.layer.made = {name: torch.cat([old[name], x], 2) for name, x in new.items()}
        return out


def parameters_of(canonical: ProgramGraphs, step: ProgramGraphs, *, double: bool = False) -> dict[str, Tensor]:
    """All that the oracle needs: the model's parameters from `canonical`, the memories' and probes from `step`, as
    ports say.
    """
    dtypes: dict[str, torch.dtype] = {}
    for graph in (canonical.embed, canonical.head):
        dtypes |= {key: _dtype(graph, key) for key in (*graph.ports("param"), *graph.ports("const"))}
    for block in canonical.layout:
        wake = canonical.classes[block.cls].wake
        dtypes |= {key: _dtype(wake, port) for port, key in block.params.items()}
    new = {key: wide_dtype(canonical.dtype) for key in new_parameters(step) if key not in dtypes}
    result = {}
    for key, dtype in {**dtypes, **new}.items():
        value = (canonical if key in dtypes else step).params[key].materialise()
        result[key] = value.to(torch.float64 if double and dtype.is_floating_point else dtype)
    return result


def _dtype(graph: Graph, port: str) -> torch.dtype:
    type_ = graph.ports()[port].meta["type"]
    assert isinstance(type_, TensorType)
    return type_.dtype
