"""What a person wants to know of a model or an artifact before and after conversion, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from sleepc.ir.graph import Graph, is_call
from sleepc.ir.levels import aten
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.states import find_state, with_role
from sleepc.ir.types import DTYPE_NAMES
from sleepc.ir.weights import is_learned
from sleepc.masks import Mask
from sleepc.passes.analysis.find_sites import Site, find_sites
from sleepc.passes.analysis.kv_cache import KVCache, kv_cache
from sleepc.passes.consolidation.registry import find as find_consolidation
from sleepc.passes.keep.registry import find as find_score
from sleepc.passes.rewrite.kept_pairs import probes_are_zero, writes_dropped
from sleepc.recipe import LayerPlan, Recipe


@dataclass(frozen=True)
class BlockInfo:
    """One block: its attention (no heads if it has none), and what the recipe makes of it."""

    index: int
    cls: str
    q_heads: int
    kv_heads: int
    head_size: int
    sees: str  # the layer's own mask: "window(5)"; "" for causal
    window: int  # that of it, 0 for none
    softcap: float
    sink_logits: bool  # learned, one per head
    positions: str
    mask: str
    bias: bool
    becomes: str
    why: str

    @property
    def reach(self) -> int:
        """How many tokens the layer's own mask lets a token see at most, 0 for all."""
        return Mask.parse(self.sees).reach or 0


@dataclass(frozen=True)
class Inspection:
    """A model's blocks and sites, and what a conversion adds, keeps and costs. Bytes are per sequence.

    `learned_bytes`: what of the state sleeps add to weights of the model. `sleep_in_tokens`: how many tokens are read
    for the operations of a sleep; None if that was not counted.
    """

    blocks: list[BlockInfo]
    classes: int
    hidden: int
    vocab: int
    tied: bool
    dtype: str
    max_positions: int | None
    sites: int
    convertible: int
    parameters: int
    new_parameters: int
    state_bytes: int
    cache: KVCache  # the original's
    kv_bytes_per_token: int  # of that, once windows of layers' own are full
    break_even: int | None  # None: the original's cache never grows as large as the state
    sleep: str
    learned_bytes: int = 0
    sleep_in_tokens: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def inspect_program(canonical: ProgramGraphs, converted: ProgramGraphs, recipe: Recipe) -> Inspection:
    """Compare a program at level CANONICAL with what the recipe made of it.

    `break_even` is the context length from which the state is smaller than the original's KV cache of the same dtype.
    """
    sites = find_sites(canonical)
    plans = recipe.plan(len(canonical.layout))
    blocks = [
        _block(i, b.cls, sites[b.cls], plans[i], recipe, canonical) if b.cls in sites else _recurrent(i, b.cls)
        for i, b in enumerate(canonical.layout)
    ]
    blocks = [_of_ring(info, block.ring) for info, block in zip(blocks, converted.layout, strict=True)]
    cache, state = kv_cache(canonical), converted.state_bytes()
    return Inspection(
        blocks=blocks,
        classes=len(canonical.classes),
        hidden=canonical.hidden,
        vocab=canonical.vocab,
        tied=is_tied(canonical),
        dtype=DTYPE_NAMES[canonical.dtype],
        max_positions=canonical.max_positions,
        sites=sum(b.q_heads > 0 for b in blocks),
        convertible=sum(b.q_heads > 0 for b in blocks),
        parameters=sum(prod(p.shape) for p in canonical.params.values()),
        new_parameters=new_parameters(converted),
        state_bytes=state,
        cache=cache,
        kv_bytes_per_token=cache.bytes_per_token,
        break_even=cache.break_even(state),
        sleep=_sleep(recipe, converted),
        learned_bytes=sum(spec.bytes_per_row() for spec in with_role(converted.all_states(), "fast")),
    )


def _sleep(recipe: Recipe, converted: ProgramGraphs) -> str:
    """When a row sleeps and what a sleep does, in words."""
    what = find_consolidation(recipe.consolidation).in_words(recipe, len(converted.layout))
    if recipe.keep is not None:
        slots, score = recipe.keep.slots, find_score(recipe.keep.score)
        form = "" if recipe.keep.dtype == "float" else f" in {recipe.keep.dtype}"
        yet = " (once calibrate --only budgets has measured that: until then as score key)"
        yet = yet if probes_are_zero(converted) else ""
        what += f"; {slots} pairs for every KV head are kept on average{form}, {score.in_words()}{yet}"
        if any(writes_dropped(cls) for cls in converted.classes.values()):
            what += ", and memories are written with those that are dropped"
    return f"after every {recipe.window} tokens: {what}, then {recipe.eviction} eviction; {recipe.sinks} sinks stay"


def first_emptied(program: ProgramGraphs, recipe: Recipe) -> int | None:
    """After how many tokens a sleep first empties the window, since the next one would pass the model's last position;
    None if that never happens, or every sleep does so.
    """
    limit, window = program.max_positions, recipe.window
    if limit is None or recipe.eviction == "hard" or find_state(program.states, "clock", "offset"):
        return None
    return (max(limit - window, 0) // window + 1) * window


def new_parameters(program: ProgramGraphs) -> int:
    """How many numbers the conversion added."""
    return sum(prod(p.shape) for p in program.params.values() if is_learned(p))


def is_tied(program: ProgramGraphs) -> bool:
    """Do embedding and head read the same parameter (or the same bytes of a file)?"""
    embed, head = set(program.embed.ports("param")), set(program.head.ports("param"))
    if embed & head:
        return True
    return any(program.params[a] == program.params[b] for a in embed for b in head)


def has_bias(graph: Graph, site: Site) -> bool:
    """Does a projection between the block's normalised input and q, k or v add a vector of parameters?"""
    after = {site.x}
    for node in graph.calls():
        if node is site.node:
            return False
        if after.intersection(node.all_input_nodes):
            after.add(node)
            if is_call(node, aten.addmm.default) or (
                is_call(node, aten.linear.default) and len(node.all_input_nodes) == 3
            ):
                return True
    return False


def _mask(site: Site) -> str:
    """What the layer's own mask says."""
    reach = site.mask.words()
    if site.by_distance is not None:
        return f"{reach}, by distance"
    return f"{reach}, less with distance" if site.slopes else reach


def _block(index: int, cls: str, site: Site, plan: LayerPlan, recipe: Recipe, program: ProgramGraphs) -> BlockInfo:
    graph = program.classes[cls].wake
    return BlockInfo(
        index=index,
        cls=cls,
        q_heads=site.q_heads,
        kv_heads=site.kv_heads,
        head_size=site.d_k,
        sees=str(site.mask),
        window=site.mask.window,
        softcap=site.softcap,
        sink_logits=site.sink_logits,
        positions="applied to q and k" if site.rotated else "none in the block",
        mask=_mask(site),
        bias=has_bias(graph, site),
        becomes=_becomes(site, plan),
        why=_why(site, plan, recipe),
    )


def _of_ring(info: BlockInfo, ring: int | None) -> BlockInfo:
    """With whose KV window it reads, if it has none of its own."""
    return info if ring is None else replace(info, becomes=f"{info.becomes}, keys in block {ring}'s window")


def _recurrent(index: int, cls: str) -> BlockInfo:
    """A layer without attention."""
    return BlockInfo(
        index=index,
        cls=cls,
        q_heads=0,
        kv_heads=0,
        head_size=0,
        sees="",
        window=0,
        softcap=0.0,
        sink_logits=False,
        positions="none in the block",
        mask="recurrent",
        bias=False,
        becomes="as it is, from state to state",
        why="it has no attention: its own recurrence carries what it knows, through sleeps too",
    )


def _why(site: Site, plan: LayerPlan, recipe: Recipe) -> str:
    """Why a layer gets no memory; nothing if it gets one."""
    if plan.strategy != "leave":
        return ""
    own = site.mask.reach
    if own and plan.window is not None and own <= plan.window:
        return f"bounded already: its own window of {own} is left (--own-windows {recipe.own_windows})"
    return f"not among --layers {recipe.layers}, or left by an override"


def _becomes(site: Site, plan: LayerPlan) -> str:
    """What the recipe makes of a layer, in words."""
    if plan.strategy == "replace":
        return f"a {plan.rule} mixer in its place"
    kept = "window of all positions" if plan.window is None else f"window {plan.window}"
    own = site.mask.reach
    if own and (plan.window is None or own <= plan.window):
        kept += f" (own {own})"
    return kept + {"parallel": f" + {plan.rule} memory", "insert": f", then a {plan.rule} mixer"}.get(plan.strategy, "")
