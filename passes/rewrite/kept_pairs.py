"""Pairs (k, v) that a layer keeps of what has left its window, and sees in addition to sinks and ring.

Each KV head keeps as many as its budget says. All heads' slots lie one after the other in one store of S slots, in
which every head's pairs stand in order of position, empty slots first. Which token a slot holds does not follow from
how much was read: it is state, and so is who sees it. S and whose slot it is belong to the block and not to its class:
constant `keep.head` i64 [S] has the KV head of every slot. So do the probes of a score that reads some (passes/keep),
constant `keep.probe` [Hkv,d_k] in float32, zero until they are measured.

Vectors may be held in few bits (rounded.py): then a part has two states, and `slot_specs` says what it is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import fx

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.parameters import block_key
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.roles import PREFIX
from sleepc.ir.states import StateSpec, find_state, with_role
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.ir.weights import HeldTensor
from sleepc.passes.analysis.find_sites import Site, find_sites
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Budget
from sleepc.passes.rewrite.rounded import PEAK, Form, form_of, read_rounded, rounded_specs, write_rounded

QUERIES = "query_positions"  # what embed hands on: positions [B,T] of the new tokens as the model counts, -1 at padding
HEAD = "keep.head"
PROBE = "keep.probe"
SLOTS = "S"
SEEN = ("k", "v", "position")  # what attention reads of slots
RECORD = PREFIX["record"]  # begins the parts that a memory will write of a pair once it is dropped


def can_keep(site: Site) -> bool:
    """Does the layer's own mask let it see distant tokens? A layer that has never seen such keys keeps none."""
    return not site.mask.parts


def heads_that_keep(program: ProgramGraphs, keepers: frozenset[int]) -> list[int]:
    """How many KV heads of every layer can keep pairs: those of `keepers` that see distant tokens."""
    sites = find_sites(program)
    each = [sites.get(block.cls) for block in program.layout]
    return [site.kv_heads if i in keepers and site and can_keep(site) else 0 for i, site in enumerate(each)]


def check_can_keep(site: Site) -> None:
    """Raises UsageError if scores change with distance: their numbers are made for the positions of a window."""
    if site.slopes or site.by_distance is not None:
        raise UsageError(
            "pairs are kept in addition to the window, and this layer's scores change with distance",
            where=str(site.node.meta.get("source", "")),
            fix="Convert without --keep.",
        )


def kept_specs(site: Site, dtype: torch.dtype, form: Form | None, *, turns: bool) -> tuple[StateSpec, ...]:
    """The states of S slots: k as attention sees it, v, the position of the token as the model counts (-1 in an empty
    slot), the number of the token in its stream (-1), and the score that the pair was kept for. Wake reads the first
    three, sleeps write them. Of keys in few bits that `turns` to other positions slots also hold `plain`, k before
    positions: it is what they are turned from, so that they are rounded as often as if they had been turned once.
    """
    vectors = [("k", site.d_k), ("v", site.d_v), *([("plain", site.d_k)] if form and turns else [])]
    each = (StateSpec("kept", part, ("B", SLOTS, width), dtype, "overwrite") for part, width in vectors)
    return (
        *(state for spec in each for state in rounded_specs(spec, form)),
        StateSpec("kept", "position", ("B", SLOTS), torch.int64, "overwrite", -1),
        StateSpec("kept", "token", ("B", SLOTS), torch.int64, "overwrite", -1),
        StateSpec("kept", "score", ("B", SLOTS), wide_dtype(dtype), "overwrite"),
    )


def slots_specs(record: StateSpec, states: Iterable[StateSpec]) -> tuple[StateSpec, ...]:
    """What slots hold of a part of the window's record, for the sleep that drops their pairs; vectors in the form of
    those that they hold already, in `states`.
    """
    name, (_, _, _, *width) = f"{RECORD}{record.part}", record.dims
    spec = StateSpec("kept", name, ("B", SLOTS, *width), record.dtype, "overwrite", record.initial)
    return rounded_specs(spec, slot_form(states)) if width else (spec,)


def slot_form(states: Iterable[StateSpec]) -> Form | None:
    """In which form slots hold vectors; None if as they are."""
    keys = find_state(states, "kept", "k")
    return form_of(keys.dtype) if keys else None


def slot_specs(states: Iterable[StateSpec]) -> dict[str, StateSpec]:
    """What slots hold, by part, as what reads it sees it: vectors are as wide as those of the window, and such in few
    bits are read in float32 or wider.
    """
    states = tuple(states)
    keys, values = (find_state(states, "kv", part) for part in ("k", "v"))
    like = {"k": keys, "plain": keys, "v": values}
    like |= {f"{RECORD}{spec.part}": spec for spec in with_role(states, "record")}
    found = {}
    for spec in with_role(states, "kept"):
        source = like.get(spec.part)
        if source is not None and form_of(spec.dtype):
            dims, dtype = (*spec.dims[:2], source.dims[3]), wide_dtype(source.dtype)
            spec = replace(spec, dims=dims, dtype=dtype, initial=0.0)
        if not spec.part.endswith(PEAK):
            found[spec.part] = spec
    return found


def read_slots(
    e: Emit, states: Iterable[StateSpec], ports: Mapping[str, fx.Node], parts: Iterable[str] | None = None
) -> dict[str, fx.Node]:
    """What slots hold, by part (all of them, or `parts`): [B,S,..], from the ports of a block's `states` by name."""
    form, found = slot_form(states), {}
    for part, spec in slot_specs(states).items():
        if parts is None or part in parts:
            stored, peaks = ports[spec.name], ports.get(spec.name + PEAK)
            if form is not None and peaks is not None:
                stored = read_rounded(e, stored, peaks, form, int(spec.dims[2]), spec.dtype)
            found[part] = stored
    return found


def write_slots_of(e: Emit, spec: StateSpec, values: fx.Node, form: Form | None) -> dict[str, fx.Node]:
    """The new states of a part that slots hold, by name; `spec` is one of `slot_specs`."""
    if form is None or not spec.dims[2:] or not spec.dtype.is_floating_point:
        return {spec.name: values}
    stored, peaks = write_rounded(e, values, form, int(spec.dims[2]))
    return {spec.name: stored, spec.name + PEAK: peaks}


def writes_dropped(cls: BlockClass) -> bool:
    """Does the memory of such blocks write pairs when slots drop them?"""
    return any(spec.part.startswith(RECORD) for spec in with_role(cls.states, "kept"))


def add_budgets(program: ProgramGraphs, cls: str, budgets: dict[int, Budget]) -> None:
    """Give every block of a class its slots: constant `keep.head`."""
    for i, block in enumerate(program.layout):
        if block.cls == cls:
            key = block_key(i, HEAD)
            owners = torch.repeat_interleave(torch.arange(len(budgets[i])), torch.tensor(budgets[i]))
            program.params[key] = HeldTensor(owners, new=True)
            program.layout[i] = replace(block, params={**block.params, HEAD: key})


def add_probes(program: ProgramGraphs, cls: str) -> None:
    """Give every block of a class its probes, if sleeps read them: zeros."""
    port = program.classes[cls].parameters().get(PROBE)
    for i, block in enumerate(program.layout):
        if block.cls == cls and port is not None:
            key = block_key(i, PROBE)
            program.params[key] = HeldTensor(torch.zeros([int(n) for n in port.meta["type"].dims]), new=True)
            program.layout[i] = replace(block, params={**block.params, PROBE: key})


def budget_keys(program: ProgramGraphs) -> set[str]:
    """Keys of the constants that say whose slots are whose."""
    return {block.params[HEAD] for block in program.layout if HEAD in block.params}


def probe_keys(program: ProgramGraphs) -> dict[int, str]:
    """Keys of the probes, by block."""
    return {i: block.params[PROBE] for i, block in enumerate(program.layout) if PROBE in block.params}


def probes_are_zero(program: ProgramGraphs) -> bool:
    """Does the program have probes that nothing has measured yet?"""
    keys = probe_keys(program).values()
    return bool(keys) and not any(program.params[key].materialise().any() for key in keys)


def slots_of_heads(program: ProgramGraphs) -> dict[int, Budget]:
    """The slots of every KV head of the blocks that keep pairs."""
    found = {}
    for i, block in enumerate(program.layout):
        keys = find_state(program.classes[block.cls].states, "kv", "k")
        if HEAD in block.params and keys is not None:
            owners = program.params[block.params[HEAD]].materialise()
            found[i] = tuple(torch.bincount(owners, minlength=int(keys.dims[1])).tolist())
    return found


def most_slots(program: ProgramGraphs) -> int:
    """The largest number of slots of a KV head."""
    return max((n for budget in slots_of_heads(program).values() for n in budget), default=0)


def head_port(graph: Graph) -> fx.Node:
    """The port of `keep.head`, added if it is not there."""
    found: fx.Node | None = graph.ports().get(HEAD)
    return found or graph.add_port("const", HEAD, TensorType(torch.int64, (SLOTS,)))


def probe_port(graph: Graph, states: Iterable[StateSpec], dtype: torch.dtype) -> fx.Node:
    """The port of `keep.probe` [Hkv,d_k], added to a graph of blocks with such states."""
    keys = find_state(states, "kv", "k")
    assert keys is not None
    return graph.add_port("const", PROBE, TensorType(dtype, (keys.dims[1], keys.dims[3])))


def see_kept(graph: Graph, site: Site, states: tuple[StateSpec, ...], length: int) -> tuple[fx.Node, fx.Node, fx.Node]:
    """What attention over a window of `length` tokens sees in addition, of a block's `states`: keys [B,S,D], values
    [B,S,Dv], and who sees them, bool [B,Hkv,T,S]. A query at t sees a pair of its head at p if p <= t - length: before
    that it is in the ring.
    """
    e = Emit(graph, str(site.node.meta.get("source", "")), site.node)
    queries = graph.add_port("input", QUERIES, TensorType(torch.int64, ("B", "T")))
    seen_of = [s for s in with_role(states, "kept") if s.part.removesuffix(PEAK) in SEEN]
    ports = {s.name: graph.add_port("state", s.name, s.type()) for s in seen_of}
    held = read_slots(e, states, ports, SEEN)
    last = e.unsqueeze(e.call(aten.sub.Scalar, queries, length), 2)
    at = e.unsqueeze(held["position"], 1)
    seen = e.call(aten.logical_and.default, e.call(aten.ge.Scalar, at, 0), e.call(aten.le.Tensor, at, last))
    heads = e.unsqueeze(e.call(aten.arange.default, site.kv_heads), 1, 2)
    own = e.call(aten.eq.Tensor, head_port(graph), heads)
    key = site.node.args[1]
    assert isinstance(key, fx.Node)
    k = e.cast(held["k"], key.meta["type"].dtype)  # rotations in float32 take keys there, and they are kept narrower
    v = held["v"] if slot_form(states) is None else e.cast(held["v"], site.v.meta["type"].dtype)
    return k, v, e.call(aten.logical_and.default, e.unsqueeze(seen, 1), own)
