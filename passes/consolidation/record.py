"""A memory is written with what its window recorded: the part of a sleep that replay and recurrent passes share."""

from __future__ import annotations

from torch import fx

from sleepc.ir.states import with_role
from sleepc.memory.registry import find as find_rule
from sleepc.passes.consolidation.block_sleep import BlockSleep
from sleepc.passes.rewrite.memory import absent, learned, operands


def write_record(block: BlockSleep) -> dict[str, fx.Node]:
    """The memory's tensors after the rule was applied to the record, as often as the layer's options say (with write
    time online, wake was the first time); empty without a record.
    """
    e, record, options = block.e, block.record(), block.memory
    if options is None or "k" not in record:
        return {}
    memory = with_role(block.cls.states, "memory")
    rule, dtype = find_rule(options.rule), memory[0].dtype
    k = e.cast(record["k"], dtype)
    # Slots beyond those of the window have beta = 0.
    v = e.cast(record["v"] if "v" in record else block.of_window("v"), dtype)
    written = {"k": k, "v": v} | {name: record[name] for name in rule.gates}
    old = [block.states[s.name] for s in memory] + learned(e, rule, block.cls.wake, int(memory[0].dims[1]))
    how = {"rule": options.rule, "passes": options.asleep.replays, "written": options.write == "online"}
    new = e.ours("replay", *operands(rule, written | absent(e, rule, written), old), **how)
    return {s.name: e.item(new, i) for i, s in enumerate(memory)}
