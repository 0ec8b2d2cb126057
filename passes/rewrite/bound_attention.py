"""Attention over everything becomes attention over sinks and a ring of the latest tokens; a clock comes into the
program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from sleepc.errors import Refusal, UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.analysis.find_sites import Site, find_attention, find_site, find_sites
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import BLOCKS, MASKS_KNOWN, UNCLOCKED, Fact
from sleepc.passes.lib.classes import chosen_classes
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.plan import Budget, Rings, budgets
from sleepc.passes.rewrite.kept_pairs import (
    QUERIES,
    add_budgets,
    check_can_keep,
    heads_that_keep,
    kept_specs,
    see_kept,
)
from sleepc.passes.rewrite.key_positions import (
    KeyPositions,
    at_positions,
    copy_nodes,
    held_name,
    made_of,
    on_tokens,
    read_extras,
    with_slots,
)
from sleepc.passes.rewrite.marks import gap_spec, hide, pinned_spec
from sleepc.passes.rewrite.rounded import FORMS
from sleepc.passes.rewrite.turn_keys import bind_turn, turn_graph, turns_add
from sleepc.passes.rewrite.window_masks import WindowMask, add_by_distance, mask_name
from sleepc.recipe import Keep

POSITION = StateSpec("clock", "position", ("B",), torch.int64, "accumulate")
SINCE = StateSpec("clock", "since", ("B",), torch.int64, "accumulate")
SLEPT = StateSpec("clock", "slept", ("B",), torch.bool, "overwrite")
OFFSET = StateSpec("clock", "offset", ("B",), torch.int64, "accumulate")
CLOCK = (POSITION, SINCE, SLEPT)
FOREVER = 1 << 62
ROW = TensorType(torch.int64, ("B",))


@dataclass(frozen=True)
class BoundAttention(Pass):
    """The attention layers in `rings` keep a KV window of sinks + window slots (semantics.md, section 2 and 4).

    embed: takes lengths [B] and the clock (position, since, slept) instead of positions, and hands on, for all blocks:
    record slots [B,T] of the new tokens, which of them are real, how many, and whether the row has slept; for each
    length of a KV window the tokens' slots [B,T], and one mask for all layers that see alike (window_masks.py).
    blocks: attention -> window_attention over the old window and the new tokens, which are written into it last.

    Keys are kept as attention sees them or, if they are to be seen at other positions than they came with, without
    positions (key_positions.py): with `renumber` in all layers (state `offset` [B] is then what the model counts less
    than the stream has tokens, from the first sleep on after which it would run out of positions), and in layers whose
    own window is longer than their KV window, where sinks stay near with `slide`, that is if evictions are not hard.
    `every`: tokens from sleep to sleep.

    Those of the layers `keepers` whose own mask lets them see distant tokens see pairs in addition (kept_pairs.py), as
    `keep` says; their rings keep keys without positions, for scores. Positions are then renumbered if the model allows
    it: they are not added to tokens, and two turns of a key make one. The classes get
    graphs that turn keys. With `marks` tokens and pairs can be pinned and dropped. Sleeps need `ahead` positions
    behind the window's.

    Raises UsageError if window plus sinks is more than the positions that the model has, or it cannot renumber.
    """

    rings: Rings
    sinks: int
    every: int
    slide: bool
    renumber: bool
    keep: Keep | None = None
    keepers: frozenset[int] = frozenset()
    marks: bool = True
    ahead: int = 0
    name: ClassVar[str] = "bound-attention"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, MASKS_KNOWN, UNCLOCKED)

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes rewritten."""
        shared, rewritten = Shared(), 0
        slots = self._budgets(program)
        self._check_picked(program, max((n for budget in slots for n in budget), default=0))
        renumber = self._renumbers(program, slots)
        for length, layers in self.rings:
            window = self._window(program, length)
            for some in _split(layers, slots):
                for name in (n for n in chosen_classes(program, some) if find_attention(program.classes[n].wake)):
                    pairs = {i: slots[i] for i in some if slots[i]}
                    self._bind_block(program, name, (window, pairs), shared, renumber)
                    rewritten += 1
        program.states = (*CLOCK, OFFSET) if renumber else CLOCK
        if any(slots) and self.marks:
            lengths = sorted({mask.window for mask in shared.masks})
            gaps = (gap_spec(length, self.sinks) for length in lengths)
            program.states = (*program.states, pinned_spec(self.every), *gaps)
        _wind_clock(program, shared, self.every)
        return max(rewritten, 1)

    def _budgets(self, program: ProgramGraphs) -> tuple[Budget, ...]:
        """The slots of every KV head of every layer, () for a layer that keeps no pairs."""
        if self.keep is None:
            return ((),) * len(program.layout)
        heads = heads_that_keep(program, self.keepers)
        slots = budgets(self.keep, heads)
        if any(heads) and not any(slots):
            fix = "Give slots to one KV head at least, or convert without keep."
            raise UsageError("the budgets give no KV head a slot", where="keep.budgets", fix=fix)
        if not any(slots):
            raise UsageError(
                "no layer can keep pairs: each keeps all tokens, has a window of its own, or has no attention left",
                where="--keep",
                fix="Leave it out, or convert other layers.",
            )
        for name in {block.cls for block, budget in zip(program.layout, slots, strict=True) if budget}:
            check_can_keep(find_site(program.classes[name].wake))
        return slots

    def _check_picked(self, program: ProgramGraphs, most: int) -> None:
        """Raises UsageError if attention would see more keys than an indexer of the model's lets it see."""
        limit, longest = program.picked, max((length or FOREVER for length, _ in self.rings), default=0)
        if limit is None or self.sinks + longest + most <= limit:
            return
        kept = f"{most} kept pairs" if most else "no kept pairs"
        window = "all tokens" if longest == FOREVER else f"a window of {longest} tokens"
        room = limit - self.sinks - most
        raise UsageError(
            f"the model itself picks up to {limit} keys for a query, and is converted where it picks all: "
            f"{window}, {self.sinks} sinks and {kept} are more",
            where="--window",
            fix=f"Choose --window {room} or less." if room > 0 else "Choose fewer sinks and pairs.",
        )

    def _renumbers(self, program: ProgramGraphs, slots: tuple[Budget, ...]) -> bool:
        """Do positions begin anew, at the model's last one, from the oldest key that is kept?"""
        most = max((n for budget in slots for n in budget), default=0)
        if program.max_positions is None or not (self.renumber or most):
            return False
        what = self._cannot_renumber(program, slots)
        if what and self.renumber:
            raise UsageError(what, where="--last-position renumber", fix="Use --last-position evict.")
        if not what:
            self._check_room(program, most)
        return not what

    def _cannot_renumber(self, program: ProgramGraphs, slots: tuple[Budget, ...]) -> str:
        """Why positions cannot be counted from the oldest key that is kept, "" if they can."""
        if any(site.placed for site in find_sites(program).values()):
            return "keys of a layer are used again by later ones, with the positions that they have"
        if on_tokens(program.embed):
            return "positions are added to the tokens themselves, so that keys that are kept cannot get other ones"
        if any(length is None for length, _ in self.rings):
            return "a layer keeps all positions, so none are left to renumber"
        first = {block.cls: i for i, block in reversed(list(enumerate(program.layout))) if slots[i]}
        for name, i in first.items():
            wake = program.classes[name].wake
            site = find_site(wake)
            if site.rotated and not turns_add(program, turn_graph(program, wake, site), program.layout[i].params):
                return "keys that have a position cannot be given another one: positions do more than rotate them"
        return ""

    def _check_room(self, program: ProgramGraphs, most: int) -> None:
        """Raises UsageError if what is kept leaves no positions for new tokens."""
        longest = max((length or 0 for length, _ in self.rings), default=0)
        limit, needed = program.max_positions or 0, self.sinks + most + longest + self.every + self.ahead
        if needed > limit:
            kept = f"{longest} tokens that are kept" + (f", {most} pairs of one KV head" if most else "")
            raise UsageError(
                f"{self.sinks} sinks, {kept} and {self.every} new ones until the next sleep "
                f"need {needed} positions, and the model has {limit}",
                where="--keep" if most else "--last-position renumber",
                fix="Choose fewer slots or a shorter --window."
                if most
                else "Choose a shorter --window, or use --last-position evict.",
            )

    def _window(self, program: ProgramGraphs, length: int | None) -> int:
        limit = program.max_positions
        if length is None and limit is None:
            raise UsageError(
                "the model does not say how many positions it has, so a layer cannot keep all of them",
                where="overrides: window: none",
                fix="Give a number of tokens instead of none.",
            )
        window = limit - self.sinks if length is None and limit is not None else length
        assert window is not None
        if limit is not None and self.sinks + window > limit:
            raise UsageError(
                f"a window of {window} and {self.sinks} sinks need {window + self.sinks} positions, "
                f"and the model has {limit}",
                where="--window, --sinks",
                fix=f"Choose --window {limit - self.sinks} or less."
                if limit > self.sinks
                else "Choose fewer sinks (--sinks), and a window that fits.",
            )
        return window

    def _bind_block(
        self,
        program: ProgramGraphs,
        name: str,
        lengths: tuple[int, dict[int, Budget]],
        shared: Shared,
        renumber: bool,
    ) -> None:
        (window, slots), cls = lengths, program.classes[name]
        graph = cls.wake
        site = find_site(graph)
        specs = [
            StateSpec("kv", "k", ("B", site.kv_heads, self.sinks + window, site.d_k), program.dtype, "ring"),
            StateSpec("kv", "v", ("B", site.kv_heads, self.sinks + window, site.d_v), program.dtype, "ring"),
        ]
        brought = self._brought(site, window)
        seen = WindowMask.of(site, window, self.sinks, brought=brought)
        mask = graph.add_port("input", shared.mask(seen), seen.type(wide_dtype(program.dtype)))
        new_slots = graph.add_port("input", slots_name(window), TensorType(torch.int64, ("B", "T")))
        k_window, v_window = (graph.add_port("state", s.name, s.type()) for s in specs)
        kept, old = site.node.args[1], k_window
        if site.rotated and (brought or renumber or slots):
            places = KeyPositions(window, self.sinks, site.mask.window if brought else 0, self.every)
            kept, old = site.k, self._at_positions(program, graph, site, k_window, places, shared)
        pairs = self._pairs(site, program.dtype, renumber=renumber) if slots else ()
        if slots:
            self._add_slots(program, name, site, slots)
            shared.queries = True
        seen_pairs = see_kept(graph, site, (*specs, *pairs), window) if slots else ()
        self._attend(graph, site, (old, v_window, mask), seen_pairs)
        results, e = graph.results(), Emit(graph, str(site.node.meta.get("source", "")))
        for spec, window_, new in zip(specs, (k_window, v_window), (kept, site.v), strict=True):
            results[spec.name] = e.ours("write_slots", window_, new, new_slots)
        graph.set_returns(results)
        graph.drop_dead()
        infer_types(graph)
        cls.states = (*cls.states, *specs, *pairs)

    def _attend(self, graph: Graph, site: Site, window: tuple[fx.Node, ...], kept: tuple[fx.Node, ...]) -> None:
        """Attention over the window, and over kept pairs if there are any, in place of attention over everything."""
        q, k, v, _, sink_logits, *_ = site.node.args
        e = Emit(graph, str(site.node.meta.get("source", "")), site.node)
        if site.by_distance is not None:
            *held, mask = window
            window = (*held, add_by_distance(e, site.by_distance, mask, mask.meta["type"].dtype))
        options = {"scale": site.scale, "softcap": site.softcap}
        operator = "kept_attention" if kept else "window_attention"
        out = e.ours(operator, q, k, v, *window, *kept, sink_logits, **options)
        site.node.replace_all_uses_with(out)
        graph.fx.erase_node(site.node)

    def _pairs(self, site: Site, dtype: torch.dtype, *, renumber: bool) -> tuple[StateSpec, ...]:
        """The states of slots."""
        assert self.keep is not None
        return kept_specs(site, dtype, FORMS.get(self.keep.dtype), turns=renumber and site.rotated)

    def _add_slots(self, program: ProgramGraphs, name: str, site: Site, slots: dict[int, Budget]) -> None:
        """The blocks' budgets, and the graph that turns their keys."""
        cls = program.classes[name]
        add_budgets(program, name, slots)
        if site.rotated:
            cls.turn = turn_graph(program, cls.wake, site)
            bind_turn(program, name, cls.turn)

    def _brought(self, site: Site, window: int) -> bool:
        """Are the layer's sinks brought near, since it has never seen a key as far away as they would be?"""
        roomy = site.mask.window > window and site.mask.window >= self.every + self.sinks
        return self.slide and self.sinks > 0 and site.rotated and roomy

    def _at_positions(
        self,
        program: ProgramGraphs,
        graph: Graph,
        site: Site,
        k_window: fx.Node,
        places: KeyPositions,
        shared: Shared,
    ) -> fx.Node:
        """The keys of the window [B,Hkv,W,D] with the positions that `places` gives them."""
        extras = read_extras(graph, site)
        made = program.embed.results()
        by_tokens = find_dependence(program.embed, ("tokens",), ("positions",)).tokens
        if any(made[name] in by_tokens for name in extras):
            raise Refusal(
                "POSITIONS",
                "what is applied to keys as positions depends on tokens",
                where=str(site.node.meta.get("source", "")),
            )
        ports = {}
        for name in extras:
            held = shared.held(places, name)
            type_ = with_slots(graph.ports()[name].meta["type"], places.window + places.sinks)
            ports[name] = graph.add_port("input", held, type_)
        return at_positions(graph, site, k_window, ports)


def _split(layers: tuple[int, ...], slots: tuple[Budget, ...]) -> tuple[tuple[int, ...], ...]:
    """The layers that keep no pairs, and those that do."""
    parts = (tuple(i for i in layers if bool(slots[i]) is keeps) for keeps in (False, True))
    return tuple(part for part in parts if part)


@dataclass
class Shared:
    """What blocks read from embed, by its name there: masks, and what is made of the positions of kept keys."""

    masks: dict[WindowMask, str] = field(default_factory=dict)
    places: dict[KeyPositions, set[str]] = field(default_factory=dict)
    queries: bool = False  # the positions of the new tokens

    def mask(self, seen: WindowMask) -> str:
        """The name of a mask."""
        return self.masks.setdefault(seen, mask_name(len(self.masks)))

    def held(self, places: KeyPositions, extra: str) -> str:
        """The name of what is made, like `extra`, of the positions of keys."""
        self.places.setdefault(places, set()).add(extra)
        return held_name(extra, list(self.places).index(places))


def _made_of_slots(
    embed: Graph, results: dict[str, fx.Node], positions: fx.Node, kept: fx.Node, names: dict[str, str]
) -> dict[str, fx.Node]:
    """What embed makes of the `kept` positions [B,W], like results of `positions` [B,T], by the new ones of `names`."""
    e, new = Emit(embed, "clock"), {positions: kept}

    def size(dim: int | str) -> fx.Node:
        return e.size(kept, 1 if dim == "T" else 0)

    for name in names:
        copy_nodes(e, [n for n in made_of(embed, results[name], positions) if n not in new], new, size)
    return {held: new[results[name]] for name, held in names.items()}


def _kept(e: Emit, positions: fx.Node, end: fx.Node, mask: WindowMask) -> fx.Node:
    """Which new tokens are sinks or among the latest that a ring holds: bool [B,T]; `end` [B] comes after them."""
    oldest = e.unsqueeze(e.call(aten.sub.Scalar, end, mask.window), 1)
    sink = e.call(aten.lt.Scalar, positions, mask.sinks)
    return e.call(aten.logical_or.default, e.call(aten.ge.Tensor, positions, oldest), sink)


def _seen(
    e: Emit, mask: WindowMask, new: tuple[fx.Node, fx.Node, fx.Node], states: dict[str, fx.Node], dtype: torch.dtype
) -> fx.Node:
    """The mask of a KV window, but for what was taken out of it; `new`: positions [B,T], that of the first [B], and
    which are real [B,T].
    """
    positions, position, real = new
    made, gaps = mask.emit(e, positions, position, dtype), states.get(gap_spec(mask.window, mask.sinks).name)
    least = torch.finfo(dtype).min if mask.slopes else None
    return made if gaps is None else hide(e, made, gaps, mask.window, (position, real), least)


def slots_name(window: int) -> str:
    """The name of the slots in KV windows of this length."""
    return f"slots.{window}"


def _wind_clock(program: ProgramGraphs, shared: Shared, every: int) -> None:
    embed = program.embed
    results = embed.results()
    ports = embed.ports()
    tokens, old_positions = ports["tokens"], ports["positions"]
    lengths = embed.add_port("input", "lengths", ROW)
    states = {s.name: embed.add_port("state", s.name, s.type()) for s in program.states if s.role in ("clock", "gap")}
    position, since, slept = (states[s.name] for s in CLOCK)
    offset = states.get(OFFSET.name)
    first = next(iter(embed.calls()))
    e = Emit(embed, "clock", first)
    steps = e.unsqueeze(e.call(aten.arange.default, e.size(tokens, 1)), 0)
    real = e.call(aten.lt.Tensor, steps, e.unsqueeze(lengths, 1))
    counted = e.add(e.unsqueeze(position, 1), steps)
    positions = e.where(real, counted, -1)
    e_safe = e.where(real, counted if offset is None else e.sub(counted, e.unsqueeze(offset, 1)), 0)
    old_positions.replace_all_uses_with(e_safe)
    embed.fx.erase_node(old_positions)
    results = {name: (e_safe if node is old_positions else node) for name, node in results.items()}
    for number, (places, extras) in enumerate(shared.places.items()):
        kept = places.emit(e, position, since, offset)
        results |= _made_of_slots(embed, results, e_safe, kept, {n: held_name(n, number) for n in sorted(extras)})
    results["record_slots"] = e.where(real, e.add(e.unsqueeze(since, 1), steps), -1)
    for mask, name in shared.masks.items():
        if slots_name(mask.window) not in results:
            slots = e.ours("window_slots", positions, window=mask.window, sinks=mask.sinks)
            if mask.window < every:  # a call may bring more tokens than fit
                kept = _kept(e, positions, e.add(position, lengths), mask)
                slots = e.where(kept, slots, -1)
            results[slots_name(mask.window)] = slots
        results[name] = _seen(e, mask, (positions, position, real), states, wide_dtype(program.dtype))
    results["real"] = real
    if shared.queries:
        results[QUERIES] = e.where(real, e_safe, -1)
    # Handed on as they are; a result may not be a port itself, since a lowering may write ports in place.
    results["lengths"] = e.call(aten.clone.default, lengths)
    results["live"] = e.call(aten.clone.default, slept)
    results[POSITION.name], results[SINCE.name] = e.add(position, lengths), e.add(since, lengths)
    embed.set_returns(results)
    infer_types(embed)
