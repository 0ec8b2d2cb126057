"""What a sleep drops of a layer's pairs goes into its memory, in place of the whole window (docs/keep.md).

Of a head's slots and L tokens as many are kept as it has slots, and L dropped: a fixed shape, whatever budgets are.
Dropped ones keep the order of the candidates, which is that of positions: empty slots, pairs of slots, tokens of the
window, places of tokens that were not read. A head without slots drops the window as it is.
"""

from __future__ import annotations

from torch import fx

from sleepc.ir.states import StateSpec, with_role
from sleepc.passes.consolidation.block_sleep import BlockSleep
from sleepc.passes.keep.places import other_places, owners, rows_at, slot_ends
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.kept_pairs import RECORD, head_port, read_slots, slot_specs

Parts = dict[str, fx.Node]


def drop(block: BlockSleep, among: Parts, order: fx.Node, emptied: int) -> Parts | None:
    """What is written in place of the window's record, by part [B,Hkv,P,..]; None if slots hold nothing for that.
    `among` is every part of the candidates, [B,M,..], and `order` [B,M] their numbers, head by head, best first, these
    and the others in order of position.

    P is L. Where a sleep at the model's last position empties slots, of at most `emptied` pairs of a head, these come
    before the L, and P is so much longer. Gates of time are those of the window's tokens, place by place.
    """
    e, heads, window = block.e, block.kv_heads, block.window
    specs = _written(block)
    if not specs:
        return None
    places = other_places(e, head_port(e.graph), heads, window)
    dropped = e.call(aten.index_select.default, order, 1, places)
    found = {
        part: e.reshape(rows_at(e, among[spec.part], dropped, spec.dims[2:]), [-1, heads, window, *spec.dims[2:]])
        for part, spec in specs.items()
    }
    of_time = {s.part: s for s in with_role(block.cls.states, "record") if s.part not in specs}
    gates = {part: block.states[spec.name] for part, spec in of_time.items()}
    if emptied:
        before = _of_slots(block, specs, emptied)
        found = {part: e.call(aten.cat.default, [before[part], values], 2) for part, values in found.items()}
        gates = {part: _none_before(e, gates[part], spec, emptied) for part, spec in of_time.items()}
    return found | gates


def _none_before(e: Emit, gate: fx.Node, spec: StateSpec, places: int) -> fx.Node:
    """A gate [B,Hkv,L,..] after so many places where no time goes by."""
    sides = [*[0, 0] * len(spec.dims[3:]), places, 0]
    return e.call(aten.constant_pad_nd.default, gate, sides, spec.initial)


def _written(block: BlockSleep) -> dict[str, StateSpec]:
    """What slots hold for a memory, by part of the record: values too, which may be those that attention sees."""
    kept = slot_specs(block.cls.states)
    specs = {part.removeprefix(RECORD): spec for part, spec in kept.items() if part.startswith(RECORD)}
    return {"v": kept["v"], **specs} if specs else {}


def _of_slots(block: BlockSleep, specs: dict[str, StateSpec], emptied: int) -> Parts:
    """What slots hold, by part [B,Hkv,emptied,..], in rows that this sleep evicts hard; elsewhere it writes nothing."""
    e, heads, head = block.e, block.kv_heads, head_port(block.e.graph)
    latest = e.sub(e.unsqueeze(slot_ends(e, head, heads), 1), emptied)
    place = e.reshape(e.add(latest, e.call(aten.arange.default, emptied)), [heads * emptied])
    index = e.call(aten.clamp.default, place, 0)
    own = e.call(aten.eq.Tensor, e.call(aten.index_select.default, head, 0, index), owners(e, heads, emptied))
    own = e.call(aten.logical_and.default, own, e.call(aten.ge.Scalar, place, 0))
    leaves = e.unsqueeze(e.call(aten.logical_not.default, block.ring_stays()), 1)
    written = e.reshape(e.call(aten.logical_and.default, leaves, own), [-1, heads, emptied])
    found = {}
    held = read_slots(e, block.cls.states, block.states, [spec.part for spec in specs.values()])
    for part, spec in specs.items():
        values = e.call(aten.index_select.default, held[spec.part], 1, index)
        values = e.reshape(values, [-1, heads, emptied, *spec.dims[2:]])
        found[part] = e.where(e.unsqueeze(written, -1) if spec.dims[2:] else written, values, spec.initial)
    return found
