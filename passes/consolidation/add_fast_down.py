"""In-Place TTT: what wake and sleeps need so that sleeps may write the down-projections of some MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sleepc.errors import UsageError
from sleepc.ir.infer import infer_types
from sleepc.ir.program import BlockClass, ProgramGraphs
from sleepc.ir.states import StateSpec, find_state
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.memory.parameters import TAPS_AROUND, TARGET, TARGET_TAPS, Parameter, Sizes
from sleepc.passes.analysis.find_down import find_down
from sleepc.passes.analysis.find_sites import dims
from sleepc.passes.analysis.linear_maps import LinearMap
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.block_sleep import BlockSleep
from sleepc.passes.consolidation.fast_maps import add_beside, inputs_of
from sleepc.passes.facts import AWAKE, BLOCKS, BOUNDED, CLOCKED, Fact
from sleepc.passes.lib.classes import chosen_classes, embed_port, first_block
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.memory import EPSILON, NewParam, add_to_layout
from sleepc.passes.rewrite.mixer import rms

RATE = 3.0  # the paper's; W_target learns how much of it counts
DOWN, INPUTS, SOURCES = "down", "z", "x"  # parts of the states: what is added to the map, and a window's record


@dataclass(frozen=True)
class AddFastDown(Pass):
    """W z becomes W z + Dᵀ z for the down-projection of each block's MLP, D [d_f,d] a state of each row, zero until
    sleeps write it; a window's z [L,d_f] and x [L,d], the block's h over its root mean square, are recorded.

    Raises UsageError for a block that has no such map.
    """

    layers: tuple[int, ...]
    window: int
    seed: int
    name: ClassVar[str] = "add-fast-down"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, CLOCKED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """The number of block classes whose MLPs sleeps write."""
        names = chosen_classes(program, self.layers)
        for name in names:
            cls = program.classes[name]
            down = find_down(cls.wake)
            if down is None:
                raise UsageError(
                    "no linear map is found by which the block's MLP comes back to the hidden width",
                    where=f"block {first_block(program, name)}",
                    fix="Name blocks that have one with --mlps, or use --consolidation replay.",
                )
            self._add(program, cls, down)
            sizes = Sizes(0, 0, 0, 0, program.hidden)
            new = [NewParam(p.port, p.shape(sizes), p.converted) for p in (TARGET_TAPS, TARGET)]
            add_to_layout(program, name, new, self.seed)
            infer_types(cls.wake)
        return len(names)

    def _add(self, program: ProgramGraphs, cls: BlockClass, down: LinearMap) -> None:
        graph, wide = cls.wake, wide_dtype(program.dtype)
        width, out = dims(down.x)[-1], dims(down.call)[-1]
        h = graph.ports()["h"]
        spec = StateSpec("fast", DOWN, ("B", width, out), wide, "accumulate")
        fast = graph.add_port("state", spec.name, spec.type())
        e = Emit(graph, "in-place", down.call.next)
        z = inputs_of(e, graph, down)
        add_beside(e, down, e.cast(z, wide), fast)
        e, results = Emit(graph, "in-place"), graph.results()
        x = rms(e, e.cast(h, wide), EPSILON)
        states = [spec]
        for part, value, size in ((INPUTS, z, width), (SOURCES, x, out)):
            record = StateSpec("record", part, ("B", 1, self.window, size), program.dtype, "ring")
            port = graph.add_port("state", record.name, record.type())
            new, slots = e.unsqueeze(e.cast(value, program.dtype), 1), embed_port(program, graph, "record_slots")
            results[record.name] = e.ours("write_slots", port, new, slots)
            states.append(record)
        graph.set_returns(results)
        cls.states = (*cls.states, *states)


def write_down(block: BlockSleep) -> dict[str, fx.Node]:
    """D + RATE Zᵀ V in a sleep graph, by the name of its state; nothing in a block without one.

    V = conv(X) W_targetᵀ, a depthwise convolution over the window of TAPS_AROUND taps with its token in the middle;
    places outside of the window, and those whose token was not read, are zero in X and Z.
    """
    spec = find_state(block.cls.states, "fast", DOWN)
    if spec is None:
        return {}
    e, around, (_, _, hidden) = block.e, TAPS_AROUND // 2, spec.dims
    z, x = (_recorded(block, part, spec) for part in (INPUTS, SOURCES))
    taps, target = (_param(block, parameter, spec, int(hidden)) for parameter in (TARGET_TAPS, TARGET))
    padded = e.call(aten.constant_pad_nd.default, x, [0, 0, around, around], 0.0)
    terms = [
        e.mul(e.call(aten.slice.Tensor, padded, 1, j, j + block.window), e.call(aten.select.int, taps, 1, j))
        for j in range(TAPS_AROUND)
    ]
    mixed = terms[0]
    for term in terms[1:]:
        mixed = e.add(mixed, term)
    product = e.call(aten.matmul.default, e.transpose(z, 1, 2), e.linear(mixed, target))
    return {spec.name: e.add(block.states[spec.name], e.mul(product, RATE))}


def _recorded(block: BlockSleep, part: str, like: StateSpec) -> fx.Node:
    """[B,L,..] in the dtype of what is written."""
    record = find_state(block.cls.states, "record", part)
    assert record is not None
    return block.e.cast(block.e.call(aten.select.int, block.states[record.name], 1, 0), like.dtype)


def _param(block: BlockSleep, parameter: Parameter, like: StateSpec, hidden: int) -> fx.Node:
    shape = parameter.shape(Sizes(0, 0, 0, 0, hidden))
    return block.e.graph.add_port("param", parameter.port, TensorType(like.dtype, shape))
